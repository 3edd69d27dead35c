"""Arms, cameras, determinism, tasks and experts in PyBullet DIRECT."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pybullet
import pytest
from contracts.arm import check_arm
from contracts.camera import check_camera
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import ulna.sim.gym  # noqa: F401  (registers the environments)
from ulna.drivers.arm import DeviceError
from ulna.sim.kinematics import Chain, Pose, pointing_down, rotation_about, rotation_vector
from ulna.sim.robots import MODELS, ROBOTS, n_arms
from ulna.sim.scene import SimScene
from ulna.sim.tasks.all import TASKS

PERIOD_NS = 50_000_000


def play(
    scene: SimScene, seed: int, noise: float = 0.0, ticks: int | None = None, mode: str | None = None
) -> list[np.ndarray]:
    """One expert episode; the joint positions and task observations of every tick."""
    scene.reset(seed)
    scene.enable()
    expert = scene.expert(noise, mode)
    expert.reset(seed)
    rows = []
    for _ in range(ticks or round(scene.max_seconds * scene.control_hz)):
        due = scene.clock.now_ns() + PERIOD_NS
        scene.command(expert.act(), due)
        scene.clock.sleep_until(due)
        rows.append(np.concatenate([scene.read(), scene.task.observe()]))
        if scene.success():
            break
    return rows


@pytest.mark.parametrize("robot", ROBOTS)
def test_arm_contract(robot: str) -> None:
    scene = SimScene(robot, "reach")
    check_arm(scene.arms["arm"], scene.clock)
    scene.close()


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_camera_contract(robot: str, camera: str) -> None:
    scene = SimScene(robot, "lift", cameras=[camera])
    check_camera(scene.cameras[camera], scene.clock)
    scene.close()


def test_pictures_come_as_arrays() -> None:
    """Else each takes four times as long."""
    assert pybullet.isNumpyEnabled(), "PyBullet was compiled without numpy: make clean setup"


def test_after_a_reset_no_camera_shows_the_last_episode() -> None:
    scene = SimScene("so101", "lift", cameras=["front"])
    scene.cameras["front"].open()
    for camera in (scene.cameras["front"], scene.film_camera()):
        scene.reset(1)
        before = camera.latest()
        scene.reset(2)
        after = camera.latest()
        assert (after.data != before.data).any()
        assert after.seq > before.seq
        assert [s.seq for s in camera.window(5)] == [after.seq]
    scene.close()


def test_a_camera_sees_the_cube_where_its_intrinsics_say() -> None:
    scene = SimScene("so101", "lift", cameras=["front"], image_size=(240, 320))
    camera = scene.cameras["front"]
    camera.open()
    image = camera.latest().data.astype(int)
    blue = (image[..., 2] > 100) & (image[..., 2] > image[..., 0] + 60)
    rows, columns = np.nonzero(blue)
    eye, target, up = camera.view()
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward])
    cube = axes @ (scene.task.cube_pose()[0] - eye)  # type: ignore[attr-defined]
    u, v, _ = camera.intrinsics.matrix @ (cube / cube[2])
    assert abs(u - columns.mean()) < 6
    assert abs(v - rows.mean()) < 6
    scene.close()


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_episode_whatever_ran_before(task: str) -> None:
    one, other = SimScene(task=task), SimScene(task=task)
    first = play(one, 7, noise=0.003, ticks=40)
    play(one, 8, ticks=15)
    one.world.step()  # a reset may come at any instant
    for rows in (play(one, 7, noise=0.003, ticks=40), play(other, 7, noise=0.003, ticks=40)):
        assert len(rows) == len(first)
        assert all((a == b).all() for a, b in zip(first, rows, strict=True)), "bit for bit"
    assert not all((a == b).all() for a, b in zip(first, play(one, 9, ticks=40), strict=False))
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("task", "robot"), [(t, r) for t in TASKS for r in MODELS if n_arms(r) == TASKS[t].n_arms]
)
def test_the_expert_solves_the_task_and_doing_nothing_does_not(task: str, robot: str) -> None:
    scene = SimScene(robot, task)
    for seed in (11, 12):
        rows = play(scene, seed)
        assert scene.success(), f"seed {seed} after {len(rows)} ticks"
        scene.reset(seed)
        assert not scene.success()
        assert not scene.task.achieved()
        scene.clock.sleep_until(scene.clock.now_ns() + 1_500_000_000)
        assert not scene.success(), "not by luck"
    scene.close()


def test_lift_counts_only_when_the_cube_is_held_up_long_enough() -> None:
    scene = SimScene("so101", "lift")
    scene.reset(3)
    p, c, cube = scene.world.bullet, scene.world.client, scene.task.cube  # type: ignore[attr-defined]
    p.resetBasePositionAndOrientation(cube, [0.2, 0.0, 0.14], [0, 0, 0, 1], physicsClientId=c)
    scene.clock.sleep_until(scene.clock.now_ns() + 1_000_000_000)  # it falls
    assert not scene.success()
    scene.close()


@pytest.mark.parametrize("mode", TASKS["push_t"].modes)
def test_push_t_experts_have_modes(mode: str) -> None:
    scene = SimScene("panda", "push_t")
    play(scene, 5, mode=mode)
    assert scene.success()
    with pytest.raises(DeviceError, match="turn-first"):
        scene.expert(mode="turn-frist")
    scene.close()


def test_randomisation_is_by_name() -> None:
    still = SimScene("so101", "lift", randomisation={"spread": 0.0, "yaw": 0.0, "start": 0.0})
    a = still.task.observe()
    still.reset(1)
    np.testing.assert_allclose(still.task.observe(), a, atol=1e-12)
    with pytest.raises(DeviceError, match="did you mean yaw"):
        SimScene("so101", "lift", randomisation={"yaww": 1.0})
    with pytest.raises(DeviceError, match="did you mean lift"):
        SimScene("so101", "lfit")
    with pytest.raises(ValueError, match="widen it"):  # rather than look for a target for ever
        SimScene("so101", "reach", randomisation={"spread": 0.0, "start": 0.0, "low": 0.1, "high": 0.1})
    with pytest.raises(ValueError, match="240 Hz"):
        SimScene(control_hz=-5.0)
    still.close()


@pytest.mark.parametrize("name", ["Reach", "Lift", "PushT", "Stack", "Insert", "Sort", "Wipe", "Handover"])
def test_gymnasium_checks_pass(name: str) -> None:
    env = gymnasium.make(f"ulna/{name}-v0", cameras=("front",), image_size=(32, 32), render_mode="rgb_array")
    with warnings.catch_warnings():
        # by design: joint measurements have no bounds that physics could not pass, and actions are radians
        warnings.filterwarnings("ignore", message=".*(Box observation space|symmetric and normalized).*")
        check_env(env.unwrapped)
    env.close()


@settings(max_examples=40, deadline=None)
@given(st.floats(-3.1, 3.1), st.integers(0, 2))
def test_rotation_vector_inverts_rodrigues(angle: float, axis: int) -> None:
    unit = np.eye(3)[axis]
    np.testing.assert_allclose(rotation_vector(rotation_about(unit, angle)), angle * unit, atol=1e-6)


@pytest.mark.parametrize("name", ROBOTS)
def test_kinematics_agree_with_the_physics_and_invert(name: str) -> None:
    scene = SimScene(name, "reach")
    robot, arm = scene.arms["arm"].robot, scene.arms["arm"]
    chain = Chain(robot.urdf, robot.tip, robot.joints.names)
    pose = chain.forward(arm.read().data)
    np.testing.assert_allclose(pose.position, arm.tip()[0], atol=1e-4)
    np.testing.assert_allclose(pose.rotation, arm.tip()[1], atol=1e-3)
    goal = Pose(np.array([*robot.centre, 0.04]), pointing_down(np.pi if name == "panda" else 0.0))
    q = chain.inverse(goal, robot.home, robot.joints.lower, robot.joints.upper)
    np.testing.assert_allclose(chain.forward(q).position, goal.position, atol=5e-4)
    scene.close()


def test_the_so101_turns_as_the_manufacturers_model_does() -> None:
    """Axes at zero of TheRobotStudio/SO-ARM100, Simulation/SO101/so101_new_calib.urdf, whose joints LeRobot's
    kinematics moves by what its servos report; ahead, left and up are x, y and z."""
    robot = ROBOTS["so101"]()
    chain = Chain(robot.urdf, robot.tip, robot.joints.names)
    zero = chain.forward(np.zeros(6)).rotation
    axes = {}
    for j, name in enumerate(robot.joints.names[:5]):
        q = np.zeros(6)
        q[j] = 0.1
        axes[name] = (rotation_vector(chain.forward(q).rotation @ zero.T) / 0.1).round(6).tolist()
    assert axes == {
        "shoulder_pan": [0, 0, -1],
        "shoulder_lift": [0, 1, 0],
        "elbow_flex": [0, 1, 0],
        "wrist_flex": [0, 1, 0],
        "wrist_roll": [-1, 0, 0],
    }
