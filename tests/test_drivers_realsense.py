"""RealSense cameras without one: a twin's frames and a recording, both through librealsense's syncer, aligner and profiles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.camera import check_camera

from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import CameraState
from ulna.drivers.capture import CaptureCamera, Refused
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.frame_ring import Frame, FrameRing
from ulna.drivers.librealsense import CameraModel, Pinhole, SoftwareCamera, load
from ulna.drivers.realsense import (
    Config,
    Pairs,
    RealSenseSource,
    from_wall_clock,
    make,
    source,
)
from ulna.drivers.realsense_feeds import find_device, set_options
from ulna.drivers.twins.faults import CameraFaults
from ulna.drivers.twins.realsense import Picture, RealSenseTwin, board_picture, record

H, W, FPS = 120, 160, 30
MODEL = CameraModel(
    "839112061234", H, W, FPS, Pinhole(150, 150, 80, 60), Pinhole(95, 95, 80, 60), 0.015, 0.001
)
NEAR, FAR = 800, 1500  # mm
BOX = np.s_[35:75, 55:85]  # of the near thing, in the depth image
SIZE: dict[str, Any] = {"height": H, "width": W, "fps": FPS}


def picture(k: int) -> Picture:
    """A box before a wall; color shows it where a pinhole camera would, and both carry the number `k` in a corner."""
    depth = np.full((H, W), FAR, np.uint16)
    depth[BOX] = NEAR
    color = np.full((H, W, 3), 40, np.uint8)
    top, bottom, left, right = box_in_color()
    color[round(top) : round(bottom), round(left) : round(right)] = (220, 30, 30)
    color[0, 0] = (k % 256, k // 256, 7)
    depth[0, 0] = k
    return color, depth, time.monotonic_ns()


def box_in_color() -> tuple[float, float, float, float]:
    """Top, bottom, left, right edge in color pixels, worked out from the lenses. Edges lie half a pixel before a pixel's center."""
    d, c, shift = MODEL.depth, MODEL.color, MODEL.color.fx * MODEL.baseline_m / (NEAR * MODEL.depth_scale_m)
    rows = [(v - 0.5 - d.cy) * c.fy / d.fy + c.cy + 0.5 for v in (BOX[0].start, BOX[0].stop)]
    columns = [(u - 0.5 - d.cx) * c.fx / d.fx + shift + c.cx + 0.5 for u in (BOX[1].start, BOX[1].stop)]
    return rows[0], rows[1], columns[0], columns[1]


class Pictures:
    """A new one at each call, numbered from 0."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Picture:
        self.count += 1
        return picture(self.count - 1)


@contextlib.contextmanager
def twin(faults: CameraFaults | None = None, **options: Any) -> Iterator[RealSenseTwin]:
    with RealSenseTwin(MODEL, Pictures(), faults, **options) as t:
        yield t


@contextlib.contextmanager
def opened(**config: Any) -> Iterator[RealSenseSource]:
    opening = source({**SIZE, **config})
    try:
        opening.open()
        yield opening
    finally:
        opening.close()


@contextlib.contextmanager
def running(t: RealSenseTwin) -> Iterator[CaptureCamera]:
    camera = make("front", Config(source="twin", address=t.address, serial=MODEL.serial, **SIZE))
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def frames(of: RealSenseSource, count: int, within_s: float = 20.0) -> list[Frame]:
    found: list[Frame] = []
    deadline = time.monotonic() + within_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} frames in {within_s} s"
        if (frame := of.grab(0.25)) is not None:
            found.append(frame)
    return found


def opens(camera: RealSenseSource) -> bool:
    with contextlib.suppress(DeviceError):
        camera.open()
        return True
    return False


def all_frames(of: RealSenseSource) -> tuple[list[Frame], str]:
    """Until the recording ends, and what is said then."""
    found: list[Frame] = []
    try:
        while True:
            if (frame := of.grab(0.25)) is not None:
                found.append(frame)
    except Refused as e:
        return found, str(e)


def until(what: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s, of which the depth sensor misses numbers 20 to 25."""
    path = tmp_path_factory.mktemp("recordings") / "box.db3"
    shots = (picture(k) for k in range(2 * FPS))
    record(path, MODEL, ((c, None if 20 <= k <= 25 else d) for k, (c, d, _) in enumerate(shots)))
    return path


