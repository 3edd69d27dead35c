"""Scripted demonstrators: a rule that says where the fingertips should go next, and inverse kinematics.

The rule looks at the present state of the scene only (no timers, no stored phases), so that what a
demonstration shows is a function of what a policy can see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .arm import SimArm
from .kinematics import Chain, Pose, pointing_down


@dataclass(frozen=True)
class TipTarget:
    """Where the tip should be at the end of the next control period, in the scene, and the gripper command
    (its joint's unit).

    yaw: of the closing direction. rotation_weight: metres that a radian of orientation error is worth.
    tremor: the share of the expert's disturbance that there is on the way: it is steadier where that
    matters."""

    position: np.ndarray
    yaw: float
    gripper: float
    rotation_weight: float = 0.1
    tremor: float = 1.0


class Demonstrator(Protocol):
    """`reset(seed)` at the start of an episode, then `act` once a control period."""

    def reset(self, seed: int) -> None: ...

    def act(self, observation: Any = None) -> np.ndarray:
        """Joint targets of the scene's arms `(A,)` float64."""
        ...


class Expert(ABC):
    """A demonstrator with one arm.

    noise: standard deviation of the disturbance of the tip's target, m. memory: the share of a disturbance
    that is left after a control period. 0.9 lasts for half a second at 20 Hz, which moves the arm rather than
    shakes it; but for as long the demonstrator stands beside its goal, for no reason that a policy sees.
    stream: the number of this arm's disturbances, of those of a seed."""

    memory = 0.9

    def __init__(self, arm: SimArm, noise: float, stream: int = 7) -> None:
        self.arm, self.noise, self.stream = arm, noise, stream
        robot = arm.robot
        self.chain = Chain(robot.urdf, robot.tip, robot.joints.names)
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, self.stream])
        self._disturbance = np.zeros(3)

    @abstractmethod
    def target(self) -> TipTarget:
        """The rule."""

    def act(self, observation: Any = None) -> np.ndarray:
        """Joint targets `(J,)` float64. The observation is not needed: the expert knows the scene."""
        target = self.target()
        robot, q = self.arm.robot, self.arm.read().data
        fresh = self.noise * np.sqrt(1 - self.memory**2) * self.rng.standard_normal(3)
        self._disturbance = self.memory * self._disturbance + fresh
        pose = Pose(target.position + target.tremor * self._disturbance, pointing_down(target.yaw))
        goal = robot.stand.to_base(pose)
        lower, upper = robot.joints.lower, robot.joints.upper
        q = self.chain.inverse(goal, q, lower, upper, target.rotation_weight, rest=self._rest())
        q[-1] = target.gripper
        return np.clip(q, lower, upper)

    def _rest(self) -> np.ndarray | None:
        return self.arm.robot.home if len(self.chain.moving) > 6 else None


class Together:
    """A demonstrator of several arms, one expert for each, in the order of the scene's arms."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        self.experts = experts

    def reset(self, seed: int) -> None:
        for expert in self.experts:
            expert.reset(seed)

    def act(self, observation: Any = None) -> np.ndarray:
        return np.concatenate([expert.act() for expert in self.experts])


def towards(start: np.ndarray, goal: np.ndarray, step: float) -> np.ndarray:
    """`goal`, or the point `step` metres from `start` on the way to it."""
    away = goal - start
    distance = float(np.linalg.norm(away))
    return goal if distance <= step else start + away * (step / distance)


def nearest_yaw(yaw: float, current: float, period: float) -> float:
    """The angle `yaw + k·period` nearest to `current`: a gripper repeats every pi, a cube every pi/2."""
    return yaw + period * round((current - yaw) / period)


def yaw_of(rotation: np.ndarray) -> float:
    """Yaw of the closing direction (y axis) about the vertical, as `pointing_down` takes it."""
    return float(np.arctan2(-rotation[0, 1], rotation[1, 1]))
