"""The picture of a simulated scene that people see, drawn in a process of its own."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from ulna.sim.overview import Overview
from ulna.sim.scene import SimScene

pytestmark = pytest.mark.realtime


def drawn(overview: Overview, seconds: float = 20.0) -> np.ndarray:
    """The picture of the scene as it is now."""
    began = time.monotonic_ns()
    while time.monotonic_ns() - began < seconds * 1e9:
        overview.offer()
        if overview.newest is not None and overview.newest[1] > began:
            return overview.newest[0]
        time.sleep(0.01)
    raise AssertionError(f"nothing was drawn: {overview.failure}")


def test_it_is_what_a_camera_there_would_see_and_goes_with_the_scene() -> None:
    scene = SimScene("so101", "push_t")
    scene.reset(3)
    camera = scene.film_camera()
    try:
        with Overview(scene) as overview:
            before = drawn(overview)
            assert np.array_equal(before, camera.render())
            arm = scene.arms["arm"]
            arm.open()
            arm.enable()
            arm.command(arm.read().data + np.array([0.2, 0, 0, 0, 0, 0]), scene.clock.now_ns() + 10**8)
            scene.clock.sleep_until(scene.clock.now_ns() + 3 * 10**8)
            moved = drawn(overview)
            assert not np.array_equal(moved, before)
            assert np.array_equal(moved, camera.render())
            scene.reset(4)  # another block, elsewhere
            assert np.array_equal(drawn(overview), camera.render())
    finally:
        scene.close()


def test_a_drawing_process_that_dies_leaves_the_last_picture_and_the_scene_alone() -> None:
    scene = SimScene("so101", "reach")
    try:
        with Overview(scene) as overview:
            last = drawn(overview)
            os.kill(overview.pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while not overview.failure and time.monotonic() < deadline:
                overview.offer()
                time.sleep(0.01)
            assert overview.failure == "its process has ended"
            overview.offer()
            assert overview.newest is not None
            assert overview.newest[0] is last
    finally:
        scene.close()