# -- the contract --------------------------------------------------------------------------------------------------------


SLOW = replace(MODEL, fps=12)  # a machine that is busy for 40 ms does not yet break the contract


def test_the_twin_keeps_the_camera_contract() -> None:
    with RealSenseTwin(SLOW, Pictures()) as t:
        camera = make("front", Config(source="twin", address=t.address, **{**SIZE, "fps": SLOW.fps}))
        check_camera(camera, MonotonicClock())


def test_a_recording_keeps_the_camera_contract(tmp_path: Path) -> None:
    path = tmp_path / "board.db3"
    record(path, SLOW, (board_picture(SLOW)[:2] for _ in range(4 * SLOW.fps)))
    config = Config(source="recording", path=str(path), repeat=True, **{**SIZE, "fps": SLOW.fps})
    check_camera(make("front", config), MonotonicClock())


def test_depth_is_a_camera_of_the_same_instants() -> None:
    with twin() as t, running(t) as camera:
        depth = camera.depth
        assert depth is not None
        sample = depth.next(-1, 10)
        assert sample.data.shape == (H, W)
        assert sample.data.dtype == np.uint16
        assert depth.depth_scale_m == pytest.approx(0.001)
        assert camera.info is not None
        assert MODEL.serial in camera.info.device


# -- what is in the frames -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["twin", "recording"])
def test_depth_is_aligned_to_color(kind: str, recording: Path) -> None:
    with twin() as t, opened(source=kind, address=t.address, path=str(recording)) as camera:
        frame = frames(camera, 3)[-1]
    assert frame.depth is not None
    seen = frame.depth == NEAR
    shown = frame.color[..., 0] > 200
    top, bottom, left, right = box_in_color()
    assert seen.sum() == pytest.approx((bottom - top) * (right - left), rel=0.05)
    rows, columns = np.nonzero(seen)
    assert rows.mean() + 0.5 == pytest.approx((top + bottom) / 2, abs=1)
    assert columns.mean() + 0.5 == pytest.approx((left + right) / 2, abs=1)
    assert (seen & shown).sum() / (seen | shown).sum() > 0.93
    # the pixels unaligned: the shift of the baseline alone is 2.8 px, and the box is 1.6 times as large in color
    unaligned = np.zeros_like(seen)
    unaligned[BOX] = True
    assert (unaligned & shown).sum() / (unaligned | shown).sum() < 0.6


def test_unaligned_depth_and_color_arrive_as_they_were_sent() -> None:
    with twin() as t, opened(source="twin", address=t.address, align="none") as camera:
        for frame in frames(camera, 5):
            assert frame.depth is not None
            color, depth, _ = picture(int(frame.depth[0, 0]))
            np.testing.assert_array_equal(frame.depth, depth)
            np.testing.assert_array_equal(frame.color, color)


def test_color_alone() -> None:
    with twin() as t, opened(source="twin", address=t.address, depth=False) as camera:
        assert all(f.depth is None for f in frames(camera, 3))


def test_intrinsics_and_scale_come_from_the_stream() -> None:
    with twin() as t:
        camera = source({**SIZE, "source": "twin", "address": t.address})
        info = camera.open()
        camera.close()
    assert info.intrinsics is not None
    np.testing.assert_allclose(info.intrinsics.matrix, [[150, 0, 80], [0, 150, 60], [0, 0, 1]])
    assert (info.intrinsics.width, info.intrinsics.height) == (W, H)
    assert info.depth_scale_m == pytest.approx(0.001)
    assert (info.height, info.width, info.fps) == (H, W, FPS)


