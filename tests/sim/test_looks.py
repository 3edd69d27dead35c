"""Looks follow from the seed, and no physics follows from them."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.sim.looks import PLAIN, looks
from ulna.sim.scene import SimScene
from ulna.sim.tasks.boxes import BLUE, GREEN, RED


def picture_and_state(scene: SimScene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At the reset, and after a few ticks of the expert."""
    scene.reset(seed)
    picture = scene.cameras["front"].render()
    expert = scene.expert()
    scene.enable()
    expert.reset(seed)
    for _ in range(8):
        due = scene.clock.now_ns() + 50_000_000
        scene.command(expert.act(), due)
        scene.clock.sleep_until(due)
    return picture, np.concatenate([scene.read(), scene.task.observe()])


@pytest.mark.parametrize("task", ["lift", "push_t", "stack", "insert", "sort", "wipe", "handover"])
def test_looks_differ_by_seed_and_change_no_physics(task: str) -> None:
    plain, varied = (
        SimScene(None, task, cameras=["front"], image_size=(48, 64), randomisation={"looks": strength})
        for strength in (0.0, 1.0)
    )
    picture, state = picture_and_state(varied, 5)
    again, state_again = picture_and_state(varied, 5)
    other, _ = picture_and_state(varied, 6)
    as_ever, state_as_ever = picture_and_state(plain, 5)
    np.testing.assert_array_equal(picture, again)
    np.testing.assert_array_equal(state, state_again)
    np.testing.assert_array_equal(state, state_as_ever)
    table = (slice(30, None), slice(0, 12))
    for differs in (other, as_ever):
        assert np.abs(picture[table].astype(int) - differs[table]).mean() > 3
    plain.close()
    varied.close()


@pytest.mark.parametrize("task", ["reach", "lift", "push_t"])
def test_tasks_of_before_look_as_they_did(task: str) -> None:
    scene = SimScene("so101", task)
    scene.reset(4)
    assert scene.world.looks is PLAIN
    scene.close()


def test_colours_stay_what_their_names_say() -> None:
    for seed in range(200):
        drawn = looks(seed, 1.0)
        for i, colour in enumerate((RED, GREEN, BLUE)):
            rgba = drawn.tinted(colour, i)
            assert int(np.argmax(rgba[:3])) == i
            assert sorted(rgba[:3])[2] - sorted(rgba[:3])[1] > 0.1
        assert min(drawn.table) >= 0
        assert max(drawn.table) <= 1


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_that_is_none_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"looks: .* is not between 0"):
        SimScene("so101", "lift", randomisation={"looks": strength})
