"""reach: bring the fingertips to a point and stay there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget, towards, yaw_of
from .task import Task

TOLERANCE = 0.01


class Reach(Task):
    name = "reach"
    instructions = ("reach the red ball", "move the gripper to the red ball", "touch the red ball")
    max_seconds = 6.0
    hold_s = 0.5
    randomisation: ClassVar = {"start": 0.1, "spread": 1.0, "low": 0.03, "high": 0.11}
    names = ("target.x", "target.y", "target.z", "tip.x", "tip.y", "tip.z")
    units = ("m",) * 6

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        tip, _ = self.arm.tip()
        for _ in range(1000):
            xy = self.robot.centre + xi["spread"] * self.robot.extent * rng.uniform(-1, 1, 2)
            self.goal = np.array([*xy, rng.uniform(xi["low"], xi["high"])])
            if np.linalg.norm(self.goal - tip) > 4 * TOLERANCE:
                break
        else:
            raise ValueError("reach: this randomisation puts every target at the fingertips' start; widen it")
        p, c = self.world.bullet, self.world.client
        ball = p.createVisualShape(
            p.GEOM_SPHERE, radius=TOLERANCE, rgbaColor=[0.85, 0.15, 0.12, 1], physicsClientId=c
        )
        p.createMultiBody(0, -1, ball, self.goal.tolist(), physicsClientId=c)

    def observe(self) -> np.ndarray:
        return np.concatenate([self.goal, self.arm.tip()[0]])

    def distance(self) -> float:
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
    def __init__(self, task: Reach, noise: float) -> None:
        self.task = task
        super().__init__(task.arm, noise)

    def target(self) -> TipTarget:
        position, rotation = self.arm.tip()
        grip = self.arm.robot.grip_open
        return TipTarget(
            towards(position, self.task.goal, 0.02), yaw_of(rotation), grip, rotation_weight=0.01
        )