@pytest.mark.parametrize("model", ["brown_conrady", "inverse_brown_conrady"])
def test_distortion_as_librealsense_means_it(model: str) -> None:
    """Coefficients of the size of a D455's: projected with cv2, a ray of librealsense comes back to its pixel."""
    import cv2

    rs = load()
    lens = rs.intrinsics()
    lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = 640, 480, 385.0, 384.0, 322.0, 243.0
    lens.coeffs, lens.model = [-0.055, 0.065, 0.0004, -0.0007, -0.021], getattr(rs.distortion, model)
    matrix = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]])
    still = np.zeros(3)
    for pixel in ([0.0, 0.0], [639.0, 479.0], [100.0, 300.0], [320.0, 10.0]):
        ray = np.array([rs.rs2_deproject_pixel_to_point(lens, pixel, 1.0)])
        back = cv2.projectPoints(ray, still, still, matrix, np.array(lens.coeffs))[0].ravel()
        np.testing.assert_allclose(back, pixel, atol=0.1)
        if pixel[1] == 0:
            plain = cv2.projectPoints(ray, still, still, matrix, np.zeros(5))[0].ravel()
            assert np.linalg.norm(plain - pixel) > 1, "the distortion is one that matters"


# -- pairing, numbers, times ---------------------------------------------------------------------------------------------


def test_a_frame_is_given_once_and_never_with_an_old_partner(recording: Path) -> None:
    with opened(source="recording", path=str(recording), align="none") as camera:
        found, _ = all_frames(camera)
    codes = [(int(f.color[0, 0, 0]), int(f.depth[0, 0])) for f in found if f.depth is not None]
    assert len(codes) > FPS / 2
    assert all(c == d for c, d in codes), "color and depth of one instant"
    numbers = [c for c, _ in codes]
    assert numbers == sorted(set(numbers))
    assert not set(numbers) & set(range(20, 26)), "there was no depth"
    # the device's numbers: what was left out is counted
    assert [f.seq - found[0].seq for f in found] == [n - numbers[0] for n in numbers]


@pytest.fixture
def shoot() -> Iterator[Callable[[int, float, float], tuple[Any, Any]]]:
    """(color, depth) of librealsense with the number and the two times, s."""
    camera, queue = SoftwareCamera(MODEL), load().frame_queue(4)
    camera.start(queue)

    def shot(number: int, color_s: float, depth_s: float) -> tuple[Any, Any]:
        color, depth, _ = picture(number)
        camera.push(color, depth, number, round(color_s * 1e9), round(depth_s * 1e9))
        first, second = queue.wait_for_frame(5000), queue.wait_for_frame(5000)
        return second, first

    yield shot
    camera.stop()


@pytest.mark.parametrize("start_s", [0.0, 1.0, 36_000.0, 1.8e9])
def test_frames_of_software_are_paired_whatever_their_clock_counts_from(start_s: float) -> None:
    """Left to itself the library works out a rate from number and time alone, and pairs nothing after some dozen frames."""
    camera, syncer = SoftwareCamera(MODEL), load().syncer(8)
    camera.start(syncer)
    paired = 0
    for k in range(3 * FPS):
        color, depth, _ = picture(k)
        t_ns = round((start_s + k / FPS) * 1e9)
        camera.push(color, depth, k, t_ns, t_ns + 1_000_000)
        while (came := syncer.poll_for_frames()).size():
            paired += bool(came.get_color_frame() and came.get_depth_frame())
    camera.stop()
    assert paired >= 3 * FPS - 1, "the first alone has nothing to wait for"


def test_what_the_pipeline_repeats_is_not_news(shoot: Callable[[int, float, float], tuple[Any, Any]]) -> None:
    pairs = Pairs(load(), FPS)
    a, b, c = (shoot(k, k / FPS, k / FPS + 0.001) for k in (7, 8, 10))
    assert pairs.seq(*a) == 0
    assert pairs.seq(*a) is None, "the same again"
    assert pairs.seq(b[0], a[1]) is None, "new color, old depth"
    assert pairs.seq(a[0], b[1]) is None, "old color, new depth"
    assert pairs.seq(*b) == 1
    assert pairs.seq(*c) == 3, "one was left out"
    assert pairs.seq(*shoot(11, 11 / FPS, 11.6 / FPS)) is None, "more than half a period apart"
    assert pairs.seq(*shoot(12, 12 / FPS, 12.4 / FPS)) == 5
    assert pairs.seq(*shoot(0, 0.0, 0.0)) == 6, "the camera was reset"
    assert pairs.seq(*shoot(1, 0.1, 0.1)) == 7


def test_the_seam_of_a_repeated_recording(shoot: Callable[[int, float, float], tuple[Any, Any]]) -> None:
    pairs = Pairs(load(), FPS, looped=True)
    assert [pairs.seq(*shoot(k, k / FPS, k / FPS)) for k in (58, 59, 0, 1)] == [0, 1, None, 2]


