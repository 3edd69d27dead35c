"""Boxes that a gripper takes: made, placed, and seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arm import SimArm
from ..world import World

RED, GREEN, BLUE = (0.80, 0.14, 0.12), (0.16, 0.58, 0.22), (0.12, 0.32, 0.80)
WOOD = (0.62, 0.45, 0.28)


@dataclass(frozen=True)
class Box:
    """A box that stands upright on a square base, in a world until that is cleared. half: `(3,)` m."""

    world: World
    body: int
    half: np.ndarray

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre `(3,)` and rotation `(3, 3)`."""
        p = self.world.bullet
        position, quaternion = p.getBasePositionAndOrientation(self.body, physicsClientId=self.world.client)
        return np.array(position), np.array(p.getMatrixFromQuaternion(quaternion)).reshape(3, 3)

    @property
    def position(self) -> np.ndarray:
        return self.pose()[0]

    @property
    def yaw(self) -> float:
        return face_yaw(self.pose()[1])

    def features(self) -> list[float]:
        """What `feature_names` says."""
        position, rotation = self.pose()
        yaw = face_yaw(rotation)
        return [*position, np.cos(4 * yaw), np.sin(4 * yaw)]

    def is_touched(self, arm: SimArm) -> bool:
        """By any part of the arm."""
        p = self.world.bullet
        return bool(p.getContactPoints(self.body, arm.body, physicsClientId=self.world.client))


def feature_names(name: str) -> tuple[str, ...]:
    """Of `Box.features`; the yaw as a cube has it, which repeats every quarter turn."""
    return (f"{name}.x", f"{name}.y", f"{name}.z", f"{name}.cos4yaw", f"{name}.sin4yaw")


FEATURE_UNITS = ("m", "m", "m", "1", "1")


def face_yaw(rotation: np.ndarray) -> float:
    """Yaw of the most horizontal face axis, of which a cube has one every quarter turn."""
    axis = int(np.argmin(np.abs(rotation[2])))
    return float(np.arctan2(rotation[1, axis], rotation[0, axis]))


def make_box(
    world: World,
    half: Sequence[float] | np.ndarray,
    xy: np.ndarray,
    yaw: float,
    colour: Sequence[float],
    mass: float,
    friction: float,
) -> Box:
    """One that stands on the table. half: `(3,)` m; colour: RGBA; mass: kg."""
    p, c = world.bullet, world.client
    half = [float(v) for v in half]
    shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=c)
    look = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=list(colour), physicsClientId=c)
    turn = p.getQuaternionFromEuler([0, 0, yaw])
    body = p.createMultiBody(mass, shape, look, [*xy, half[2]], turn, physicsClientId=c)
    p.changeDynamics(
        body,
        -1,
        lateralFriction=friction,
        spinningFriction=0.002,
        rollingFriction=0.0005,
        physicsClientId=c,
    )
    return Box(world, body, np.array(half))


def make_fixture(
    world: World,
    halves: Sequence[Sequence[float]],
    centres: Sequence[Sequence[float]],
    xy: np.ndarray,
    yaw: float,
    colour: Sequence[float],
) -> int:
    """A body of boxes that is screwed to the table. halves, centres: `(n, 3)` m, the centres from the point
    `xy` of the table."""
    p, c = world.bullet, world.client
    kinds = [p.GEOM_BOX] * len(halves)
    shape = p.createCollisionShapeArray(
        shapeTypes=kinds, halfExtents=halves, collisionFramePositions=centres, physicsClientId=c
    )
    look = p.createVisualShapeArray(
        shapeTypes=kinds,
        halfExtents=halves,
        visualFramePositions=centres,
        rgbaColors=[list(colour)] * len(halves),
        physicsClientId=c,
    )
    turn = p.getQuaternionFromEuler([0, 0, yaw])
    body = p.createMultiBody(0, shape, look, [*xy, 0.0], turn, physicsClientId=c)
    p.changeDynamics(body, -1, lateralFriction=0.4, physicsClientId=c)
    return body


def scattered(
    rng: np.random.Generator,
    n: int,
    centre: np.ndarray,
    extent: np.ndarray,
    apart: float,
    task: str,
) -> np.ndarray:
    """`(n, 2)` points within `extent` of `centre`, each `apart` m from every other. ValueError where there is
    hardly room for them."""
    for _ in range(2000):
        points = centre + extent * rng.uniform(-1, 1, (n, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(n)
        if gaps.min() >= apart:
            return points
    raise ValueError(f"{task}: this randomisation has no room for {n} things {apart:.3f} m apart; widen it")
