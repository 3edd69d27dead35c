"""push_t: push a T-shaped block onto its goal pose with a rod held in the gripper; at least 90 % must
overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..expert import Expert, TipTarget, nearest_yaw, towards, yaw_of
from . import t_block
from .task import Task
from .tools import hold_tool

THRESHOLD = 0.9
GOAL_YAW = np.pi / 4  # as in Push-T
HEIGHT = 0.02
ROD_RADIUS = 0.006
ROD = 0.035  # from between the fingertips down
FLOOR = 0.005  # of the rod's end over the table while pushing


class PushT(Task):
    name = "push_t"
    instructions = (
        "push the T onto its outline",
        "slide the grey T block to the green goal",
        "align the T with the goal",
    )
    max_seconds = 30.0
    hold_s = 0.5
    randomisation: ClassVar = {"start": 0.03, "spread": 0.03, "yaw": np.pi, "mass": 0.06, "friction": 0.5}
    modes = ("turn-first", "move-first")
    names = (
        *("block.x", "block.y", "block.cos", "block.sin", "goal.x", "goal.y", "goal.cos", "goal.sin"),
        *("tip.x", "tip.y", "tip.z"),
    )
    units = ("m", "m", "1", "1", "m", "m", "1", "1", "m", "m", "m")

    @property
    def unit(self) -> float:
        """Thickness of the bar in metres; the T is four of it wide and long."""
        return 0.8 * self.robot.object_size

    def start_pose(self, rng: np.random.Generator, xi: Mapping[str, float]) -> np.ndarray:
        q = super().start_pose(rng, xi)
        if self.robot.name == "so101":
            q[:4] += [0.0, -0.25, 0.1, 0.1]  # the rod's end above the block
        q[-1] = self.grip
        return q

    @property
    def grip(self) -> float:
        """Around the rod."""
        return self.robot.grip_held if self.robot.joints.units[-1] == "rad" else ROD_RADIUS

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        centre = self.robot.centre - [0.01, 0.0]
        self.goal = np.array([*centre, GOAL_YAW])
        while True:
            xy = centre + xi["spread"] * rng.uniform(-1, 1, 2)
            pose = np.array([*xy, xi["yaw"] * rng.uniform(-1, 1)])
            if t_block.overlap(self._in_units(pose), self._in_units(self.goal)) < 0.6:
                break
        self._build(pose, xi)

    def _build(self, pose: np.ndarray, xi: Mapping[str, float]) -> None:
        p, c, u = self.world.bullet, self.world.client, self.unit

        def boxes(make, z: float, **look):  # type: ignore[no-untyped-def]
            halves = [[*(half * u), z] for _, half in t_block.RECTANGLES]
            places = [[*(centre * u), 0.0] for centre, _ in t_block.RECTANGLES]
            kinds = [p.GEOM_BOX] * 2
            key = "collisionFramePositions" if make is p.createCollisionShapeArray else "visualFramePositions"
            return make(shapeTypes=kinds, halfExtents=halves, physicsClientId=c, **{key: places}, **look)

        shape = boxes(p.createCollisionShapeArray, HEIGHT / 2)
        look = boxes(p.createVisualShapeArray, HEIGHT / 2, rgbaColors=[[0.45, 0.47, 0.52, 1]] * 2)
        self.block = p.createMultiBody(
            xi["mass"],
            shape,
            look,
            [*pose[:2], HEIGHT / 2],
            p.getQuaternionFromEuler([0, 0, pose[2]]),
            physicsClientId=c,
        )
        p.changeDynamics(
            self.block,
            -1,
            lateralFriction=xi["friction"],
            linearDamping=0.5,
            angularDamping=0.5,
            physicsClientId=c,
        )
        outline = boxes(p.createVisualShapeArray, 0.0004, rgbaColors=[[0.35, 0.75, 0.40, 1]] * 2)
        p.createMultiBody(
            0,
            -1,
            outline,
            [*self.goal[:2], 0.0005],
            p.getQuaternionFromEuler([0, 0, self.goal[2]]),
            physicsClientId=c,
        )
        self._hold_rod()

    def _hold_rod(self) -> None:
        """A rod of 12 mm."""
        p, c = self.world.bullet, self.world.client
        length = ROD + 0.01
        shape = p.createCollisionShape(p.GEOM_CYLINDER, radius=ROD_RADIUS, height=length, physicsClientId=c)
        look = p.createVisualShape(
            p.GEOM_CYLINDER, radius=ROD_RADIUS, length=length, rgbaColor=[0.8, 0.3, 0.2, 1], physicsClientId=c
        )
        hold_tool(self.arm, shape, look, ROD - length / 2, friction=0.1)

    def block_pose(self) -> np.ndarray:
        """(x, y, yaw)."""
        p = self.world.bullet
        position, quaternion = p.getBasePositionAndOrientation(self.block, physicsClientId=self.world.client)
        return np.array([position[0], position[1], p.getEulerFromQuaternion(quaternion)[2]])

    def observe(self) -> np.ndarray:
        block, goal = self.block_pose(), self.goal
        return np.concatenate(
            [
                *(np.array([*pose[:2], np.cos(pose[2]), np.sin(pose[2])]) for pose in (block, goal)),
                self.arm.tip()[0],
            ]
        )

    def score(self) -> float:
        return t_block.overlap(self._in_units(self.block_pose()), self._in_units(self.goal))

    def achieved(self) -> bool:
        return self.score() >= THRESHOLD

    def reward(self) -> float:
        return min(self.score() / THRESHOLD, 1.0)

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise, mode)

    def _in_units(self, pose: np.ndarray) -> np.ndarray:
        return np.array([pose[0] / self.unit, pose[1] / self.unit, pose[2]])


class _Expert(Expert):
    """One push after another, each at the contact whose predicted motion brings the block nearest to its
    goal.

    Prediction: quasi-static pushing under an ellipsoidal limit surface (Goyal et al. 1991; Lynch and Mason
    1996) with a force along the contact normal: the block's twist is proportional to (n, (r × n) / c²), c the
    ratio of greatest friction torque to greatest friction force. A push goes on while it still helps, by what
    is observed."""

    def __init__(self, task: PushT, noise: float, mode: str | None) -> None:
        self.task = task
        u = task.unit
        clearance = ROD_RADIUS / u
        edges = t_block.contacts(clearance + 0.3)
        self.points, self.normals = edges.points * u, edges.normals
        self.c = 1.35 * u  # mean distance of the T's area from its centre
        # how many metres a radian of error is worth: more to turn first, less to move first
        self.radian = {None: 1.3 * u, "turn-first": 2.2 * u, "move-first": 0.9 * u}[mode]
        super().__init__(task.arm, noise)

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.contact: int | None = None
        self.pushing = False

    def error(self) -> np.ndarray:
        """Goal minus block: metres, metres, and radians as metres."""
        block, goal = self.task.block_pose(), self.task.goal
        turn = (goal[2] - block[2] + np.pi) % (2 * np.pi) - np.pi
        return np.array([*(goal[:2] - block[:2]), turn * self.radian])

    def motions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every contact: its point and inward normal in the world, and the block's motion per metre of
        push."""
        pose = self.task.block_pose()
        turn = t_block.rotation2(pose[2])
        r, n = self.points @ turn.T, self.normals @ turn.T
        moment = r[:, 0] * n[:, 1] - r[:, 1] * n[:, 0]
        twist = np.column_stack([n, moment / self.c**2 * self.radian])
        return pose[:2] + r, n, twist / (1 + (moment / self.c) ** 2)[:, None]

    def choose(self, tip: np.ndarray) -> int:
        points, normals, motion = self.motions()
        e = self.error()
        length = np.clip((motion @ e) / (motion**2).sum(1), 0, 0.06)
        after = np.linalg.norm(e - length[:, None] * motion, axis=1)
        start = points - normals * (ROD_RADIUS + 0.006)
        # a detour must be worth it; and the arm must get there
        far = np.linalg.norm(start - tip[:2], axis=1)
        reach = np.linalg.norm(start - self.task.robot.centre, axis=1) / (5 * self.task.unit)
        return int(np.argmin(after + 0.01 * far + 0.02 * np.maximum(reach - 1, 0)))

    def target(self) -> TipTarget:
        task = self.task
        tip, rotation = self.arm.tip()
        rod = tip + rotation[:, 2] * ROD
        low, high = FLOOR + ROD, HEIGHT + 0.012 + ROD
        e = self.error()
        points, normals, motion = self.motions()

        if self.contact is None:
            self.contact, self.pushing = self.choose(rod), False
        point, normal = points[self.contact], normals[self.contact]
        start = point - normal * (ROD_RADIUS + 0.006)
        solved = task.score() > 0.97
        if self.pushing:
            gain = float(motion[self.contact] @ e)
            aside, behind = rod[:2] - point, float((rod[:2] - point) @ normal)
            off = abs(float(normal[0] * aside[1] - normal[1] * aside[0]))
            if gain <= 0 or off > 0.012 or behind > ROD_RADIUS or solved:
                self.contact, self.pushing = None, False
                return self._at(rod[:2], high, tip, rod, 0.012)
            # near the end go slowly: the block stops where the rod stops
            remaining = gain / float(motion[self.contact] @ motion[self.contact])
            ahead = point + normal * np.clip(remaining, 0.0015, 0.004) - normal * ROD_RADIUS
            slide = rod[:2] + normal * 0.005 if behind < -ROD_RADIUS - 0.003 else ahead
            return self._at(slide, low, tip, rod, 0.006)
        beside = float(np.linalg.norm(rod[:2] - start))
        if solved:
            return self._at(rod[:2], high, tip, rod, 0.012)
        if beside > 0.004 and rod[2] < HEIGHT + 0.006:
            return self._at(rod[:2], high, tip, rod, 0.015)
        if beside > 0.004:
            return self._at(start, high, tip, rod, 0.015)
        if rod[2] > FLOOR + 0.004:
            return self._at(start, low, tip, rod, 0.012)
        self.pushing = True
        return self._at(start, low, tip, rod, 0.012)

    def _at(self, xy: np.ndarray, height: float, tip: np.ndarray, rod: np.ndarray, step: float) -> TipTarget:
        """The rod's end to `xy`; `height` is the tip's. Pointing down as far as the arm can."""
        goal = np.array([*(xy - rod[:2] + tip[:2]), height])
        neutral = float(np.arctan2(goal[1], goal[0])) if len(self.chain.moving) < 6 else 0.0
        yaw = nearest_yaw(neutral, yaw_of(self.arm.tip()[1]), np.pi)
        return TipTarget(towards(tip, goal, step), yaw, self.task.grip, rotation_weight=0.03)