def test_a_repeated_recording_goes_on_counting(recording: Path) -> None:
    with opened(source="recording", path=str(recording), repeat=True) as camera:
        began = time.monotonic()
        found = frames(camera, 3 * FPS)
        took_s = time.monotonic() - began
    steps = np.diff([f.seq for f in found])
    assert (steps >= 1).all()
    assert found[-1].seq - found[0].seq < 1.2 * took_s * FPS + 10, "no jump at the return to the start"
    captures = np.diff([f.t_capture_ns for f in found])
    assert (captures >= 0).all()
    assert all(f.t_capture_ns <= f.t_receive_ns for f in found)


def test_times_are_of_the_capture_on_the_hosts_clock() -> None:
    """The twin's own clock starts at 0 with it; a message that hurried shows how the two relate."""
    with twin() as t, opened(source="twin", address=t.address, align="none") as camera:
        found = frames(camera, 2 * FPS)
    latencies_ms = [(f.t_receive_ns - f.t_capture_ns) / 1e6 for f in found]
    assert min(latencies_ms) >= 0
    assert np.median(latencies_ms) < 50
    gaps_ms = np.diff([f.t_capture_ns for f in found]) / 1e6 / np.diff([f.seq for f in found])
    assert np.median(gaps_ms) == pytest.approx(1000 / FPS, rel=0.15)


def test_the_latency_that_no_clock_tells_is_configured() -> None:
    with twin() as t, opened(source="twin", address=t.address, latency_s=0.2) as camera:
        assert all(f.t_receive_ns - f.t_capture_ns >= 0.19e9 for f in frames(camera, 5))


@pytest.mark.parametrize("step_s", [5.0, -5.0])
def test_a_step_of_the_cameras_clock_does_not_move_the_frames(step_s: float) -> None:
    with twin() as t, opened(source="twin", address=t.address) as camera:
        frames(camera, 10)
        t.faults.clock_step_s = step_s
        after = frames(camera, 20)
    for frame in after:
        assert 0 <= frame.t_receive_ns - frame.t_capture_ns < 1e9
    assert (np.diff([f.t_capture_ns for f in after]) >= 0).all()


def test_stamps_of_the_wall_clock() -> None:
    now = time.monotonic_ns()
    half_a_second_ago = from_wall_clock(time.time_ns() - 500_000_000, now)
    assert half_a_second_ago == pytest.approx(now - 500_000_000, abs=2e8)
    assert from_wall_clock(time.time_ns() + 500_000_000, now) == now, "never after it came"
    assert from_wall_clock(time.time_ns() - 3_600_000_000_000, now) is None, "the clock was set meanwhile"


# -- the path of a live camera -----------------------------------------------------------------------------------------------


@pytest.fixture
def plugged_in(recording: Path) -> Iterator[Any]:
    """A context of librealsense in which the recorded camera is found by its serial number, as one on USB is."""
    context = load().context()
    device = context.load_device(str(recording))  # there for as long as it is held
    yield context
    del device
    with contextlib.suppress(RuntimeError):
        context.unload_device(str(recording))


def test_a_live_camera_is_found_by_its_serial_and_streams(plugged_in: Any) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial, **SIZE), plugged_in)
    info = camera.open()
    try:
        assert MODEL.serial in info.device
        assert info.depth_scale_m == pytest.approx(0.001)
        for frame in frames(camera, 5):
            assert frame.depth is not None
            assert (frame.depth == NEAR).any()
            assert frame.t_capture_ns <= frame.t_receive_ns
    finally:
        camera.close()


def test_a_live_camera_that_goes_away(plugged_in: Any, recording: Path) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial, **SIZE), plugged_in)
    camera.open()
    try:
        frames(camera, 2)
        plugged_in.unload_device(str(recording))
        with pytest.raises(DeviceError, match=f"the RealSense camera {MODEL.serial} was unplugged"):
            frames(camera, 1000)
    finally:
        camera.close()
    with pytest.raises(DeviceError, match="none is plugged in"):
        camera.open()


