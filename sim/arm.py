"""An arm in PyBullet that keeps the contract of `drivers.arm.Arm`."""

from __future__ import annotations

import numpy as np

from ..drivers.arm import ArmHealth, ArmState, DeviceError, check_target
from ..drivers.sample import Sample
from ..drivers.setpoint import Setpoint
from .robots import SimRobot
from .world import PHYSICS_HZ, SimClock, World

POSITION_GAIN = 0.25  # of the error per physics step; PyBullet's 0.1 lags a 20 Hz target by two periods


class SimArm:
    """Position servos with the torque and speed of the real ones. Between two commands the target moves in a
    straight line, to arrive at `t_target_ns`; without a command for `watchdog_s` the arm holds."""

    watchdog_s = 0.5
    max_first_step = np.inf  # a jump harms nobody here

    def __init__(self, world: World, clock: SimClock, robot: SimRobot) -> None:
        self.world, self.clock, self.robot, self.joints = world, clock, robot, robot.joints
        self.body = -1
        self._enabled = self._stopped = self._open = False
        world.before_step.append(self._before_step)

    def build(self, q: np.ndarray) -> None:
        """Load the body with joints at `q` `(J,)`, torque as it was. Called at every reset of the scene."""
        p, c = self.world.bullet, self.world.client
        flags = p.URDF_USE_SELF_COLLISION_EXCLUDE_PARENT | p.URDF_ENABLE_CACHED_GRAPHICS_SHAPES
        stand = self.robot.stand
        self.body = p.loadURDF(
            str(self.robot.urdf),
            [stand.x, stand.y, 0],
            p.getQuaternionFromEuler([0, 0, stand.yaw]),
            useFixedBase=True,
            flags=flags,
            physicsClientId=c,
        )
        self.link_index: dict[str, int] = {}
        joint_index: dict[str, int] = {}
        for i in range(p.getNumJoints(self.body, physicsClientId=c)):
            info = p.getJointInfo(self.body, i, physicsClientId=c)
            joint_index[info[1].decode()] = i
            self.link_index[info[12].decode()] = i
        # every driven bullet joint, and which of ours it belongs to
        self._driven = [joint_index[name] for group in self.robot.bullet for name in group]
        self._owner = [j for j, group in enumerate(self.robot.bullet) for _ in group]
        self._first = [self._owner.index(j) for j in range(len(self.joints))]
        for link in self.robot.finger_links:
            p.changeDynamics(
                self.body,
                self.link_index[link],
                lateralFriction=1.2,
                spinningFriction=0.01,
                physicsClientId=c,
            )
        for bullet, j in zip(self._driven, self._owner, strict=True):
            p.resetJointState(self.body, bullet, float(q[j]), physicsClientId=c)
        self._stopped = False
        self._setpoint = Setpoint(np.asarray(q, np.float64), self.clock.now_ns())
        self._motors()

    def open(self) -> None:
        if self.body < 0:
            raise DeviceError(f"the simulated {self.robot.name} has no body yet: reset its scene first")
        self._open = True

    def close(self) -> None:
        self._open = False

    def read(self) -> Sample:
        p = self.world.bullet
        states = p.getJointStates(self.body, self._driven, physicsClientId=self.world.client)
        q = np.array([states[i][0] for i in self._first])
        now = self.clock.now_ns()
        return Sample(q, now, now, self.world.steps, np.ones(len(q), bool))

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        target = check_target(target, self.joints)
        if self._stopped:
            raise DeviceError(f"the {self.robot.name} was stopped: enable it again before commanding it")
        if not self._enabled:
            raise DeviceError(f"the {self.robot.name} has its torque off: enable it before commanding it")
        return self._setpoint.command(target, t_target_ns, self.joints, self.clock.now_ns())

    def hold(self) -> None:
        q = np.clip(self.read().data, self.joints.lower, self.joints.upper)
        self._setpoint.hold(q, self.clock.now_ns())

    def stop(self) -> None:
        self.hold()
        self._stopped = True

    def enable(self) -> None:
        self.hold()
        self._enabled, self._stopped = True, False
        self._motors()

    def disable(self) -> None:
        self._enabled = False
        self._motors()

    def faults(self) -> tuple[str, ...]:
        return ()

    def health(self) -> ArmHealth:
        if not self._open:
            return ArmHealth(ArmState.CLOSED, float("inf"), 0.0)
        state = (
            ArmState.STOPPED if self._stopped else ArmState.ACTIVE if self._enabled else ArmState.TORQUE_OFF
        )
        return ArmHealth(state, 0.0, PHYSICS_HZ)

    def _before_step(self) -> None:
        if self.body < 0 or not self._enabled:
            return
        now = self.clock.now_ns()
        t = self._setpoint.commanded_ns
        if t is not None and now - t > self.watchdog_s * 1e9:
            # nobody commands: stay where the arm is, not where it was still going
            self.hold()
        self._motors(self._setpoint.at(now))

    def _motors(self, target: np.ndarray | None = None) -> None:
        p, c = self.world.bullet, self.world.client
        n, effort = len(self._driven), self.joints.max_effort
        if not self._enabled:
            p.setJointMotorControlArray(
                self.body, self._driven, p.VELOCITY_CONTROL, forces=[0.0] * n, physicsClientId=c
            )
            return
        q = self._setpoint.goal if target is None else target
        p.setJointMotorControlArray(
            self.body,
            self._driven,
            p.POSITION_CONTROL,
            targetPositions=[float(q[j]) for j in self._owner],
            forces=[float(effort[j]) for j in self._owner],
            positionGains=[POSITION_GAIN] * n,
            physicsClientId=c,
        )

    def tip(self) -> tuple[np.ndarray, np.ndarray]:
        """Position `(3,)` and rotation `(3, 3)` of the point between the fingertips, in the scene: its ground
        truth."""
        return self.link_pose(self.robot.tip)

    def link_pose(self, link: str) -> tuple[np.ndarray, np.ndarray]:
        p = self.world.bullet
        state = p.getLinkState(
            self.body, self.link_index[link], computeForwardKinematics=1, physicsClientId=self.world.client
        )
        return np.array(state[4]), np.array(p.getMatrixFromQuaternion(state[5])).reshape(3, 3)
