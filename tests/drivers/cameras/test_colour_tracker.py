"""The colour tracker on pictures whose truth is known, and on a simulated camera."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras.colour_tracker import Config, make
from ulna.sim.scene import SimScene

BLUE, RED, GREY = (20, 40, 200), (200, 30, 30), (160, 160, 160)


def picture(square: tuple[int, int, int] | None, colour: tuple[int, int, int] = BLUE) -> np.ndarray:
    """A grey picture of 60 × 80 with a square: (row, column, side)."""
    image = np.full((60, 80, 3), GREY, np.uint8)
    if square is not None:
        row, column, side = square
        image[row : row + side, column : column + side] = colour
    return image


@pytest.fixture
def scene() -> SimScene:
    return SimScene("so101", "lift", ["front", "wrist"])


def test_a_square_is_where_it_was_painted(scene: SimScene) -> None:
    tracker = make("cube", Config(["front"]), scene.cameras)
    is_seen, u, v, size, cos4, sin4 = tracker.look(picture((10, 50, 8)))
    assert is_seen == 1
    assert (u, v) == pytest.approx((2 * 54 / 80 - 1, 2 * 14 / 60 - 1))
    assert size == pytest.approx(np.sqrt(64 / 4800))
    assert (cos4, sin4) == pytest.approx((1, 0), abs=1e-3)
    small = tracker.look(picture((10, 50, 4)))
    assert small[0] == 1
    assert not small[4:].any(), "sixteen pixels do not say how they are turned"
    scene.close()


def test_other_colours_specks_and_nothing_are_not_seen_and_the_last_place_stays(scene: SimScene) -> None:
    tracker = make("cube", Config(["front"]), scene.cameras)
    last = tracker.look(picture((10, 50, 8)))
    for image in (picture(None), picture((5, 5, 8), RED), picture((5, 5, 2))):
        values = tracker.look(image, last)
        assert values[0] == 0
        assert np.array_equal(values[1:], last[1:])
    red = make("cube", Config(["front"], hue_low=340, hue_high=20), scene.cameras)
    assert red.look(picture((5, 5, 8), RED))[0] == 1
    scene.close()


def test_a_simulated_cube_is_followed_with_the_pictures_own_times(scene: SimScene) -> None:
    tracker = make("cube", Config(["front", "wrist"]), scene.cameras)
    for camera in scene.cameras.values():
        camera.open()
    pairs = []
    for seed in range(8):
        scene.reset(seed)
        sample = tracker.read()
        assert len(sample.data) == len(tracker.names) == len(tracker.units) == 12
        assert np.all(sample.valid)
        assert sample.t_capture_ns == scene.cameras["front"].latest().t_capture_ns
        cube = dict(zip(scene.task.names, scene.task.observe(), strict=True))
        pairs.append((sample.data[1], cube["cube.y"]))
    views, truths = np.array(pairs).T
    assert abs(np.corrcoef(views, truths)[0, 1]) > 0.9, "the front camera sees the cube go sideways"
    scene.close()


def test_a_camera_that_the_robot_lacks_is_named(scene: SimScene) -> None:
    with pytest.raises(DeviceError, match=r"fron.*did you mean front"):
        make("cube", Config(["fron"]), scene.cameras)
    with pytest.raises(DeviceError, match="names no cameras"):
        make("cube", Config([]), scene.cameras)
    scene.close()
