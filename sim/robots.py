"""The simulated robots: where their description lies and what a task must know about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..drivers.arm import Joints
from .kinematics import Pose, rotation_about


@dataclass(frozen=True)
class Stand:
    """Where the base of an arm is on the table of the scene: x, y in m, and yaw in rad, to where it looks."""

    x: float = 0.0
    y: float = 0.0
    yaw: float = 0.0

    def to_base(self, pose: Pose) -> Pose:
        """A pose of the scene in the frame of the base."""
        turn = rotation_about(np.array([0.0, 0.0, 1.0]), -self.yaw)
        return Pose(turn @ (pose.position - [self.x, self.y, 0.0]), turn @ pose.rotation)

    def to_scene(self, xy: np.ndarray) -> np.ndarray:
        """A point of the table `(2,)` that is at `xy` in the frame of the base."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([self.x + c * xy[0] - s * xy[1], self.y + s * xy[0] + c * xy[1]])


@dataclass(frozen=True)
class SimRobot:
    """urdf: path. joints: in command order, the gripper last. bullet: URDF joints that each one drives. home:
    `(J,)` start pose. tip: link between the fingertips, z ahead and y in the closing direction. grip_open,
    grip_closed: gripper commands around an object of `object_size` m; grip_held: its position with one.
    grip_clearance: m from the fixed finger to such an object while approaching (0: both fingers move).
    centre, extent: `(2,)` m, the patch of table (x, y ± extent) that tasks use, in the frame of the base."""

    name: str
    urdf: Path
    joints: Joints
    bullet: tuple[tuple[str, ...], ...]
    home: np.ndarray
    tip: str
    grip_open: float
    grip_closed: float
    grip_held: float
    grip_clearance: float
    object_size: float
    centre: np.ndarray
    extent: np.ndarray
    finger_links: tuple[str, ...]
    wrist_link: str
    stand: Stand = Stand()


def _so101() -> SimRobot:
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    return SimRobot(
        name="so101",
        urdf=Path(__file__).parent / "assets" / "so101.urdf",
        joints=Joints(  # as in the URDF, which says where each number comes from
            names=names,
            units=("rad",) * 6,
            lower=np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.79253, -0.174533]),
            upper=np.array([1.91986, 1.74533, 1.69, 1.65806, 2.79253, 1.74533]),
            max_velocity=np.full(6, 4.7),
            max_effort=np.array([1.91, 1.91, 1.91, 1.91, 1.91, 0.95]),
        ),
        bullet=tuple((n,) for n in names),
        home=np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6]),
        tip="grasp",
        grip_open=0.75,
        grip_closed=0.15,
        grip_held=0.42,
        grip_clearance=0.006,
        object_size=0.025,
        centre=np.array([0.225, 0.0]),
        extent=np.array([0.035, 0.08]),
        finger_links=("gripper_body", "jaw"),
        wrist_link="gripper_body",
    )


def _panda() -> SimRobot:
    """Franka Panda with its hand. Limits and torques: Franka's data sheet, as in pybullet_data's URDF."""
    import pybullet_data

    arm = tuple(f"panda_joint{i}" for i in range(1, 8))
    return SimRobot(
        name="panda",
        urdf=Path(pybullet_data.getDataPath()) / "franka_panda" / "panda.urdf",
        joints=Joints(
            names=(*arm, "gripper"),
            units=("rad",) * 7 + ("m",),
            lower=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0.0]),
            upper=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 0.04]),
            max_velocity=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61, 0.2]),
            max_effort=np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0, 20.0]),
        ),
        bullet=(*((n,) for n in arm), ("panda_finger_joint1", "panda_finger_joint2")),
        home=np.array([0.0, -0.35, 0.0, -2.35, 0.0, 2.0, 0.785, 0.035]),
        tip="panda_grasptarget",
        grip_open=0.04,
        grip_closed=0.0,
        grip_held=0.027,
        grip_clearance=0.0,
        object_size=0.04,
        centre=np.array([0.48, 0.0]),
        extent=np.array([0.08, 0.14]),
        finger_links=("panda_leftfinger", "panda_rightfinger"),
        wrist_link="panda_hand",
    )


def _ur5e() -> SimRobot:
    """Universal Robots UR5e with a plain parallel gripper of ours; joints as in the URDF, which gives the
    sources."""
    arm = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
    turn = 2 * np.pi
    return SimRobot(
        name="ur5e",
        urdf=Path(__file__).parent / "assets" / "ur5e.urdf",
        joints=Joints(
            names=(*arm, "gripper"),
            units=("rad",) * 6 + ("m",),
            lower=np.array([-turn, -turn, -np.pi, -turn, -turn, -turn, 0.0]),
            upper=np.array([turn, turn, np.pi, turn, turn, turn, 0.04]),
            max_velocity=np.array([np.pi] * 6 + [0.15]),
            max_effort=np.array([150.0, 150.0, 150.0, 28.0, 28.0, 28.0, 20.0]),
        ),
        bullet=(*((n,) for n in arm), ("left_finger_joint", "right_finger_joint")),
        home=np.array([-0.28, -1.58, 1.96, -1.95, -np.pi / 2, 1.29, 0.035]),
        tip="grasp",
        grip_open=0.04,
        grip_closed=0.0,
        grip_held=0.027,
        grip_clearance=0.0,
        object_size=0.04,
        centre=np.array([0.48, 0.0]),
        extent=np.array([0.08, 0.14]),
        finger_links=("left_finger", "right_finger"),
        wrist_link="hand",
    )


ROBOTS = {"so101": _so101, "panda": _panda, "ur5e": _ur5e}
# Two arms of one robot that face each other: which, and half of how far apart their bases are, m. An SO-101
# points straight down up to 0.26 m ahead of its base, 6 cm over the table.
PAIRS = {"so101-pair": ("so101", 0.27)}
MODELS = (*ROBOTS, *PAIRS)
AHEAD_M = 0.25  # of whoever sits before a pair, its left arm to their left


def n_arms(model: str) -> int:
    """Of `model`, of `MODELS`."""
    return 2 if model in PAIRS else 1


def arms_of(model: str) -> dict[str, SimRobot]:
    """The arms of `model`, of `MODELS`, by their names in the scene."""
    if model in ROBOTS:
        return {"arm": ROBOTS[model]()}
    name, apart = PAIRS[model]
    robot = ROBOTS[name]()
    return {
        "left": replace(robot, stand=Stand(AHEAD_M, apart, -np.pi / 2)),
        "right": replace(robot, stand=Stand(AHEAD_M, -apart, np.pi / 2)),
    }
