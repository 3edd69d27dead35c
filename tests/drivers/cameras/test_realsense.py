"""What a RealSense camera gives: frames, depth on color, pairs and their times, all through librealsense's
syncer and aligner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.camera import check_camera
from contracts.realsense import (
    BOX,
    FPS,
    MODEL,
    NEAR,
    SIZE,
    H,
    Pictures,
    W,
    all_frames,
    box_in_color,
    frames,
    open_source,
    picture,
    record_box,
    running,
    twin,
)

from ulna.drivers.cameras.librealsense import SoftwareCamera, load
from ulna.drivers.cameras.realsense import Config, Pairs, from_wall_clock, make, source
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.twins.realsense import RealSenseTwin, board_picture, record

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_box(tmp_path_factory.mktemp("recordings") / "box.db3")


# the contract


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


# what is in the frames


@pytest.mark.parametrize("kind", ["twin", "recording"])
def test_depth_is_aligned_to_color(kind: str, recording: Path) -> None:
    with twin() as t, open_source(source=kind, address=t.address, path=str(recording)) as camera:
        frame = frames(camera, 3)[-1]
    assert frame.depth is not None
    in_depth = frame.depth == NEAR
    in_color = frame.color[..., 0] > 200
    top, bottom, left, right = box_in_color()
    assert in_depth.sum() == pytest.approx((bottom - top) * (right - left), rel=0.05)
    rows, columns = np.nonzero(in_depth)
    assert rows.mean() + 0.5 == pytest.approx((top + bottom) / 2, abs=1)
    assert columns.mean() + 0.5 == pytest.approx((left + right) / 2, abs=1)
    assert (in_depth & in_color).sum() / (in_depth | in_color).sum() > 0.93
    # the pixels unaligned: the shift of the baseline alone is 2.8 px, and the box is 1.6 times as large in
    # color
    unaligned = np.zeros_like(in_depth)
    unaligned[BOX] = True
    assert (unaligned & in_color).sum() / (unaligned | in_color).sum() < 0.6


def test_unaligned_depth_and_color_arrive_as_they_were_sent() -> None:
    with twin() as t, open_source(source="twin", address=t.address, align="none") as camera:
        for frame in frames(camera, 5):
            assert frame.depth is not None
            color, depth, _ = picture(int(frame.depth[0, 0]))
            np.testing.assert_array_equal(frame.depth, depth)
            np.testing.assert_array_equal(frame.color, color)


def test_color_alone() -> None:
    with twin() as t, open_source(source="twin", address=t.address, depth=False) as camera:
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
    """Coefficients of the size of a D455's: projected with cv2, a ray of librealsense comes back to its
    pixel."""
    import cv2

    rs = load()
    lens = rs.intrinsics()
    lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = 640, 480, 385.0, 384.0, 322.0, 243.0
    lens.coeffs, lens.model = [-0.055, 0.065, 0.0004, -0.0007, -0.021], getattr(rs.distortion, model)
    matrix = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]])
    zero = np.zeros(3)
    for pixel in ([0.0, 0.0], [639.0, 479.0], [100.0, 300.0], [320.0, 10.0]):
        ray = np.array([rs.rs2_deproject_pixel_to_point(lens, pixel, 1.0)])
        projection = cv2.projectPoints(ray, zero, zero, matrix, np.array(lens.coeffs))[0].ravel()
        np.testing.assert_allclose(projection, pixel, atol=0.1)
        if pixel[1] == 0:
            plain = cv2.projectPoints(ray, zero, zero, matrix, np.zeros(5))[0].ravel()
            assert np.linalg.norm(plain - pixel) > 1, "the distortion is one that matters"


# pairing, numbers, times


def test_a_frame_is_given_once_and_never_with_an_old_partner(recording: Path) -> None:
    with open_source(source="recording", path=str(recording), align="none") as camera:
        batch, _ = all_frames(camera)
    codes = [(int(f.color[0, 0, 0]), int(f.depth[0, 0])) for f in batch if f.depth is not None]
    assert len(codes) > FPS / 2
    assert all(c == d for c, d in codes), "color and depth of one instant"
    numbers = [c for c, _ in codes]
    assert numbers == sorted(set(numbers))
    assert not set(numbers) & set(range(20, 26)), "there was no depth"
    # the device's numbers: what was left out is counted
    assert [f.seq - batch[0].seq for f in batch] == [n - numbers[0] for n in numbers]


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
    """Left to itself the library works out a rate from number and time alone, and pairs nothing after some
    dozen frames."""
    camera, syncer = SoftwareCamera(MODEL), load().syncer(8)
    camera.start(syncer)
    n_pairs = 0
    for k in range(3 * FPS):
        color, depth, _ = picture(k)
        t_ns = round((start_s + k / FPS) * 1e9)
        camera.push(color, depth, k, t_ns, t_ns + 1_000_000)
        while (frameset := syncer.poll_for_frames()).size():
            n_pairs += bool(frameset.get_color_frame() and frameset.get_depth_frame())
    camera.stop()
    assert n_pairs >= 3 * FPS - 1, "the first alone has nothing to wait for"


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
    with open_source(source="recording", path=str(recording), repeat=True) as camera:
        start = time.monotonic()
        batch = frames(camera, 3 * FPS)
        duration_s = time.monotonic() - start
    steps = np.diff([f.seq for f in batch])
    assert (steps >= 1).all()
    assert batch[-1].seq - batch[0].seq < 1.2 * duration_s * FPS + 10, "no jump at the return to the start"
    captures = np.diff([f.t_capture_ns for f in batch])
    assert (captures >= 0).all()
    assert all(f.t_capture_ns <= f.t_receive_ns for f in batch)


def test_times_are_of_the_capture_on_the_hosts_clock() -> None:
    """The twin's own clock starts at 0 with it; a message that hurried shows how the two relate."""
    with twin() as t, open_source(source="twin", address=t.address, align="none") as camera:
        batch = frames(camera, 2 * FPS)
    latencies_ms = [(f.t_receive_ns - f.t_capture_ns) / 1e6 for f in batch]
    assert min(latencies_ms) >= 0
    assert np.median(latencies_ms) < 50
    gaps_ms = np.diff([f.t_capture_ns for f in batch]) / 1e6 / np.diff([f.seq for f in batch])
    assert np.median(gaps_ms) == pytest.approx(1000 / FPS, rel=0.15)


def test_the_latency_that_no_clock_tells_is_configured() -> None:
    with twin() as t, open_source(source="twin", address=t.address, latency_s=0.2) as camera:
        assert all(f.t_receive_ns - f.t_capture_ns >= 0.19e9 for f in frames(camera, 5))


@pytest.mark.parametrize("step_s", [5.0, -5.0])
def test_a_step_of_the_cameras_clock_does_not_move_the_frames(step_s: float) -> None:
    with twin() as t, open_source(source="twin", address=t.address) as camera:
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
