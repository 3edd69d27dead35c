"""The tip's kinematics against what the makers publish, the chains of the simulation, and itself."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos import koch
from ulna.drivers.ur import arm as ur
from ulna.robot.kinematics import KOCH, MODELS, UR_DH, UR_TIP_M, Pose, rotation, rotation_vector, tip_chain
from ulna.sim.kinematics import Chain
from ulna.sim.robots import ROBOTS

NAMES = {"koch": koch.JOINTS.names, **dict.fromkeys(UR_DH, ur.NAMES)} | {
    name: robot().joints.names for name, robot in ROBOTS.items()
}
HALF_TURN = np.diag([-1.0, -1.0, 1.0])
# The flange in the controller's base frame at zero, in mm, as the pendant shows it: the arm lies along -x
PENDANT_ZERO = {
    "ur3e": (-456.75, -223.15, 66.5),
    "ur5e": (-817.2, -232.9, 62.8),
    "ur10e": (-1184.25, -290.7, 60.85),
    "ur16e": (-838.4, -290.7, 60.85),
    "ur20": (-1590.7, -355.3, 77.0),
    "ur30": (-1140.7, -355.3, 77.0),
}


def dh_flange(model: str, q: np.ndarray) -> np.ndarray:
    """`(4, 4)` of a UR's flange in the controller's base, by the textbook's matrices."""
    d1, a2, a3, d4, d5, d6 = UR_DH[model]
    quarter, pose = np.pi / 2, np.eye(4)
    rows = ((0, d1, quarter), (a2, 0, 0), (a3, 0, 0), (0, d4, quarter), (0, d5, -quarter), (0, d6, 0))
    for angle, (a, d, alpha) in zip(q, rows, strict=True):
        c, s, ca, sa = np.cos(angle), np.sin(angle), np.cos(alpha), np.sin(alpha)
        pose = pose @ np.array(
            [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        )
    return pose


@pytest.mark.parametrize("model", UR_DH)
def test_urs_are_where_their_maker_says(model: str) -> None:
    chain, rng = tip_chain(model, ur.NAMES), np.random.default_rng(0)
    np.testing.assert_allclose(1000 * dh_flange(model, np.zeros(6))[:3, 3], PENDANT_ZERO[model], atol=1e-6)
    upright = np.array([0.0, -np.pi / 2, 0.0, -np.pi / 2, 0.0, 0.0])
    for q in (np.zeros(6), upright, *rng.uniform(-np.pi, np.pi, (50, 6))):
        flange, tip = dh_flange(model, q), chain.forward(q)
        position = flange[:3, 3] + UR_TIP_M * flange[:3, 2]
        np.testing.assert_allclose(tip.position, HALF_TURN @ position, atol=1e-9)
        np.testing.assert_allclose(tip.rotation, HALF_TURN @ flange[:3, :3], atol=1e-9)


def test_the_urs_of_the_driver_are_those_whose_geometry_is_known() -> None:
    assert tuple(UR_DH) == ur.MODELS
    assert set(koch.MODELS) <= set(MODELS)


@pytest.mark.parametrize("model", ROBOTS)
def test_it_agrees_with_the_chain_of_the_simulation(model: str) -> None:
    robot = ROBOTS[model]()
    chain, other = tip_chain(model, NAMES[model]), Chain(robot.urdf, robot.tip, NAMES[model])
    assert chain.moving == other.moving
    joints = robot.joints
    for q in np.random.default_rng(1).uniform(joints.lower, joints.upper, (50, len(joints))):
        pose, other_pose = chain.forward(q), other.forward(q)
        np.testing.assert_allclose(pose.position, other_pose.position, atol=1e-9)
        np.testing.assert_allclose(pose.rotation, other_pose.rotation, atol=1e-9)


def test_a_koch_has_the_published_dimensions_and_its_joints_their_senses() -> None:
    chain = tip_chain("koch", koch.JOINTS.names)
    assert chain.moving == [0, 1, 2, 3, 4], "the gripper does not move the tip"
    square = np.array([*(-zero for *_, zero in KOCH), 0.0])  # the upper arm upright, the rest ahead
    tip = chain.forward(square)
    # ahead: elbow 14.8, forearm 100.5, wrist 45, fingers 65
    # up: pan 40.9, lift 15.4, upper arm 108.3, forearm 2.7
    np.testing.assert_allclose(tip.position, [0.2253, 0.0013, 0.1673], atol=1e-9)
    np.testing.assert_allclose(tip.rotation[:, 2], [1, 0, 0], atol=1e-9)
    linear, angular = np.split(chain.jacobian(square), 2)
    assert linear[1, 0] > 0, "pan: to the left"
    assert linear[0, 1] > 0, "lift: ahead"
    assert linear[2, 1] < 0, "and down"
    assert linear[2, 2] > 0, "elbow: up"
    assert linear[2, 3] > 0, "wrist: up"
    np.testing.assert_allclose(angular[:, 4], [1, 0, 0], atol=1e-9)
    middle = chain.forward(np.zeros(6))
    assert 0.2 < middle.position[0] < 0.3
    assert 0.05 < middle.position[2] < 0.2


@pytest.mark.parametrize("model", MODELS)
def test_the_jacobian_is_the_derivative(model: str) -> None:
    chain = tip_chain(model, NAMES[model])
    q, h = np.random.default_rng(2).uniform(-0.9, 0.9, len(NAMES[model])), 1e-6
    jacobian = chain.jacobian(q)
    for column, joint in enumerate(chain.moving):
        step = h * np.eye(len(q))[joint]
        before, after = chain.forward(q - step), chain.forward(q + step)
        turn = rotation_vector(after.rotation @ before.rotation.T)
        motion = np.concatenate([after.position - before.position, turn]) / (2 * h)
        np.testing.assert_allclose(jacobian[:, column], motion, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_a_tip_goes_to_a_pose_nearby_within_the_limits(model: str) -> None:
    chain = tip_chain(model, NAMES[model])
    rng = np.random.default_rng(3)
    n = len(NAMES[model])
    bend = np.zeros(n)
    bend[chain.moving[1:4]] = (-0.8, 1.2, 0.7)  # away from where an arm is straight
    for _ in range(10):
        start = bend + rng.uniform(-0.2, 0.2, n)
        there = start + rng.uniform(-0.1, 0.1, n)
        lower, upper = start - 0.3, start + 0.3
        q = chain.inverse(chain.forward(there), start, lower, upper)
        assert ((lower <= q) & (q <= upper)).all()
        np.testing.assert_allclose(chain.forward(q).position, chain.forward(there).position, atol=1e-3)
        others = [j for j in range(n) if j not in chain.moving]
        np.testing.assert_array_equal(q[others], start[others])
        far = Pose(np.array([9.0, 0.0, 9.0]), np.eye(3))
        q = chain.inverse(far, start, lower, upper)
        assert np.isfinite(q).all()
        assert ((lower <= q) & (q <= upper)).all()


def test_an_arm_that_lacks_a_joint_of_the_model_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"the tip of a ur5e .* joint elbow, and this arm's joints are shoulder"
    ):
        tip_chain("ur5e", koch.JOINTS.names)


def test_a_rotation_is_axis_times_angle() -> None:
    for vector in (np.zeros(3), np.array([0.0, 0.3, 0.0]), np.array([1.2, -0.7, 2.0])):
        np.testing.assert_allclose(rotation_vector(rotation(vector)), vector, atol=1e-12)
    np.testing.assert_allclose(rotation(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
