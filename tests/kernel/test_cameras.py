"""V4L2 cameras: the kernel's vivid driver, and ours above it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict

import numpy as np
import pytest
from contracts.camera import check_camera
from kernel.plugs import Webcam, wait_for

from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import CameraState, StaleFrame
from ulna.drivers.cameras import opencv
from ulna.drivers.cameras.capture import CaptureCamera
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.config import parse
from ulna.drivers.devices import cameras

MODE = {"width": 320, "height": 180, "fps": 10.0, "fourcc": "YUYV"}


def camera_of(webcam: Webcam, **settings: object) -> CaptureCamera:
    """As `opencv.make` builds it, but patient: emulated, OpenCV alone takes many seconds to load."""
    config = parse(opencv.Config, {"device": str(webcam.path), **MODE, **settings}, "test")
    return CaptureCamera(
        "webcam",
        "ulna.drivers.cameras.opencv",
        asdict(config),
        config.height,
        config.width,
        config.fps,
        open_timeout_s=120,
    )


def test_nodes_are_told_apart_and_list_their_modes() -> None:
    nodes = cameras()
    camera = next(c for c in nodes if c.name.endswith("platform-vivid.0-video-index0"))
    assert camera.capture
    assert "vivid" in camera.title
    mode = next(m for m in camera.modes if (m.fourcc, m.width, m.height) == ("YUYV", 320, 180))
    assert {30.0, 10.0} <= set(mode.fps)
    assert sum(c.capture is True for c in nodes) == 1, "outputs and metadata nodes are no cameras"


def test_camera_contract() -> None:
    check_camera(camera_of(Webcam()), MonotonicClock())


def test_a_mode_that_the_camera_does_not_have_is_refused() -> None:
    camera = camera_of(Webcam(), width=333)
    with pytest.raises(DeviceError, match="333 × 180") as error:
        camera.open()
    assert "YUYV 320 × 180 at" in str(error.value), "what it has"
    camera.close()


def test_unplugged_and_replugged() -> None:
    webcam = Webcam()
    camera = camera_of(webcam)
    camera.open()
    try:
        first = camera.next(-1, 20)
        assert first.data.shape == (180, 320, 3)
        assert np.unique(first.data.reshape(-1, 3), axis=0).shape[0] >= 6, "a picture of colour bars"
        webcam.unplug()
        wait_for("the driver to notice", lambda: camera.health().state is not CameraState.STREAMING)
        with pytest.raises(StaleFrame):
            camera.latest(max_age_s=0.2)
        webcam.plug_in()
        wait_for("pictures again", lambda: camera.health().state is CameraState.STREAMING, 60)
        after = camera.next(first.seq, 20)
        assert after.seq > first.seq
        assert after.t_capture_ns > first.t_capture_ns
        assert camera.reconnects >= 1
    finally:
        camera.close()


def test_frames_that_waited_in_the_kernel_do_not_pass_for_new() -> None:
    """The capture process sleeps for three seconds; the kernel's buffers then hold frames of before."""
    camera = camera_of(Webcam())
    camera.open()
    try:
        frame = camera.next(-1, 20)
        assert camera.pid is not None
        os.kill(camera.pid, signal.SIGSTOP)
        time.sleep(3)
        woken_ns = time.monotonic_ns()
        os.kill(camera.pid, signal.SIGCONT)
        while frame.t_receive_ns < woken_ns:  # those that came before it fell asleep
            frame = camera.next(frame.seq, 20)
        for _ in range(4):  # as many as the kernel held
            later = camera.next(frame.seq, 20)
            # what waited comes in one burst: stamped with its arrival it would look like pictures of now
            assert later.t_capture_ns - frame.t_capture_ns > 50_000_000
            frame = later
        wait_for("a fresh frame", lambda: _age_s(camera) < 0.5)
    finally:
        camera.close()


def _age_s(camera: CaptureCamera) -> float:
    try:
        return (time.monotonic_ns() - camera.latest().t_capture_ns) * 1e-9
    except StaleFrame:
        return float("inf")