def test_a_live_camera_is_asked_for_its_modes(plugged_in: Any) -> None:
    camera = RealSenseSource(Config(serial=MODEL.serial), plugged_in)
    with pytest.raises(Refused, match=f"{MODEL.serial} has no color mode 640 × 480 at 30"):
        camera.open()
    with pytest.raises(DeviceError, match=f"no RealSense camera 111: there is {MODEL.serial}"):
        RealSenseSource(Config(serial="111", **SIZE), plugged_in).open()


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_stall_is_stale_and_passes() -> None:
    with twin() as t, running(t) as camera:
        t.faults.stalled = True
        states = set()

        def stale() -> bool:
            states.add(camera.health().state)
            return CameraState.STALE in states

        until(stale)
        t.faults.stalled = False
        until(lambda: camera.health().state is CameraState.STREAMING)
        assert camera.next(-1, 10).t_capture_ns > time.monotonic_ns() - 1e9


def test_unplugging_is_noticed_and_replugging_mended() -> None:
    with twin() as t, running(t) as camera:
        before = camera.latest(10).seq
        t.faults.unplugged = True
        until(lambda: camera.health().state is CameraState.RECONNECTING)
        assert t.address in camera.health().message
        t.faults.unplugged = False
        until(lambda: camera.health().state is CameraState.STREAMING)
        assert camera.next(before, 10).seq > before
        assert camera.reconnects == 1


def test_unplugging_in_the_words_of_the_source() -> None:
    with twin() as t, opened(source="twin", address=t.address) as camera:
        frames(camera, 1)
        t.faults.unplugged = True
        with pytest.raises(DeviceError, match="was unplugged") as raised:
            frames(camera, 1000)
        assert not isinstance(raised.value, Refused), "it may come back"


def test_incomplete_frames_are_dropped_and_counted() -> None:
    with twin(CameraFaults(corrupt=0.5)) as t, opened(source="twin", address=t.address) as camera:
        found = frames(camera, 10)
    assert found[-1].seq - found[0].seq > len(found) - 1
    assert all(f.color.shape == (H, W, 3) for f in found)


def test_black_frozen_and_slow() -> None:
    with (
        twin(CameraFaults(black=True)) as t,
        opened(source="twin", address=t.address, align="none") as camera,
    ):
        assert not any(f.color.any() or f.depth is None or f.depth.any() for f in frames(camera, 3))
        t.faults.black = False
        t.faults.frozen = True
        until(lambda: bool(frames(camera, 1)[0].color.any()))
        frames(camera, 3)
        still = frames(camera, 3)
        assert all(np.array_equal(f.color, still[0].color) for f in still)
        assert still[0].seq < still[1].seq < still[2].seq
        t.faults.frozen, t.faults.slow = False, 0.2
        frames(camera, 2)
        gap_ns = np.diff([f.t_capture_ns for f in frames(camera, 4)])
        assert np.median(gap_ns) > 2.5e9 / FPS


def test_the_end_of_a_recording_is_no_unplugging(recording: Path) -> None:
    camera = source({**SIZE, "source": "recording", "path": str(recording)})
    camera.open()
    _, said = all_frames(camera)
    assert "at its end; repeat = true" in said
    camera.close()
    with pytest.raises(Refused, match="at its end"):
        camera.open()


def test_the_end_of_a_recording_fails_the_camera(recording: Path) -> None:
    camera = make("front", Config(source="recording", path=str(recording), **SIZE))
    camera.open()
    until(lambda: camera.health().state is CameraState.FAILED)
    assert "at its end" in camera.health().message
    camera.close()


