"""Things around an arm that do not move, from the table `[safety.barrier]` of a robot's file, and how far the
arm's parts are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...drivers.arm import DeviceError
from ...drivers.config import parse, require_known, setting

SHAPES = (
    "give `radius` (a ball at `at`), `radius` and `to` (a capsule from `at` to there), or `size` (a box "
    "around `at`), in m"
)


@dataclass(frozen=True)
class ObstacleConfig:
    """The fields of one `[[safety.barrier.obstacles]]`; all in the base frame of its arm."""

    at: tuple
    """Its middle, or one end of a capsule's axis, m."""
    radius: float | None = setting(None, 0.001, 5, "m")
    to: tuple | None = None
    """The other end of a capsule's axis, m."""
    size: tuple | None = None
    """Of a box, along x, y and z, m."""
    yaw: float = setting(0.0, -7, 7, "rad")
    """By which a box is turned about z."""
    arm: str = ""
    """Which arm it is near to, where the robot has several."""


@dataclass(frozen=True, eq=False)
class Obstacle:
    """name: in messages. at: `(3,)` m, its middle. rotation: `(3, 3)`. size: `(3,)` m of a box, `(2,)` radius
    and length of a capsule, `(1,)` radius of a ball."""

    name: str
    at: np.ndarray
    rotation: np.ndarray
    size: np.ndarray

    def shape(self, coal: Any) -> Any:
        if len(self.size) == 3:
            return coal.Box(*self.size)
        return coal.Capsule(*self.size) if len(self.size) == 2 else coal.Sphere(*self.size)


def obstacles_of(
    tables: Sequence[Mapping[str, Any]], arms: Iterable[str], where: str
) -> dict[str, list[Obstacle]]:
    """By arm, "" where the robot has one. arms: of the robot. where: for messages. DeviceError: a table is
    wrong."""
    arms, found = list(arms), dict[str, list[Obstacle]]()
    for i, table in enumerate(tables, 1):
        here = f"{where}, obstacle {i}"
        c = parse(ObstacleConfig, table, here)
        if c.arm == "" and "" not in arms:
            raise DeviceError(f"{here} lacks arm: in the base frame of which arm ({', '.join(arms)}) is it?")
        if c.arm:
            require_known(f"arm for {here}:", c.arm, arms)
        found.setdefault(c.arm, []).append(_obstacle(c, f"obstacle {i}", here))
    return found


def _obstacle(c: ObstacleConfig, name: str, where: str) -> Obstacle:
    at = _three(c.at, f"{where}: at")
    if c.size is not None and c.radius is None and c.to is None:
        size = _three(c.size, f"{where}: size")
        if not (size > 0).all():
            raise DeviceError(f"{where}: size is {list(c.size)}, each side must be more than 0 m")
        cos, sin = np.cos(c.yaw), np.sin(c.yaw)
        return Obstacle(name, at, np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]), size)
    if c.radius is None or c.size is not None:
        raise DeviceError(f"{where} has no clear shape: {SHAPES}")
    if c.to is None:
        return Obstacle(name, at, np.eye(3), np.array([c.radius]))
    axis = _three(c.to, f"{where}: to") - at
    length = float(np.linalg.norm(axis))
    if length < 1e-6:
        raise DeviceError(f"{where}: a capsule goes from `at` to another place: leave `to` out for a ball")
    z = axis / length
    x = np.cross(z, np.eye(3)[int(np.argmin(np.abs(z)))])
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z], axis=1)
    return Obstacle(name, at + axis / 2, rotation, np.array([c.radius, length]))


def _three(values: Any, where: str) -> np.ndarray:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if len(values) != 3 or not numbers or not np.isfinite(array := np.array(values, np.float64)).all():
        raise DeviceError(f"{where} is {list(values)!r}, it must be three numbers, in m: x, y, z")
    return array


class Clearance:
    """The distances of an arm's parts from its obstacles, for one asker. geometry: of which the pairs are
    counted that `pairs` names, (part, obstacle). columns, present: which of the arm's joints each joint of
    the model is, and whether it is one.

    levers: `(K, J)`, by how much each joint brings a part nearer at most, m per rad or m. names: (part,
    obstacle) of each pair."""

    def __init__(
        self,
        pin: Any,
        model: Any,
        geometry: Any,
        pairs: Sequence[tuple[int, int]],
        columns: np.ndarray,
        present: np.ndarray,
        levers: np.ndarray,
    ) -> None:
        self.levers = levers
        self._pin, self._model, self._data = pin, model, model.createData()
        self._geometry = geometry.copy()
        self._geometry.removeAllCollisionPairs()
        for pair in pairs:
            self._geometry.addCollisionPair(pin.CollisionPair(*pair))
        self._found = self._geometry.createData()
        self._results = [self._found.distanceResults[k] for k in range(len(pairs))]
        objects = list(geometry.geometryObjects)
        self._moves = np.zeros((len(pairs), model.nv))  # whether a joint of the model moves the part
        for k, (part, _) in enumerate(pairs):
            for joint in list(model.supports[objects[part].parentJoint])[1:]:
                self._moves[k, model.joints[joint].idx_v] = 1.0
        self.names = [tuple(objects[i].name.rpartition("_")[0] for i in pair) for pair in pairs]
        self._columns, self._present = columns, present
        # (model's joints, arm's joints), 1 where the one is driven by the other
        self._drives = np.zeros((len(columns), levers.shape[1]))
        self._drives[np.arange(len(columns)), columns] = present

    def distances(self, q: np.ndarray) -> np.ndarray:
        """`(K,)` m of each pair with the arm at `q` `(J,)`; below zero by how deep a part is in an
        obstacle."""
        self._position = q[self._columns] * self._present
        self._pin.computeDistances(self._model, self._data, self._geometry, self._found, self._position)
        return np.array([result.min_distance for result in self._results])

    def gradients(self, pairs: list[int]) -> np.ndarray:
        """`(len(pairs), J)`, m per rad or m: how those distances change with each joint, where `distances`
        was last asked for."""
        self._pin.computeJointJacobians(self._model, self._data, self._position)
        normals = np.array([self._results[k].normal for k in pairs])  # from parts towards obstacles
        x, y, z = np.array([self._results[k].getNearestPoint1() for k in pairs]).T
        nx, ny, nz = normals.T
        pushes = np.stack([nx, ny, nz, y * nz - z * ny, z * nx - x * nz, x * ny - y * nx], axis=1)
        return -(pushes @ self._data.J * self._moves[pairs]) @ self._drives
