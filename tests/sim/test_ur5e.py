"""The simulated UR5e against the maker's published numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from ulna.drivers.ur import arm as ur
from ulna.sim.kinematics import Chain, rotation_about
from ulna.sim.robots import ROBOTS

# Universal Robots, "DH Parameters for calculations of kinematics and dynamics": UR5e
A = (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
D = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996)
ALPHA = (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0)
MASS = {
    "shoulder": 3.761,
    "upper_arm": 8.058,
    "forearm": 2.846,
    "wrist_1_link": 1.37,
    "wrist_2_link": 1.3,
    "wrist_3_link": 0.365,
}


def forward(q: np.ndarray) -> np.ndarray:
    """`(4, 4)` of the flange in the controller's base."""
    pose = np.eye(4)
    for angle, a, d, alpha in zip(q, A, D, ALPHA, strict=True):
        c, s, ca, sa = np.cos(angle), np.sin(angle), np.cos(alpha), np.sin(alpha)
        pose = pose @ np.array(
            [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        )
    return pose


def test_forward_kinematics_are_the_published_ones() -> None:
    robot = ROBOTS["ur5e"]()
    chain = Chain(robot.urdf, "wrist_3_link", robot.joints.names)
    half_turn = rotation_about(np.array([0.0, 0.0, 1.0]), np.pi)
    rng = np.random.default_rng(0)
    for q in (np.zeros(7), robot.home, *rng.uniform(robot.joints.lower, robot.joints.upper, (200, 7))):
        published, ours = forward(q[:6]), chain.forward(q)
        np.testing.assert_allclose(ours.position, half_turn @ published[:3, 3], atol=1e-9)
        np.testing.assert_allclose(ours.rotation, half_turn @ published[:3, :3], atol=1e-9)
    # what the pendant shows at zero: the arm lies along -x
    np.testing.assert_allclose(forward(np.zeros(6))[:3, 3], [-0.8172, -0.2329, 0.0628], atol=1e-9)


def test_masses_and_limits_are_the_published_ones() -> None:
    robot = ROBOTS["ur5e"]()
    root = ElementTree.parse(robot.urdf).getroot()
    masses = {link.get("name"): float(link.find("inertial/mass").get("value")) for link in root.iter("link")}  # type: ignore[union-attr, arg-type]
    for link, mass in MASS.items():
        assert masses[link] == pytest.approx(mass)
    config = ur.Config(host="")  # of the real one's driver
    np.testing.assert_allclose(robot.joints.lower[:6], config.lower)
    np.testing.assert_allclose(robot.joints.upper[:6], config.upper)
    np.testing.assert_allclose(robot.joints.max_effort[:6], config.max_effort)
    assert robot.joints.names[:6] == ur.NAMES
    for joint in root.iter("joint"):
        if joint.get("name") in ur.NAMES:
            limit, i = joint.find("limit"), ur.NAMES.index(str(joint.get("name")))
            assert limit is not None
            assert float(limit.get("upper", 0)) == pytest.approx(robot.joints.upper[i])
            assert float(limit.get("effort", 0)) == pytest.approx(robot.joints.max_effort[i])
            assert float(limit.get("velocity", 0)) == pytest.approx(robot.joints.max_velocity[i], abs=1e-5)
