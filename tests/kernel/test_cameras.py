"""V4L2 cameras: the kernel's vivid driver, and ours above it."""

from __future__ import annotations

import numpy as np
import pytest
from contracts.camera import check_camera
from kernel.plugs import Webcam, wait_for

from ulna.drivers import opencv
from ulna.drivers.camera import CameraState, StaleFrame
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.config import parse
from ulna.drivers.devices import cameras

MODE = {"width": 320, "height": 180, "fps": 10.0, "fourcc": "YUYV"}


def config(webcam: Webcam, **more: object) -> opencv.Config:
    return parse(opencv.Config, {"device": str(webcam.path), **MODE, **more}, "test")


def test_nodes_are_told_apart_and_list_their_modes() -> None:
    nodes = cameras()
    camera = next(c for c in nodes if c.name.endswith("platform-vivid.0-video-index0"))
    assert camera.capture
    assert "vivid" in camera.title
    mode = next(m for m in camera.modes if (m.fourcc, m.width, m.height) == ("YUYV", 320, 180))
    assert {30.0, 10.0} <= set(mode.fps)
    assert sum(c.capture is True for c in nodes) == 1, "outputs and metadata nodes are no cameras"


def test_camera_contract() -> None:
    check_camera(opencv.make("webcam", config(Webcam())), MonotonicClock())


def test_a_mode_that_the_camera_does_not_have_is_refused() -> None:
    camera = opencv.make("webcam", config(Webcam(), width=333))
    with pytest.raises(Exception, match="333"):
        camera.open()
    camera.close()


def test_unplugged_and_replugged() -> None:
    webcam = Webcam()
    camera = opencv.make("webcam", config(webcam))
    camera.open()
    try:
        before = camera.next(-1, 20)
        assert before.data.shape == (180, 320, 3)
        assert np.unique(before.data.reshape(-1, 3), axis=0).shape[0] > 8, "a picture of colour bars"
        webcam.unplug()
        wait_for("the driver to notice", lambda: camera.health().state is not CameraState.STREAMING)
        with pytest.raises(StaleFrame):
            camera.latest(max_age_s=0.2)
        webcam.plug_in()
        wait_for("pictures again", lambda: camera.health().state is CameraState.STREAMING, 60)
        after = camera.next(before.seq, 20)
        assert after.seq > before.seq
        assert after.t_capture_ns > before.t_capture_ns
        assert camera.reconnects >= 1
    finally:
        camera.close()
