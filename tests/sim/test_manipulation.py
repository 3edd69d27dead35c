"""What stack, insert, sort, wipe and handover each promise, beyond what `test_sim.py` asks of every task."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.sim.scene import SimScene
from ulna.sim.tasks.boxes import Box
from ulna.sim.tasks.insert import Insert
from ulna.sim.tasks.sort import Sort
from ulna.sim.tasks.stack import Stack
from ulna.sim.tasks.wipe import SPOTS, Wipe

PERIOD_NS = 50_000_000


def put(box: Box, position: np.ndarray, yaw: float = 0.0) -> None:
    p, c = box.world.bullet, box.world.client
    turn = p.getQuaternionFromEuler([0, 0, yaw])
    p.resetBasePositionAndOrientation(box.body, list(position), turn, physicsClientId=c)


def play(scene: SimScene, seed: int, noise: float = 0.004, words: str = "") -> list[float]:
    """An episode of the expert; the score at each tick."""
    scene.reset(seed)
    if words:
        scene.tell(words)
    expert = scene.expert(noise)
    scene.enable()
    expert.reset(seed)
    scores = []
    for _ in range(round(scene.max_seconds * scene.control_hz)):
        due = scene.clock.now_ns() + PERIOD_NS
        scene.command(expert.act(), due)
        scene.clock.sleep_until(due)
        scores.append(scene.score())
        if scene.success():
            break
    return scores


@pytest.mark.parametrize("task", ["stack", "insert", "sort", "wipe", "handover"])
def test_a_disturbed_expert_gets_there_and_the_score_says_how_far(task: str) -> None:
    scene = SimScene(task=task)
    scores = play(scene, 21)
    assert scene.success()
    assert scores[0] < 0.6
    assert scores[-1] == 1.0
    assert all(0 <= score <= 1 for score in scores)
    assert len(scene.task.observe()) == len(scene.task.names) == len(scene.task.units)
    assert scene.reward() == 1.0
    scene.close()


def test_a_tower_grows_cube_by_cube_and_must_be_let_go_of() -> None:
    scene = SimScene("so101", "stack")
    task = scene.task
    assert isinstance(task, Stack)
    scores = [task.score()]
    for i in (1, 2):
        put(task.cubes[i], task.place(i) + np.array([0.0, 0.0, 0.04]))
        scores.append(task.score())
        put(task.cubes[i], task.place(i))
        scores.append(task.score())
    assert scores == sorted(scores)
    assert len(set(scores)) == 5
    assert scores[-1] == 1.0
    assert task.achieved()
    put(task.cubes[2], task.place(2) + np.array([0.6 * task.size, 0.0, 0.0]))
    assert not task.achieved()
    scene.close()


def test_a_tower_in_the_gripper_does_not_count() -> None:
    scene = SimScene("so101", "stack")
    play(scene, 3, noise=0.0)
    assert scene.success()
    task, arm = scene.task, scene.arms["arm"]
    assert isinstance(task, Stack)
    p, c = scene.world.bullet, scene.world.client
    put(task.cubes[2], arm.link_pose("gripper_body")[0])  # touched by the arm, wherever the tower is
    p.performCollisionDetection(physicsClientId=c)
    assert task.cubes[2].is_touched(arm)
    assert not task.achieved()
    scene.close()


def test_a_peg_counts_when_it_is_deep_in_the_hole() -> None:
    scene = SimScene("so101", "insert")
    task = scene.task
    assert isinstance(task, Insert)
    height = task.peg.half[2]
    scores = [task.score()]
    for end in (0.05, task.depth, 0.6 * task.depth, 0.3 * task.depth, 0.0):
        put(task.peg, np.array([*task.hole, height + end]), task.hole_yaw)
        scores.append(task.score())
    assert scores == sorted(scores)
    assert len(set(scores)) == 6
    assert task.achieved()
    put(
        task.peg, np.array([*(task.hole + np.array([0.02, 0.0])), height]), task.hole_yaw
    )  # beside it, as deep
    assert not task.achieved()
    scene.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_words_say_which_cube_is_sorted(seed: int) -> None:
    scene = SimScene("so101", "sort")
    task = scene.task
    assert isinstance(task, Sort)
    for i, colour in enumerate(("red", "green", "blue")):
        play(scene, seed, words=f"Put the {colour} one into the tray, please")
        assert scene.success()
        assert [task.is_in_tray(k) for k in range(3)] == [k == i for k in range(3)]
        scene.tell(
            "put the green cube into the tray" if colour == "red" else "put the red cube into the tray"
        )
        assert not task.achieved()
        assert task.score() < 0.5
    scene.close()


def test_an_episode_is_told_one_colour_and_the_state_has_it() -> None:
    scene = SimScene("so101", "sort")
    seen = set()
    for seed in range(12):
        scene.reset(seed)
        wanted = scene.task.observe()[
            [scene.task.names.index(f"wanted.{c}") for c in ("red", "green", "blue")]
        ]
        named = [colour in scene.instruction for colour in ("red", "green", "blue")]
        assert named == wanted.astype(bool).tolist()
        assert sum(named) == 1
        seen.add(scene.instruction)
    assert len(seen) > 4
    for words, count in (("put the cube into the tray", 0), ("the red and the blue one", 2), ("fired up", 0)):
        before = scene.instruction
        with pytest.raises(ValueError, match=f"names {count} of red, green, blue, not one"):
            scene.tell(words)
        assert scene.instruction == before
    scene.close()


def test_a_sponge_wipes_where_it_is_pressed_and_not_where_it_glides() -> None:
    scene = SimScene("so101", "wipe")
    task = scene.task
    assert isinstance(task, Wipe)
    forces = iter([0.1, 12.0, 2.0])
    for force, wiped in zip(forces, (False, False, True), strict=True):
        task.force = lambda force=force: force  # type: ignore[method-assign]
        task.places[0] = task.face()[:2]
        scene.world.step()
        assert (task.score() > 0) == wiped
    scene.close()


def test_wiped_spots_are_gone_one_by_one() -> None:
    scene = SimScene("so101", "wipe")
    scores = play(scene, 2)
    assert scores == sorted(scores)
    assert len(set(scores)) > 3
    assert not scene.task.observe()[2 : 3 * SPOTS : 3].any()
    scene.close()


@pytest.mark.parametrize("task", ["stack", "sort"])
def test_no_room_for_the_cubes_is_said(task: str) -> None:
    with pytest.raises(ValueError, match=r"no room for 3 things .* widen it"):
        SimScene("so101", task, randomisation={"spread": 0.1})


def test_a_peg_without_clearance_is_refused() -> None:
    with pytest.raises(ValueError, match="clearance"):
        SimScene("so101", "insert", randomisation={"clearance": 0.0})
