"""Cameras: the capture process and its supervision, webcams, and the faults of network cameras."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from contracts.camera import check_camera

from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import CameraState, StaleFrame
from ulna.drivers.cameras import opencv, v4l2
from ulna.drivers.cameras.capture import CaptureCamera
from ulna.drivers.cameras.frame_ring import FrameRing
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.twins.faults import CameraFaults
from ulna.drivers.twins.mjpeg import MjpegTwin, mark, read_mark, wandering_bars

pytestmark = pytest.mark.realtime

SIZE = (120, 160)
PATIENCE_S = 20.0  # of a loaded machine


@pytest.fixture
def twin() -> Iterator[MjpegTwin]:
    with MjpegTwin(wandering_bars(*SIZE), size=SIZE) as twin:
        yield twin


@contextmanager
def open_camera(camera: CaptureCamera) -> Iterator[CaptureCamera]:
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def camera_at(url: str, **config: object) -> CaptureCamera:
    settings = {"device": url, "height": SIZE[0], "width": SIZE[1], **config}
    return opencv.make("front", opencv.Config(**settings))  # type: ignore[arg-type]


def eventually(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def state(camera: CaptureCamera) -> CameraState:
    return camera.health().state


# A stream


@pytest.mark.parametrize("reader", ["multipart", "ffmpeg"])
def test_contract(twin: MjpegTwin, reader: str) -> None:
    check_camera(
        camera_at(twin.url, reader=reader, matrix=(100, 0, 80, 0, 100, 60, 0, 0, 1)), MonotonicClock()
    )


def test_times_are_of_the_capture() -> None:
    """Each frame's capture time is that at which the twin painted it, but for the time that the quickest took
    on its way."""
    with (
        MjpegTwin(wandering_bars(480, 672), size=(480, 672), paint=True) as twin,
        open_camera(camera_at(twin.url, height=480, width=672)) as camera,
    ):
        off_us, numbers = [], []
        sample = camera.latest(5.0)
        for _ in range(20):
            sample = camera.next(sample.seq, PATIENCE_S)
            number, t_us = read_mark(sample.data)
            off_us.append((sample.t_capture_ns // 1000 & 0xFFFFFFFFFF) - t_us)
            numbers.append(number - sample.seq)
        assert len(set(numbers)) == 1, "seq counts the device's frames"
        # the estimate may only begin too late, by what the first messages were late on a busy machine
        assert 0 <= min(off_us) < 500_000
        assert np.median(np.abs(np.diff(off_us))) < 5_000, "arrival jitters, capture does not"


def test_colours_come_in_the_right_order_and_rotated() -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:60, :80] = (250, 10, 10)  # red, above on the left
    with (
        MjpegTwin(lambda: (picture, time.monotonic_ns()), size=SIZE) as twin,
        open_camera(camera_at(twin.url, rotate=90, matrix=(1, 0, 0, 0, 1, 0, 0, 0, 1))) as camera,
    ):
        data = camera.latest(5.0).data
        assert (camera.height, camera.width) == data.shape[:2] == (160, 120)
        assert data[40, 90, 0] > 200, "above on the right, after a quarter turn clockwise"
        assert data[40, 90, 2] < 50
        assert data[120, 30, 0] < 50
        assert camera.intrinsics is not None
        assert (camera.intrinsics.height, camera.intrinsics.width) == (160, 120)
        assert camera.info is not None


def test_consumer_that_pauses_gets_a_fresh_frame(twin: MjpegTwin) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        before = camera.latest()
        time.sleep(2)
        eventually(lambda: state(camera) is CameraState.STREAMING, "it streams all the while")
        after = camera.next(before.seq, PATIENCE_S)
        assert time.monotonic_ns() - after.t_capture_ns < 0.5e9
        assert after.seq >= before.seq + 20, "the device was drained meanwhile"
        with pytest.raises(ValueError, match="keeps 6 frames"):
            camera.window(7)


def test_stall_is_stale_then_reconnecting_and_no_old_frame_passes(twin: MjpegTwin) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        eventually(lambda: state(camera) is CameraState.STREAMING, "it streams")
        twin.faults.stalled = True
        eventually(lambda: state(camera) is CameraState.STALE, "stale after two periods")
        eventually(lambda: camera.health().age_s > 1, "the age grows")
        for ask in (camera.latest, lambda: camera.latest(0.5), lambda: camera.window(2)):
            with pytest.raises(
                StaleFrame, match=r"camera front has no frame of the last (1|0\.5) s: the newest is"
            ):
                ask()
        with pytest.raises(StaleFrame):
            camera.next(-1, 0.2)
        last = camera.latest(max_age_s=1000)
        eventually(lambda: state(camera) is CameraState.RECONNECTING, "a silent connection is given up")
        assert any(why in camera.health().message for why in ("sent nothing", "no frame for"))
        assert camera.health().fps == 0
        twin.faults.stalled = False
        eventually(lambda: state(camera) is CameraState.STREAMING, "it comes back")
        assert camera.next(last.seq, PATIENCE_S).seq > last.seq
        assert camera.reconnects >= 1


def test_unplugged_and_plugged_in_again(twin: MjpegTwin) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        eventually(lambda: state(camera) is CameraState.STREAMING, "it streams")
        last, port = camera.latest(5.0), twin.port
        twin.faults.unplugged = True
        eventually(lambda: "no camera answers" in camera.health().message, "it is told")
        assert state(camera) is CameraState.RECONNECTING
        twin.faults.unplugged = False
        eventually(lambda: state(camera) is CameraState.STREAMING, "it comes back")
        assert camera.next(last.seq, PATIENCE_S).seq > last.seq
        assert camera.reconnects == 1
        assert camera.health().message == ""
        assert twin.port == port


def test_capture_process_that_dies_is_started_again(twin: MjpegTwin) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        before, pid = camera.latest(5.0), camera.pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)  # Ctrl-C is not for it
        eventually(lambda: camera.latest(5.0).seq > before.seq + 3, "it goes on")
        assert camera.pid == pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: state(camera) is CameraState.RECONNECTING, "it is told")
        eventually(lambda: state(camera) is CameraState.STREAMING and camera.pid != pid, "another takes over")
        assert camera.next(before.seq, PATIENCE_S).seq > before.seq
        pid = camera.pid
    assert not Path(f"/proc/{pid}").exists(), "none is left behind"


def test_capture_process_that_hangs_is_replaced(twin: MjpegTwin) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        before, pid = camera.latest(5.0), camera.pid
        assert pid is not None
        assert camera._supervisor is not None
        camera._supervisor._hung_s = 1.0  # not the twenty seconds that a slow device is given
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: "it hung and was killed" in camera.health().message, "it is told")
        camera._supervisor._hung_s = PATIENCE_S
        eventually(lambda: state(camera) is CameraState.STREAMING, "another takes over")
        assert camera.latest(5.0).seq > before.seq


CONTROL = """
import sys, time
from ulna.drivers.cameras import opencv
camera = opencv.make("front", opencv.Config(sys.argv[1], height=120, width=160))
camera.open()
print(camera.pid, camera.ring.path, flush=True)
time.sleep(60)
"""


def test_capture_process_ends_with_the_control_process(twin: MjpegTwin) -> None:
    with subprocess.Popen([sys.executable, "-c", CONTROL, twin.url], stdout=subprocess.PIPE) as control:
        assert control.stdout is not None
        pid, path = control.stdout.readline().decode().split()
        assert Path(path).exists()
        control.kill()
    eventually(
        lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes(),
        "it ends",
    )
    eventually(lambda: not Path(path).exists(), "nothing is left in shared memory")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"black": True}, "black for"),
        ({"frozen": True}, "frozen"),
        ({"slow": 0.5}, "30 was asked for"),
        ({"corrupt": 0.5}, "% of the frames are lost or damaged"),
    ],
)
def test_bad_picture_is_told(twin: MjpegTwin, fault: dict[str, object], message: str) -> None:
    with open_camera(camera_at(twin.url)) as camera:
        ((name, value),) = fault.items()
        setattr(twin.faults, name, value)
        eventually(lambda: message in camera.health().message, message)
        setattr(twin.faults, name, getattr(CameraFaults(), name))
        eventually(lambda: message not in camera.health().message, "and taken back")


def test_painted_numbers_survive() -> None:
    picture = np.full((480, 640, 3), 90, np.uint8)
    assert read_mark(mark(picture, 70_000, 123_456_789_000)) == (70_000 & 0xFFFF, 123_456_789)


# What cannot be had


def test_absent_refused_and_wrong_devices_are_told_at_once(twin: MjpegTwin, tmp_path: Path) -> None:
    def check_refusal(match: str, url: str, **config: object) -> None:
        start = time.monotonic()
        with pytest.raises(DeviceError, match=match):
            camera_at(url, **config).open()
        assert time.monotonic() - start < PATIENCE_S / 2

    check_refusal("another camera after the next reboot", "/dev/video0")
    check_refusal("another camera after the next reboot", "2")
    check_refusal("must be a path under /dev/v4l", "front")
    check_refusal("rotate is 45", twin.url, rotate=45)
    check_refusal("fourcc is 'MJPEG'", twin.url, fourcc="MJPEG")
    check_refusal("matrix must be 9 numbers", twin.url, matrix=(1, 2, 3))
    for url in ("http://127.0.0.1:99999/s", "http://[::1/s", "http://u:secret#1@127.0.0.1/s", "rtsp:///s"):
        with pytest.raises(DeviceError, match="the host or the port in device cannot be read") as unreadable:
            camera_at(url)
        assert "secret" not in str(unreadable.value)
    check_refusal("no camera is plugged in at .*by-id/none", "/dev/v4l/by-id/none")
    (tmp_path / "file").write_bytes(b"")
    check_refusal("is no V4L2 camera", str(tmp_path / "file"))
    check_refusal("sends 160 × 120, not 640 × 480: set width = 160", twin.url, height=480, width=640)
    check_refusal("sends 160 × 120", twin.url, height=480, width=640, reader="ffmpeg")
    twin.faults.unplugged = True
    eventually(lambda: twin._listener is None, "it is unplugged")
    check_refusal("camera front: no camera answers at http://127", twin.url)
    check_refusal("no stream can be opened at http://127", twin.url, reader="ffmpeg")
    assert camera_at(twin.url).health().state is CameraState.CONNECTING


class _Controls:
    """A V4L2 camera as `cv2.VideoCapture` shows it: it keeps what it was set to, and knows two of the modes
    of exposure."""

    def __init__(self, width: int, height: int) -> None:
        import cv2

        self.modes: tuple[int, ...] = (1, 3)
        self.values: dict[int, float] = {
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: 30,
        }

    def set(self, prop: int, value: float) -> bool:
        import cv2

        if prop == cv2.CAP_PROP_AUTO_EXPOSURE and value not in self.modes:
            return False
        self.values[prop] = value
        return True

    def get(self, prop: int) -> float:
        return self.values.get(prop, 0)


def test_what_an_earlier_run_fixed_is_made_automatic_again() -> None:
    import cv2

    camera = _Controls(160, 120)

    def run(modes: tuple[int, ...], **config: object) -> tuple[float, float]:
        camera.modes = modes
        source = opencv.OpenCvSource(opencv.Config("/dev/none", 120, 160, 30.0, "Y16", **config))  # type: ignore[arg-type]
        source._capture = camera
        source._set(v4l2.Node("card", "bus", "driver", True, ()))
        return camera.values[cv2.CAP_PROP_AUTO_EXPOSURE], camera.values[cv2.CAP_PROP_AUTO_WB]

    assert run((1, 3), exposure=100.0, white_balance_K=4000.0) == (1, 0)
    assert run((1, 3)) == (3, 1)
    assert run((0, 1), exposure=100.0) == (1, 1)
    assert run((0, 1)) == (0, 1)
    assert camera.values[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"Y16 ")


# The twin in a process of its own


def test_twin_process_follows_a_ring_and_obeys() -> None:
    ring = FrameRing.create(*SIZE)
    writer, stopping = FrameRing(ring.path, write=True), threading.Event()

    def physics() -> None:
        render = wandering_bars(*SIZE)
        while not stopping.wait(0.03):
            color, t_ns = render()
            writer.write(color, t_capture_ns=t_ns)

    thread = threading.Thread(target=physics)
    thread.start()
    command = [sys.executable, "-m", "ulna.drivers.twins.mjpeg"]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def tell(**what: object) -> dict[str, str]:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(what) + "\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            url = tell(ring=str(ring.path), height=SIZE[0], width=SIZE[1], fps=30)["url"]
            with open_camera(camera_at(url)) as camera, open_camera(camera_at(url)) as second:
                assert camera.latest(5.0).data.std() > 1
                assert second.latest(5.0).data.std() > 1
                assert "blakc" in tell(faults={"blakc": True})["error"]
                assert tell(reset=True) == {"ok": True}
                eventually(
                    lambda: camera.reconnects == second.reconnects == 1, "its power was off and is on again"
                )
                assert tell(faults={"stalled": True}) == {"ok": True}
                eventually(lambda: state(camera) is not CameraState.STREAMING, "it obeys")
                assert "understands faults and reset" in tell(dance=1)["error"]
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
    finally:
        stopping.set()
        thread.join()
        writer.close()
        ring.close()
        ring.remove()
