"""Two arms in one scene, and the stick that goes from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from contracts.arm import check_arm

from ulna.drivers.arm import DeviceError
from ulna.robot.agent import make_agent
from ulna.robot.config import load_robot
from ulna.robot.loop import run_episode
from ulna.sim.expert import Demonstrator
from ulna.sim.kinematics import Chain, Pose
from ulna.sim.scene import SimScene
from ulna.sim.tasks.handover import LEFT, RIGHT, Handover
from ulna.sim.vector import vector_env

PERIOD_NS = 50_000_000


@pytest.fixture
def scene() -> Iterator[SimScene]:
    scene = SimScene("so101-pair", "handover")
    yield scene
    scene.close()


def task_of(scene: SimScene) -> Handover:
    assert isinstance(scene.task, Handover)
    return scene.task


def begin(scene: SimScene, seed: int, noise: float = 0.0) -> Demonstrator:
    scene.reset(seed)
    scene.enable()
    expert = scene.expert(noise)
    expert.reset(seed)
    return expert


def tick(scene: SimScene, target: np.ndarray) -> None:
    due = scene.clock.now_ns() + PERIOD_NS
    scene.command(target, due)
    scene.clock.sleep_until(due)


def lay(scene: SimScene, position: np.ndarray, yaw: float) -> None:
    """The stick is put somewhere, at rest."""
    p, c, body = scene.world.bullet, scene.world.client, task_of(scene).stick.body
    turn = p.getQuaternionFromEuler([0, 0, yaw])
    p.resetBasePositionAndOrientation(body, position.tolist(), turn, physicsClientId=c)
    p.resetBaseVelocity(body, [0, 0, 0], [0, 0, 0], physicsClientId=c)
    p.performCollisionDetection(physicsClientId=c)


@pytest.mark.parametrize("name", ["left", "right"])
def test_each_arm_of_two_is_an_arm(scene: SimScene, name: str) -> None:
    check_arm(scene.arms[name], scene.clock)


def test_each_arm_is_where_it_stands_and_they_face_each_other(scene: SimScene) -> None:
    rng = np.random.default_rng(0)
    scene.enable()
    for _ in range(3):
        tick(scene, scene.read() + 0.1 * rng.standard_normal(12))
    ahead = []
    for arm in scene.arms.values():
        robot = arm.robot
        chain = Chain(robot.urdf, robot.tip, robot.joints.names)
        pose, seen = chain.forward(arm.read().data), robot.stand.to_base(Pose(*arm.tip()))
        np.testing.assert_allclose(pose.position, seen.position, atol=1e-4)
        np.testing.assert_allclose(pose.rotation, seen.rotation, atol=1e-3)
        ahead.append(robot.stand.to_scene(np.array([1.0, 0.0])) - robot.stand.to_scene(np.zeros(2)))
    np.testing.assert_allclose(ahead[0], -ahead[1], atol=1e-12)
    meet = [arm.robot.stand.to_scene(np.array([0.27, 0.0])) for arm in scene.arms.values()]
    np.testing.assert_allclose(meet[0], meet[1], atol=1e-12)


def test_a_command_of_the_wrong_length_moves_no_arm(scene: SimScene) -> None:
    scene.enable()
    before = scene.read()
    with pytest.raises(ValueError, match=r"joints left\.shoulder_pan"):
        scene.command(np.zeros(11), scene.clock.now_ns() + PERIOD_NS)
    scene.clock.sleep_until(scene.clock.now_ns() + PERIOD_NS)
    np.testing.assert_allclose(scene.read(), before, atol=0.01)


@pytest.mark.parametrize(
    ("robot", "task", "says"),
    [
        ("so101", "handover", "handover is for 2 arms, and the simulated so101 has 1: choose sim:so101-pair"),
        ("panda", "handover", "choose sim:so101-pair"),
        ("so101-pair", "lift", "lift is for 1 arm, and the simulated so101-pair has 2: choose sim:so101 or"),
        ("so101-pear", "handover", "did you mean so101-pair"),
    ],
)
def test_a_task_for_another_number_of_arms_says_which_robot_to_choose(
    robot: str, task: str, says: str
) -> None:
    with pytest.raises(DeviceError, match=says):
        SimScene(robot, task)


def test_cameras_are_on_each_wrist_and_see_different_things() -> None:
    names = ("front", "left_wrist", "right_wrist")
    scene = SimScene(task="handover", cameras=names, image_size=(48, 64))
    pictures = [camera.render().astype(int) for camera in scene.cameras.values()]
    assert all(np.abs(a - b).mean() > 3 for a, b in pairwise(pictures))
    red = (pictures[0][..., 0] > 120) & (pictures[0][..., 1] < 90)
    assert np.nonzero(red)[1].mean() < 32, "the stick lies before the left arm, which is seen to the left"
    scene.close()
    with pytest.raises(DeviceError, match="did you mean left_wrist or right_wrist"):
        SimScene(task="handover", cameras=["wrist"])


def test_the_score_rises_from_stage_to_stage_and_both_hands_do_not_count(scene: SimScene) -> None:
    expert, task = begin(scene, 4), task_of(scene)
    stages: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(200):
        tick(scene, expert.act())
        held = task.touched() if task.is_aloft() else (False, False)
        stages.setdefault(held, []).append(scene.score())
        assert scene.task.achieved() == (held == (False, True))
        if scene.success():
            break
    assert list(stages) == [(False, False), (True, False), (True, True), (False, True)]
    nothing, left, both, right = stages.values()
    assert max(nothing) < 0.25 < min(left)
    assert max(left) <= 0.5
    assert set(both) == {0.75}
    assert set(right) == {1.0}
    observed = dict(zip(task.names, task.observe(), strict=True))
    assert (observed["left.touches"], observed["right.touches"], observed["passed"]) == (0, 1, 1)
    assert scene.reward() == 1.0


def test_a_right_arm_that_fetched_the_stick_itself_has_been_passed_nothing(scene: SimScene) -> None:
    begin(scene, 1)
    task = task_of(scene)
    lay(scene, scene.arms["right"].link_pose("gripper_body")[0] + [0.0, 0.0, 0.03], np.pi / 2)
    assert task.touched() == (False, True)
    assert task.is_aloft()
    assert not task.achieved()
    assert scene.score() < 0.25


@pytest.mark.parametrize("ticks", [15, 24, 32])
def test_a_stick_that_falls_down_is_taken_again(scene: SimScene, ticks: int) -> None:
    expert, task = begin(scene, 2), task_of(scene)
    start, rotation = task.stick.pose()
    for _ in range(ticks):
        tick(scene, expert.act())
    lay(scene, start, float(np.arctan2(rotation[1, 0], rotation[0, 0])))
    tick(scene, expert.act())
    assert not task.passed
    assert scene.score() < 0.25
    for _ in range(300):
        tick(scene, expert.act())
        if scene.success():
            break
    assert scene.success()


def test_the_arms_have_disturbances_of_their_own(scene: SimScene) -> None:
    still, shaken = begin(scene, 3).act(), begin(scene, 3, 0.01).act()
    away = (shaken - still).reshape(2, 6)[:, :5]
    assert (np.abs(away).max(1) > 1e-3).all()
    assert np.abs(away[LEFT] - away[RIGHT]).max() > 1e-3


def test_many_at_once_and_a_robot_of_its_own_are_the_same_episodes() -> None:
    env = vector_env("handover", num_envs=2)
    assert len(env.action_names) == 12
    assert env.action_names[6] == "right.shoulder_pan"
    env.reset(seed=[5, 6])
    expert = env.expert([5, 6])
    ticks, done, info = np.zeros(2, int), np.zeros(2, bool), {}
    while not done.all():
        ticks += ~done
        _, _, terminated, truncated, info = env.step(expert.act())
        done = terminated | truncated
    assert info["success"].all()
    env.close()
    with load_robot("sim:so101-pair", "handover") as rig:
        assert rig.sim is not None
        assert rig.robot.action_features["action"].names == env.action_names
        agent = make_agent("expert", rig)
        for i, seed in enumerate((5, 6)):
            rig.sim.reset(seed)
            result = run_episode(rig.robot, agent, task="", seed=seed, max_ticks=400, success=rig.sim.success)
            assert result.success
            assert abs(result.ticks - ticks[i]) <= 1
