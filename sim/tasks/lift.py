"""lift: take a cube between the fingers, raise it 10 cm and hold it there for half a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget, nearest_yaw, towards, yaw_of
from .task import Task

HEIGHT = 0.10
HOVER = 0.06  # above the cube's centre, on the way to it
CARRY = HEIGHT + 0.025  # where the expert stops
CLOSING = 0.15  # of the gripper's way from open to closed: from there on it counts as closing


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
        p, c = self.world.bullet, self.world.client
        half = [size / 2] * 3
        shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=c)
        look = p.createVisualShape(
            p.GEOM_BOX, halfExtents=half, rgbaColor=[0.12, 0.32, 0.80, 1], physicsClientId=c
        )
        self.rest = size / 2
        self.cube = p.createMultiBody(
            xi["mass"],
            shape,
            look,
            [*xy, self.rest],
            p.getQuaternionFromEuler([0, 0, yaw]),
            physicsClientId=c,
        )
        p.changeDynamics(
            self.cube,
            -1,
            lateralFriction=xi["friction"],
            spinningFriction=0.002,
            rollingFriction=0.0005,
            physicsClientId=c,
        )

    def cube_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre `(3,)` and rotation `(3, 3)`."""
        p = self.world.bullet
        position, quaternion = p.getBasePositionAndOrientation(self.cube, physicsClientId=self.world.client)
        return np.array(position), np.array(p.getMatrixFromQuaternion(quaternion)).reshape(3, 3)

    def cube_yaw(self, rotation: np.ndarray) -> float:
        """Of the most horizontal face axis; a cube repeats every quarter turn."""
        axis = int(np.argmin(np.abs(rotation[2])))
        return float(np.arctan2(rotation[1, axis], rotation[0, axis]))

    def observe(self) -> np.ndarray:
        cube, rotation = self.cube_pose()
        yaw = self.cube_yaw(rotation)
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


class _Expert(Expert):
    def __init__(self, task: Lift, noise: float, mode: str | None) -> None:
        self.task, self.mode = task, mode
        super().__init__(task.arm, noise)

    def target(self) -> TipTarget:
        robot = self.arm.robot
        cube, cube_rotation = self.task.cube_pose()
        tip, tip_rotation = self.arm.tip()
        grip = self.arm.read().data[-1]
        turned = np.pi / 2 if self.mode == "across" else 0.0
        # the gripper's neutral yaw points along the arm; grasp with the face nearest to that
        neutral = float(np.arctan2(cube[1], cube[0])) + turned
        yaw = nearest_yaw(self.task.cube_yaw(cube_rotation), neutral, np.pi / 2)
        yaw = nearest_yaw(yaw, yaw_of(tip_rotation), np.pi)

        grasp = cube + np.array([0, 0, 0.003])  # a little above its centre: the fingertips clear the table
        holds = grip < robot.grip_held and np.linalg.norm(grasp - tip) < 0.6 * robot.object_size
        if holds:
            top = np.array([tip[0], tip[1], self.task.rest + CARRY])
            return TipTarget(towards(tip, top, 0.012), yaw, robot.grip_closed, rotation_weight=0.005)
        # come down with the fixed finger clear of the cube: the moving one will push the cube against it
        above = grasp - robot.grip_clearance * tip_rotation[:, 1] * [1, 1, 0]
        beside = float(np.linalg.norm((above - tip)[:2]))
        closing = robot.grip_open - grip > CLOSING * (robot.grip_open - robot.grip_closed)
        # a gripper that is closing does not stop for a tremor; two moving fingers, though, must stay centred
        slack = 2.0 if closing and robot.grip_clearance else 1.0
        if beside < slack * 0.009 and abs(grasp[2] - tip[2]) < slack * 0.005:
            return TipTarget(np.array([tip[0], tip[1], grasp[2]]), yaw, robot.grip_closed)
        # a funnel: the tip may only be as low as it is centred and turned
        turned_by = abs(yaw - yaw_of(tip_rotation))
        height = HOVER * np.clip(max((beside - 0.004) / 0.02, (turned_by - 0.1) / 0.3), 0, 1)
        return TipTarget(towards(tip, above + np.array([0, 0, height]), 0.012), yaw, robot.grip_open)