def test_two_cannot_have_one_camera() -> None:
    with twin() as t, opened(source="twin", address=t.address) as first:
        frames(first, 1)
        with pytest.raises(DeviceError, match="another process has it open"):
            source({**SIZE, "source": "twin", "address": t.address}).open()
        first.close()
        second = source({**SIZE, "source": "twin", "address": t.address})

        def free() -> bool:
            with contextlib.suppress(DeviceError):
                second.open()
                return True
            return False

        until(free)
        frames(second, 1)
        second.close()


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"source": "usb"}, 'source is "live", "recording" or "twin"'),
        ({"source": "twin"}, "needs address"),
        ({"source": "recording"}, "needs path"),
        ({"align": "depth"}, 'align is "color" or "none"'),
        ({"fps": 29.97}, "whole number of frames"),
        ({"heigth": 480}, "did you mean height"),
        ({"exposure_us": 0}, "must lie in"),
    ],
)
def test_settings_that_make_no_sense(config: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        source(config)


def test_no_camera_says_so() -> None:
    camera = make("front", Config(serial="839112061234"))
    with pytest.raises(DeviceError, match=r"no RealSense camera 839112061234: "):
        camera.open()


def test_a_wrong_serial_says_which_there_are(tmp_path: Path) -> None:
    rs = load()
    devices = [
        SoftwareCamera(CameraModel(s, H, W, FPS, MODEL.color, MODEL.depth)).device for s in ("222", "111")
    ]
    assert find_device(rs, devices, "111").get_info(rs.camera_info.serial_number) == "111"
    assert find_device(rs, devices[:1], "").get_info(rs.camera_info.serial_number) == "222"
    with pytest.raises(DeviceError, match="no RealSense camera 333: there is 111, 222"):
        find_device(rs, devices, "333", tmp_path)
    with pytest.raises(Refused, match="set serial to one of 111, 222"):
        find_device(rs, devices, "", tmp_path)
    with pytest.raises(DeviceError, match="no RealSense camera: none is plugged in"):
        find_device(rs, [], "", tmp_path)


def test_a_camera_without_permission_names_the_rules() -> None:
    root = Path(tempfile.mkdtemp())  # not tmp_path, which only its owner may enter
    try:
        port = root / "sys/bus/usb/devices/2-1"
        port.mkdir(parents=True)
        about = {
            "idVendor": "8086",
            "idProduct": "0b07",
            "product": "RealSense(TM) 435",
            "speed": "5000",
            "devnum": "7",
        }
        for name, value in about.items():
            (port / name).write_text(value + "\n")
        node = root / "dev/bus/usb/002/007"
        node.parent.mkdir(parents=True)
        node.touch(mode=0o644)
        node.chmod(0o444)
        root.chmod(0o755)
        as_user = os.geteuid() == 0
        if as_user:
            os.seteuid(65534)
        try:
            with pytest.raises(DeviceError, match=r"RealSense.* on port 2-1: you may not open .*udev rules"):
                find_device(load(), [], "111", root)
        finally:
            if as_user:
                os.seteuid(0)
    finally:
        shutil.rmtree(root)


def test_a_mode_that_is_not_there_says_which_are(recording: Path) -> None:
    with twin() as t:
        for where in (
            {"source": "twin", "address": t.address},
            {"source": "recording", "path": str(recording)},
        ):
            camera = source({"height": 480, "width": 640, **where})
            with pytest.raises(
                Refused, match=r"no color mode 640 × 480 at 30 frames/s: there is 160 × 120 at 30"
            ):
                camera.open()
            camera.close()


def test_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "text.db3").write_text("no frames here")
    with pytest.raises(Refused, match="is not a recording"):
        source({**SIZE, "source": "recording", "path": str(tmp_path / "text.db3")}).open()
    with pytest.raises(Refused, match="there is no recording"):
        source({**SIZE, "source": "recording", "path": str(tmp_path / "none.db3")}).open()


def test_another_serial_than_the_configured(recording: Path) -> None:
    with pytest.raises(Refused, match=f"is of the camera {MODEL.serial}, not of 111"):
        source({**SIZE, "source": "recording", "path": str(recording), "serial": "111"}).open()
    with twin() as t, pytest.raises(DeviceError, match=f"is {MODEL.serial}, not 111"):
        source({**SIZE, "source": "twin", "address": t.address, "serial": "111"}).open()


