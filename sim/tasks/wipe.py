"""wipe: take a spill off the table with a sponge, which wipes only where it is pressed, and not too hard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..arm import SimArm
from ..expert import Expert, TipTarget, nearest_yaw, towards, yaw_of
from ..world import World
from .task import Task
from .tools import hold_tool

SPOTS = 8  # of the spill
SPACING = 0.55  # from one to the next, in widths of the sponge's half
LEAST, MOST = 0.3, 10.0  # N: pressed less the sponge glides over a spot, pressed more it smears it
SOFT = 400.0  # N/m, of the sponge
PRESSED = 0.005  # m: by the expert, 2 N
AHEAD = 0.03  # m: from between the fingertips to the sponge's lower face
THICK = 0.016
COFFEE, YELLOW = (0.30, 0.18, 0.10), (0.92, 0.78, 0.18)
GONE = -1.0  # m, of height: where spots are that were wiped


class Wipe(Task):
    name = "wipe"
    instructions = ("wipe the spill off the table", "clean the table with the sponge", "wipe up the coffee")
    max_seconds = 25.0
    hold_s = 0.1  # what is wiped stays wiped
    randomisation: ClassVar = {
        "start": 0.05,
        "spread": 1.0,
        "bend": 0.6,
        "friction": 0.3,
        "soft": 1.0,
        "looks": 1.0,
    }
    names = (
        *(f"spot{i}.{what}" for i in range(SPOTS) for what in ("x", "y", "dirty")),
        *("sponge.x", "sponge.y", "sponge.z", "sponge.force"),
        *("next.x", "next.y"),
    )
    units = (*("m", "m", "1") * SPOTS, "m", "m", "m", "N", "m", "m")

    def __init__(self, world: World, arm: SimArm) -> None:
        super().__init__(world, arm)
        world.after_step.append(self._wipe)

    @property
    def half(self) -> float:
        """Of the sponge's width, m."""
        return 0.7 * self.robot.object_size

    @property
    def grip(self) -> float:
        """Around the sponge."""
        return self.robot.grip_held

    def start_pose(self, rng: np.random.Generator, xi: Mapping[str, float]) -> np.ndarray:
        q = super().start_pose(rng, xi)
        if self.robot.name == "so101":
            q[:4] += [0.0, -0.25, 0.1, 0.1]  # the sponge over the table
        q[-1] = self.grip
        return q

    def reset(self, rng: np.random.Generator, xi: Mapping[str, float]) -> None:
        p, c, looks = self.world.bullet, self.world.client, self.world.looks
        step = SPACING * 2 * self.half
        # a line that bends as it goes, about the middle of the workspace
        turns = rng.uniform(-np.pi, np.pi) + np.cumsum(xi["bend"] * rng.uniform(-1, 1, SPOTS))
        line = np.cumsum(step * np.column_stack([np.cos(turns), np.sin(turns)]), axis=0)
        line -= line.mean(0)
        room = np.maximum(self.robot.extent - np.abs(line).max(0), 0)
        centre = self.robot.centre + xi["spread"] * room * rng.uniform(-1, 1, 2)
        self.places = np.clip(
            centre + line, self.robot.centre - self.robot.extent, self.robot.centre + self.robot.extent
        )
        self.dirty = np.ones(SPOTS, bool)
        sizes = rng.uniform(0.3, 0.45, SPOTS) * self.half
        self.spots = []
        for i in range(SPOTS):
            look = p.createVisualShape(
                p.GEOM_CYLINDER,
                radius=sizes[i],
                length=0.0004,
                rgbaColor=looks.tinted(COFFEE, 0),
                physicsClientId=c,
            )
            self.spots.append(p.createMultiBody(0, -1, look, [*self.places[i], 0.0008], physicsClientId=c))
        halves = [self.half, self.half, THICK / 2]
        shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=halves, physicsClientId=c)
        look = p.createVisualShape(
            p.GEOM_BOX, halfExtents=halves, rgbaColor=looks.tinted(YELLOW, 1), physicsClientId=c
        )
        self.sponge = hold_tool(self.arm, shape, look, AHEAD - THICK / 2, xi["friction"])
        stiffness = SOFT * xi["soft"]
        p.changeDynamics(
            self.sponge,
            -1,
            contactStiffness=stiffness,
            contactDamping=0.05 * stiffness,
            physicsClientId=c,
        )

    def face(self) -> np.ndarray:
        """The middle of the sponge's lower face, `(3,)`."""
        tip, rotation = self.arm.tip()
        return tip + rotation[:, 2] * AHEAD

    def force(self) -> float:
        """That presses the sponge on the table, N."""
        p = self.world.bullet
        contacts = p.getContactPoints(self.sponge, self.world.table, physicsClientId=self.world.client)
        return float(sum(contact[9] for contact in contacts))

    def _wipe(self) -> None:
        """After each step of the physics."""
        if not self.dirty.any() or not LEAST < self.force() < MOST:
            return
        away = np.linalg.norm(self.places - self.face()[:2], axis=1)
        for i in np.flatnonzero(self.dirty & (away < 0.8 * self.half)):
            self.dirty[i] = False
            self.world.bullet.resetBasePositionAndOrientation(
                self.spots[i], [*self.places[i], GONE], [0, 0, 0, 1], physicsClientId=self.world.client
            )

    def next_spot(self) -> np.ndarray | None:
        """Of those that are left the nearest to the sponge, `(2,)`."""
        if not self.dirty.any():
            return None
        left = self.places[self.dirty]
        return left[np.argmin(np.linalg.norm(left - self.face()[:2], axis=1))]

    def observe(self) -> np.ndarray:
        face, spot = self.face(), self.next_spot()
        return np.concatenate(
            [
                np.column_stack([self.places, self.dirty]).ravel(),
                face,
                [self.force()],
                np.zeros(2) if spot is None else spot - face[:2],
            ]
        )

    def achieved(self) -> bool:
        return not self.dirty.any()

    def score(self) -> float:
        return float(1 - self.dirty.mean())

    def reward(self) -> float:
        """The score; a tenth of it for being at a spot."""
        spot = self.next_spot()
        if spot is None:
            return 1.0
        near = float(np.exp(-10 * np.linalg.norm(np.array([*spot, 0.0]) - self.face())))
        return 0.9 * self.score() + 0.1 * near

    def expert(self, noise: float, mode: str | None) -> Expert:
        return _Expert(self, noise)


class _Expert(Expert):
    """To the nearest spot that is left, coming down on the way."""

    def __init__(self, task: Wipe, noise: float) -> None:
        self.task = task
        super().__init__(task.arm, noise)

    def target(self) -> TipTarget:
        task = self.task
        tip, rotation = self.arm.tip()
        face, spot = task.face(), task.next_spot()
        if spot is None:
            goal = np.array([*face[:2], 0.03])
        else:
            beside = float(np.linalg.norm(spot - face[:2]))
            lift = np.clip((beside - 2.5 * task.half) / 0.03, 0, 1)  # not over what is clean
            goal = np.array([*spot, 0.02 * lift - PRESSED])
        pressed_too_hard = face[2] < 0 and task.force() > MOST / 2
        move = goal - face
        if pressed_too_hard:
            move[2] = 0.001
        neutral = float(np.arctan2(tip[1], tip[0])) if len(self.chain.moving) < 6 else 0.0
        yaw = nearest_yaw(neutral, yaw_of(rotation), np.pi)
        return TipTarget(towards(tip, tip + move, 0.008), yaw, task.grip, rotation_weight=0.05)
