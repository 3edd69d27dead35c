"""Where the tip of an arm is, and which joint positions bring it elsewhere: what moving a tip by hand needs.

Pinocchio does the arithmetic. It is imported when the first tip is asked for, since that takes a second. The
chains of a Koch and of the URs are built from the tables in here, others are read from the URDF of their
simulation.

All poses are in the arm's base frame: x ahead, y left, z up; metres and radians."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..drivers.arm import DeviceError

# d1, a2, a3, d4, d5, d6 in m: Universal Robots, "DH Parameters for calculations of kinematics and dynamics"
UR_DH = {
    "ur3e": (0.15185, -0.24355, -0.2132, 0.13105, 0.08535, 0.0921),
    "ur5e": (0.1625, -0.425, -0.3922, 0.1333, 0.0997, 0.0996),
    "ur10e": (0.1807, -0.6127, -0.57155, 0.17415, 0.11985, 0.11655),
    "ur16e": (0.1807, -0.4784, -0.36, 0.17415, 0.11985, 0.11655),
    "ur20": (0.2363, -0.862, -0.7287, 0.201, 0.1593, 0.1543),
    "ur30": (0.2363, -0.637, -0.5037, 0.201, 0.1593, 0.1543),
}
UR_NAMES = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
UR_TIP_M = 0.14  # from the flange to the tip, as of the gripper of the simulated UR5e

# Koch v1.1 follower: joint, where its frame is in the one before (m), axis, and by how much the joint is
# turned at zero (rad), which is the middle of its travel.
# - Positions: MuJoCo Menagerie, low_cost_robot_arm, rounded to 0.1 mm. The links are as they lie with the
#   upper arm upright and the rest pointing ahead; the base frame is under the pan axis, on the table.
# - Middles: the lift goes from level ahead to 143 degrees back from there, the elbow from straight to folded
#   by 175 degrees (ManiSkill, follower_arm_v1.1_simplified.urdf, which follows real arms); the wrist goes as
#   far up as down. The maker publishes no travel. Where an arm stops elsewhere, the tip moves askew by that
#   angle.
# - Axes: positive is how the servos count with drive mode 0, as LeRobot 0.6 and `ulna calibrate` leave a
#   follower. ManiSkill has the angles of LeRobot 0.1 instead, where the first four joints were inverted:
#   drive_mode [1, 1, 1, 1, 0, 0] in .cache/calibration/koch/main_follower.json of its repository.
KOCH = (
    ("shoulder_pan", (0.0, 0.0, 0.0409), (0, 0, 1), 0.0),
    ("shoulder_lift", (0.0, 0.0, 0.0154), (0, 1, 0), 0.32),
    ("elbow_flex", (0.0148, 0.0, 0.1083), (0, -1, 0), 0.05),
    ("wrist_flex", (0.1005, 0.0, 0.0027), (0, -1, 0), 0.0),
    ("wrist_roll", (0.045, 0.0013, 0.0), (1, 0, 0), 0.0),
)
KOCH_TIP_M = (
    0.065  # from the roll frame to between the fingertips (ManiSkill's gripper_tcp), on the roll axis
)


@dataclass(frozen=True)
class Pose:
    """position: `(3,)` m. rotation: `(3, 3)`."""

    position: np.ndarray
    rotation: np.ndarray


class TipChain:
    """The joints from an arm's base to its tip.

    model: a `pinocchio.Model`. tip: the id of its frame. names: of the arm's joints in command order; joints
    of the model that do not move the tip stay at zero. title: what messages call the model. DeviceError: the
    arm lacks a joint that moves the tip.

    moving: indices into `names` of the joints that move the tip, base to tip."""

    def __init__(self, model: Any, tip: int, names: Sequence[str], title: str = "arm") -> None:
        pin = _pinocchio()
        frame = model.frames[tip]
        path = [model.names[i] for i in model.supports[frame.parentJoint]][1:]
        if lacking := [name for name in path if name not in names]:
            raise DeviceError(
                f"the tip of a {title} is moved by its joint {lacking[0]}, and this arm's joints are "
                f"{', '.join(names)}: give the `model` that the arm is"
            )
        others = [i for i, name in enumerate(model.names) if i and name not in path]
        self._model = pin.buildReducedModel(model, others, pin.neutral(model))
        self._data = self._model.createData()
        self._tip = self._model.getFrameId(frame.name, frame.type)
        self.moving = [names.index(name) for name in path]

    def forward(self, q: np.ndarray) -> Pose:
        """The tip with the arm's joints at `q` `(J,)`."""
        pin, q_moving = _pinocchio(), np.asarray(q, np.float64)[self.moving]
        pin.framesForwardKinematics(self._model, self._data, q_moving)
        return self._tip_pose()

    def jacobian(self, q: np.ndarray) -> np.ndarray:
        """How the tip moves with each joint in `moving`: `(6, len(moving))`, m over rad of the tip per rad of
        the joint."""
        pin, q_moving = _pinocchio(), np.asarray(q, np.float64)[self.moving]
        return pin.computeFrameJacobian(
            self._model, self._data, q_moving, self._tip, pin.LOCAL_WORLD_ALIGNED
        ).copy()

    def inverse(
        self,
        goal: Pose,
        q: np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        rotation_weight: float = 0.1,
        iterations: int = 30,
        tolerance: float = 2e-4,
    ) -> np.ndarray:
        """Joint positions `(J,)` near `q` with the tip at `goal`, or as near to it as it comes: damped least
        squares within the limits `lower` and `upper` `(J,)`.

        rotation_weight: metres that one radian of rotation error counts; a small weight lets an arm of five
        joints give up orientation rather than position. tolerance: m, of what is weighted so."""
        q, moving = np.clip(q, lower, upper), self.moving
        weights = np.array([1.0, 1.0, 1.0, *[rotation_weight] * 3])
        for _ in range(iterations):
            jacobian = self.jacobian(q)  # which computes where the tip is, too
            pose = self._tip_pose()
            turn = rotation_vector(goal.rotation @ pose.rotation.T)
            error = weights * np.concatenate([goal.position - pose.position, turn])
            if np.abs(error).max() < tolerance:
                break
            weighted = jacobian * weights[:, None]
            free, step = np.ones(len(moving), bool), np.zeros(len(moving))
            # a joint that would cross its limit stays out, and the others solve without it
            for _ in range(3):
                j = weighted * free
                damped = j.T @ np.linalg.inv(j @ j.T + 1e-6 * np.eye(6))
                step = free * np.clip(damped @ error, -0.3, 0.3)
                crossing = free & ((q[moving] + step < lower[moving]) | (q[moving] + step > upper[moving]))
                if not crossing.any():
                    break
                free &= ~crossing
            q[moving] = np.clip(q[moving] + step, lower[moving], upper[moving])
        return q

    def _tip_pose(self) -> Pose:
        placement = self._data.oMf[self._tip]
        return Pose(placement.translation.copy(), placement.rotation.copy())


