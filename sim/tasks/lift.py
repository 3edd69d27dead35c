"""lift: take a cube between the fingers, raise it 10 cm and hold it there for half a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget, towards
from .boxes import BLUE, face_yaw, make_box
from .picking import Picking
from .task import Task

HEIGHT = 0.10
CARRY = HEIGHT + 0.025  # where the expert stops


class Lift(Task):
    name = "lift"
    instructions = ("lift the blue cube", "pick up the blue cube", "raise the blue cube off the table")
    max_seconds = 10.0
    hold_s = 0.5
    randomisation: ClassVar = {"start": 0.08, "spread": 1.0, "yaw": 0.6, "mass": 0.03, "friction": 0.9}
    modes = ("near", "across")  # grasp yaw: the one nearest to the gripper's, or a quarter turn from it
    names = (
        *("cube.x", "cube.y", "cube.z", "cube.cos4yaw", "cube.sin4yaw"),
        *("tip.x", "tip.y", "tip.z", "tip_to_cube.x", "tip_to_cube.y", "tip_to_cube.z"),
    )
    units = ("m", "m", "m", "1", "1", "m", "m", "m", "m", "m", "m")

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        size = self.robot.object_size
        xy = self.robot.centre + xi["spread"] * self.robot.extent * rng.uniform(-1, 1, 2)
        yaw = xi["yaw"] * rng.uniform(-1, 1)
        self.rest = size / 2
        blue = self.world.looks.tinted(BLUE, 0)
        self.box = make_box(self.world, [size / 2] * 3, xy, yaw, blue, xi["mass"], xi["friction"])
        self.cube = self.box.body

    def cube_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre `(3,)` and rotation `(3, 3)`."""
        return self.box.pose()

    def observe(self) -> np.ndarray:
        cube, rotation = self.cube_pose()
        yaw = face_yaw(rotation)
        tip, _ = self.arm.tip()
        return np.concatenate([cube, [np.cos(4 * yaw), np.sin(4 * yaw)], tip, cube - tip])

    def raised(self) -> float:
        return float(self.cube_pose()[0][2] - self.rest)

    def achieved(self) -> bool:
        return self.raised() >= HEIGHT

    def score(self) -> float:
        return float(np.clip(self.raised() / HEIGHT, 0, 1))

    def reward(self) -> float:
        """A third for being at the cube, two for raising it."""
        near = np.exp(-10 * np.linalg.norm(self.cube_pose()[0] - self.arm.tip()[0]))
        return float(near / 3 + 2 * self.score() / 3) if not self.achieved() else 1.0

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise, mode)


class _Expert(Picking):
    def __init__(self, task: Lift, noise: float, mode: str | None) -> None:
        self.task = task
        super().__init__(task.arm, noise, turned=np.pi / 2 if mode == "across" else 0.0)

    def target(self) -> TipTarget:
        if not self.holds(self.task.box):
            return self.take(self.task.box)
        tip, _ = self.arm.tip()
        top = np.array([tip[0], tip[1], self.task.rest + CARRY])
        yaw = self.yaw_to(self.task.box)
        return TipTarget(towards(tip, top, 0.012), yaw, self.arm.robot.grip_closed, rotation_weight=0.005)
