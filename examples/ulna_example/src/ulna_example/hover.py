"""hover: hold the fingertips still above the middle of the workspace, at a height that is drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ulna.sim.expert import Expert, TipTarget, towards, yaw_of
from ulna.sim.tasks.task import Task

TOLERANCE = 0.012  # m


class Hover(Task):
    name = "hover"
    instructions = ("hold the gripper above the middle of the table",)
    max_seconds = 6.0
    hold_s = 0.5
    randomisation: ClassVar = {"start": 0.1, "low": 0.03, "high": 0.1}
    names = ("goal.x", "goal.y", "goal.z", "tip.x", "tip.y", "tip.z")
    units = ("m",) * 6

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        tip, _ = self.arm.tip()
        for _ in range(1000):
            self.goal = np.array([*self.robot.centre, rng.uniform(xi["low"], xi["high"])])
            if np.linalg.norm(self.goal - tip) > 3 * TOLERANCE:
                return
        raise ValueError("hover: this randomisation puts every goal at the fingertips' start; widen it")

    def observe(self) -> np.ndarray:
        return np.concatenate([self.goal, self.arm.tip()[0]])

    def distance(self) -> float:
        """From the fingertips to the goal, m."""
        return float(np.linalg.norm(self.goal - self.arm.tip()[0]))

    def achieved(self) -> bool:
        return self.distance() < TOLERANCE

    def score(self) -> float:
        return float(np.clip(1 - (self.distance() - TOLERANCE) / 0.1, 0, 1))

    def reward(self) -> float:
        return 1.0 if self.achieved() else 0.9 * self.score()

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise)


class _Expert(Expert):
    def __init__(self, task: Hover, noise: float) -> None:
        self.task = task
        super().__init__(task.arm, noise)

    def target(self) -> TipTarget:
        position, rotation = self.arm.tip()
        grip = self.arm.robot.grip_open
        goal = towards(position, self.task.goal, 0.02)
        return TipTarget(goal, yaw_of(rotation), grip, rotation_weight=0.01)