def tip_chain(model: str, names: Sequence[str]) -> TipChain:
    """The chain of the arm `model`, of `MODELS`, whose joints are `names` in command order."""
    return TipChain(*MODELS[model](), names, model)


def rotation(vector: np.ndarray) -> np.ndarray:
    """`(3, 3)` of axis times angle `(3,)` rad."""
    return _pinocchio().exp3(vector)


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle `(3,)` rad of `(3, 3)`, the angle in [0, pi]."""
    return _pinocchio().log3(matrix)


def _pinocchio() -> Any:
    import pinocchio  # pyright: ignore[reportMissingImports]

    return pinocchio


def _simulated(name: str) -> tuple[Any, int]:
    from ..sim.robots import ROBOTS

    pin, robot = _pinocchio(), ROBOTS[name]()
    model = pin.buildModelFromUrdf(str(robot.urdf))
    return model, model.getFrameId(robot.tip, pin.BODY)


def _koch() -> tuple[Any, int]:
    pin = _pinocchio()
    joints = [
        (name, pin.SE3(pin.exp3(zero * np.array(axis, float)), np.array(position)), np.array(axis, float))
        for name, position, axis, zero in KOCH
    ]
    # z out of the gripper, y to its side
    ahead = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    return _serial(joints, pin.SE3(ahead, np.array([KOCH_TIP_M, 0.0, 0.0])))


def _ur(name: str) -> tuple[Any, int]:
    """The joints are the controller's. Its base frame is turned by half a turn about the vertical: at zero
    the arm lies along x, not -x."""
    pin = _pinocchio()
    d1, a2, a3, d4, d5, d6 = UR_DH[name]
    z, quarter = np.array([0.0, 0.0, 1.0]), np.pi / 2
    joints, placement = [], pin.SE3(pin.exp3(np.pi * z), np.zeros(3))
    for joint, d, a, alpha in zip(
        UR_NAMES,
        (d1, 0.0, 0.0, d4, d5, d6),
        (0.0, a2, a3, 0.0, 0.0, 0.0),
        (quarter, 0.0, 0.0, quarter, -quarter, 0.0),
        strict=True,
    ):
        joints.append((joint, placement, z))
        placement = pin.SE3(pin.exp3(np.array([alpha, 0.0, 0.0])), np.array([a, 0.0, d]))
    return _serial(joints, placement * pin.SE3(np.eye(3), UR_TIP_M * z))


def _serial(joints: Iterable[tuple[str, Any, np.ndarray]], tip: Any) -> tuple[Any, int]:
    """A model of revolute joints, and the id of its frame `tip`. joints: name, placement in the joint before,
    axis. tip: its placement in the last joint."""
    pin = _pinocchio()
    model, last = pin.Model(), 0
    for name, placement, axis in joints:
        last = model.addJoint(last, pin.JointModelRevoluteUnaligned(axis), placement, name)
    return model, model.addFrame(pin.Frame("tip", last, tip, pin.FrameType.OP_FRAME))


# `model` in the table of an arm, or of a simulated robot -> builds its pinocchio model, with the tip's frame
MODELS: dict[str, Callable[[], tuple[Any, int]]] = {
    "so101": partial(_simulated, "so101"),
    "panda": partial(_simulated, "panda"),
    "koch": _koch,
    **{name: partial(_ur, name) for name in UR_DH},
}
