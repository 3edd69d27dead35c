"""The contract of a task. One task, one file: reset, what is observed, success, reward, instructions,
expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..arm import SimArm
from ..world import World

if TYPE_CHECKING:
    from ..expert import Demonstrator


class Task(ABC):
    """Bound to one scene. Lengths in metres, angles in radians, times in seconds.

    n_arms: that it needs; arms: those, of which `arm` is the first.
    randomisation: the parameters ξ of the reset, each with its default; a scene may override them by name.
    names, units: of the vector that `observe` returns. hold_s: how long `achieved` must be true without a
    break for the episode to count as a success, so that nothing succeeds by passing through."""

    name: ClassVar[str]
    n_arms: ClassVar[int] = 1
    instructions: ClassVar[tuple[str, ...]]
    max_seconds: ClassVar[float]
    hold_s: ClassVar[float]
    randomisation: ClassVar[Mapping[str, float]]
    modes: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]]
    units: ClassVar[tuple[str, ...]]

    def __init__(self, world: World, *arms: SimArm) -> None:
        self.world, self.arms = world, arms
        self.arm, self.robot = arms[0], arms[0].robot

    @abstractmethod
    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        """Place the objects. The arms stand at their start poses already."""

    def told(self, instruction: str) -> None:  # noqa: B027  (most tasks have one goal, whatever the words)
        """The words of the episode, after each reset: one of `instructions`, or what a caller says instead. A
        task whose goal the words choose reads it here; ValueError where they do not say one."""

    @abstractmethod
    def observe(self) -> np.ndarray:
        """`(len(names),)` float64: what a tracker would read."""

    @abstractmethod
    def achieved(self) -> bool:
        """Whether the goal is met at this instant. Never at reset."""

    @abstractmethod
    def score(self) -> float:
        """How far the goal is met, 0 to 1."""

    def steps(self) -> Mapping[str, bool]:
        """What the task is made of, in words and in order, and which of it is done now; the words stay the
        same until the next reset. Nothing where it is one thing, which `achieved` says."""
        return {}

    @abstractmethod
    def reward(self) -> float:
        """Dense, 0 to 1 per control step, highest where `achieved`."""

    @abstractmethod
    def expert(self, noise: float, mode: str | None) -> Demonstrator:
        """The scripted demonstrator. noise: standard deviation of the disturbance on its tip target, metres.
        mode: one of `modes` (None: its own choice)."""

    def start_pose(self, rng: np.random.Generator, xi: Mapping[str, float]) -> np.ndarray:
        """Joint positions `(J,)` of an arm at reset: home, disturbed by `xi["start"]` rad in every revolute
        joint. Called for one arm after the other."""
        q = self.robot.home.copy()
        spread = xi.get("start", 0.0)
        for j, unit in enumerate(self.robot.joints.units[:-1]):
            if unit == "rad":
                q[j] += rng.uniform(-spread, spread)
        return np.clip(q, self.robot.joints.lower, self.robot.joints.upper)