@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x02[]", b""]
)
def test_something_else_at_the_address(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(
            DeviceError, match=r"is not a RealSense twin|no RealSense camera answers|not the description"
        ):
            source({**SIZE, "source": "twin", "address": f"tcp:127.0.0.1:{server.getsockname()[1]}"}).open()
        thread.join()


def test_exposure_gain_and_white_balance() -> None:
    rs = load()
    device = rs.software_device()
    sensor = device.add_sensor("RGB Camera")
    ranges = {
        rs.option.enable_auto_exposure: (0, 1, 1),
        rs.option.exposure: (1, 10_000, 156),
        rs.option.gain: (0, 128, 64),
    }
    for option, (low, high, default) in ranges.items():
        span = rs.option_range()
        span.min, span.max, span.default, span.step = low, high, default, 1
        sensor.add_option(option, span, True)
    video = rs.video_stream()
    video.type, video.fmt, video.width, video.height, video.fps = rs.stream.color, rs.format.rgb8, W, H, FPS
    sensor.add_video_stream(video)
    set_options(rs, device, Config(exposure_us=8000, gain=32))
    assert sensor.get_option(rs.option.exposure) == 80
    assert sensor.get_option(rs.option.gain) == 32
    assert sensor.get_option(rs.option.enable_auto_exposure) == 0
    set_options(rs, device, Config())
    assert sensor.get_option(rs.option.enable_auto_exposure) == 1
    with pytest.raises(Refused, match=r"gain is 200, this camera takes 0\.\.128"):
        set_options(rs, device, Config(gain=200))
    with pytest.raises(Refused, match="no setting white_balance"):
        set_options(rs, device, Config(white_balance_k=4000))


def test_without_libusb_it_is_said_what_to_install() -> None:
    """On a machine whose system has libusb it loads without the package, and that is right, too."""
    code = (
        "import sys; sys.modules['libusb_package'] = None\n"
        "from ulna.drivers.librealsense import load, DeviceError\n"
        "try: load(); print('loaded')\n"
        "except DeviceError as e: print(e)\n"
        "sys.modules['pyrealsense2'] = None\n"
        "try: load()\n"
        "except DeviceError as e: print(e)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[0] == "loaded" or "install the Python package libusb-package" in said[0]
    assert "needs the Python package pyrealsense2" in said[1]


# -- the twin as a process, and what is left behind ----------------------------------------------------------------------


def test_the_twins_process_serves_a_ring(tmp_path: Path) -> None:
    ring = FrameRing.create(H, W, depth=True)
    writer = FrameRing(ring.path, write=True)
    stopping = threading.Event()

    def film() -> None:
        k = 0
        while not stopping.wait(1 / FPS):
            color, depth, t_ns = picture(k := k + 1)
            writer.write(color, depth, t_capture_ns=t_ns)

    thread = threading.Thread(target=film)
    thread.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "ulna.drivers.twins.realsense"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None

        def tell(what: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        link = str(tmp_path / "camera")
        address = tell(
            {"ring": str(ring.path), "link": link, "serial": "42", "fps": 30.0, "height": H, "width": W}
        )["address"]
        assert address == f"unix:{link}"
        with opened(source="twin", address=address, serial="42") as camera:
            frame = frames(camera, 3)[-1]
            assert frame.depth is not None
            assert frame.depth[50, 70] == NEAR, "aligned already: what the ring has is what comes"
            assert tell({"faults": {"blakc": True}})["error"].startswith("there is no fault 'blakc'")
            for order in ({"reset": True}, {"faults": {"unplugged": True}}):
                assert tell(order) == {"ok": True}
                with pytest.raises(DeviceError, match="was unplugged"):
                    frames(camera, 1000)
                camera.close()
                if "reset" in order:
                    until(lambda: opens(camera))
        process.stdin.close()
        assert process.wait(10) == 0
        assert not Path(link).exists()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        stopping.set()
        thread.join()
        writer.close()
        ring.close()
        ring.remove()


def test_a_twins_process_that_is_asked_nonsense_says_so() -> None:
    for asked in ({"height": H, "width": W}, {"height": H, "width": W, "fps": 30, "link": "/nowhere/at/all"}):
        done = subprocess.run(
            [sys.executable, "-m", "ulna.drivers.twins.realsense"],
            check=False,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "error" in json.loads(done.stdout)


def test_nothing_is_printed_and_no_thread_is_left(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def use() -> None:
        with twin() as t, opened(source="twin", address=t.address) as camera:
            frames(camera, 2)
        with opened(source="recording", path=str(recording)) as camera:
            frames(camera, 2)

    use()  # what the library keeps for the whole process is begun now
    before, files = threads(), len(list(Path("/proc/self/fd").iterdir()))
    use()
    until(lambda: threads() <= before)
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
    assert capfd.readouterr() == ("", "")
