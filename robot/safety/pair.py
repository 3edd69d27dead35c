"""Two arms, and how near they come to each other.

Either may stop at any time, or lag behind. So what one may do is held against all that the other may,
whenever it does that: from where that one was sent, along its checked stop, to rest. Ways are cut in pieces
until on none of them a part can move further than it is away: joints go only so far there, and move a part at
most by its lever (after F. Schwarzer, M. Saha and J.-C. Latombe, "Adaptive dynamic collision checking for
single and multiple articulated robots in complex environments", IEEE Transactions on Robotics 21, 2005)."""

# ruff: noqa: B905  `strict` is a third of what a loop over five joints costs

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .body import INEXACT_M, Body
from .limits import Safety
from .sweep import levers_of, radius_of, rows

OTHER = "other arm"
# An arm passes the other one so much further away than it must keep, or it could not be shown that it does;
# and where the other is in its way it comes to rest further away still: a straight line away from there may
# lead nearer at first.
PASSES_M, RESTS_M = 0.005, 0.01
# at pieces of two ways, until they count as too near; and for all that one arm tries in a tick
MOST_LOOKS, LOOKS_PER_TICK = 16, 40
FEW, AGAIN = 6, 10  # where so many pairs of parts are near, all others are looked at after so many questions
BASES_M = 0.05  # between two bases, at least
TINY_S = 1e-3  # a part of a way that is not divided any more


@dataclass(slots=True)
class Way:
    """What an arm does until it rests. pose: `(J,)`, t seconds from now; from `start_s` (0, or one tick ago)
    over `tick_s`, where its next command is, to `end_s`. rest: the last. low, high: of the poses where it
    starts, now, after the tick, and at rest, the least and the most of each joint."""

    pose: Callable[[float], list[float]]
    start_s: float
    tick_s: float
    end_s: float
    rest: list[float]
    low: list[float]
    high: list[float]
    known: dict[float, list[float]] = field(default_factory=dict)

    def at(self, t: float) -> list[float]:
        q = self.known.get(t)
        if q is None:
            q = self.known[t] = self.pose(t)
        return q

    def pieces(self) -> list[tuple[float, float]]:
        """From one corner to the next, s."""
        at = sorted({self.start_s, 0.0, min(self.tick_s, self.end_s), self.end_s})
        return list(pairwise(at)) or [(0.0, 0.0)]


class Pair:
    """names: of the two arms, for messages. bodies: have a `base`. columns: by arm, which of the joints in
    `safety` are its. looks: at pieces of ways that it has left for one arm in this tick.

    tight: the pairs of parts that were nearer when the arms began, and are still; while there are any,
    `settle` is due after each step."""

    def __init__(
        self,
        names: tuple[str, str],
        bodies: tuple[Body, Body],
        columns: tuple[Sequence[int], Sequence[int]],
        safety: Safety,
    ) -> None:
        import pinocchio as pin  # pyright: ignore[reportMissingImports]

        self.names, self._pin = names, pin
        self.model, self._geometry = pin.Model(), pin.GeometryModel()
        assert bodies[0].base is not None
        assert bodies[1].base is not None
        self._between = math.dist(bodies[0].base[:3], bodies[1].base[:3])
        ours: list[int] = []  # of each joint of the model, which of both arms' it is
        sizes, joints = [], 0
        for name, body in zip(names, bodies):
            assert body.base is not None
            x, y, z, yaw = body.base
            there = pin.SE3(pin.utils.rotate("z", yaw), np.array([x, y, z]))
            ids, own = [0], body.model
            for j in range(1, own.njoints):
                parent, placement = own.parents[j], own.jointPlacements[j]
                if parent == 0:
                    placement = there * placement
                ids.append(
                    self.model.addJoint(ids[parent], own.joints[j], placement, f"{name}.{own.names[j]}")
                )
                column = body.columns[j - 1]
                ours.append(column + joints if column >= 0 else -1)
            for part in body.parts:
                placement = part.placement if part.parentJoint else there * part.placement
                part = pin.GeometryObject(part.name, ids[part.parentJoint], placement, part.geometry)
                self._geometry.addGeometryObject(part)
            sizes.append(len(body.parts))
            joints += len(body.names)
        self._n = len(bodies[0].names)
        self._columns = np.array([max(c, 0) for c in ours])
        self._present = np.array([c >= 0 for c in ours], float)
        self._data = self.model.createData()
        parts = list(self._geometry.geometryObjects)
        pairs = [(a, sizes[0] + b) for a in range(sizes[0]) for b in range(sizes[1])]
        for pair in pairs:
            self._geometry.addCollisionPair(pin.CollisionPair(*pair))
        things = [
            levers_of(self.model, p.parentJoint, p.placement.translation, radius_of(p.geometry))
            for p in parts
        ]
        self._levers, _ = rows([things[a] | things[b] for a, b in pairs], ours, joints)
        self._rows = self._levers.tolist()
        self._apart = self._geometry.createData()
        for request in self._apart.distanceRequests:
            request.enable_signed_distance = False
        self._distances = [self._apart.distanceResults[k] for k in range(len(pairs))]
        self._keeps = safety.arm_distance
        self._still = [k for k, (a, b) in enumerate(pairs) if not things[a] and not things[b]]  # of the bases
        # how far parts get beyond the straight way between two poses: by arm, m per s² while it accelerates,
        # and m of a stop, whose joints may turn round once within A³/J²
        a, jerk = ([x[list(c)] for c in columns] for x in (safety.acceleration, safety.jerk))
        stops = [0.1 * x**3 / y**2 for x, y in zip(a, jerk)]
        by_arm = self._levers[:, : self._n], self._levers[:, self._n :]
        self._bulges = [float((rows @ x).max()) / 8 for rows, x in zip(by_arm, a)]
        self._stop_bulges = [float((rows @ x).max()) for rows, x in zip(by_arm, stops)]
        self.tight: set[int] = set()
        self.looks = LOOKS_PER_TICK
        self._forget()

    def _forget(self) -> None:
        n = len(self._distances)
        self._keep, self._pass, self._rest = (np.full(n, self._keeps + m) for m in (0.0, PASSES_M, RESTS_M))
        for least in (self._keep, self._pass, self._rest):
            least[self._still] = -math.inf
        self.tight.clear()
        self._free: np.ndarray | None = None  # how far all was, when the arms were at `_free_at`
        self._free_at: list[float] = []
        self._not_again = 0

    def begin(self, first: list[float], second: list[float]) -> tuple[str, ...]:
        """The arms stand at these poses `(J,)`. What is too near there may not come nearer until it is far
        enough. Returns what is too near, in words."""
        self._forget()
        distances = self._look(first, second)
        for k in np.flatnonzero(distances < self._pass).tolist():
            self.tight.add(k)
            least = float(distances[k]) - INEXACT_M
            self._pass[k] = self._rest[k] = least if least > 0 else -math.inf
            self._keep[k] = least / 2 if least > 0 else -math.inf
        near = sorted(self.tight, key=lambda k: distances[k])
        return tuple(self.text(k, distances[k]) for k in near if distances[k] < self._keeps)

    def settle(self, first: list[float], second: list[float]) -> None:
        """The arms were sent to these poses: what was too near and is far enough now counts from here on."""
        distances = self._look(first, second)
        for k in tuple(self.tight):
            if distances[k] >= self._keeps + PASSES_M:
                self.tight.discard(k)
                self._keep[k], self._pass[k] = self._keeps, self._keeps + PASSES_M
                self._rest[k], self._free = self._keeps + RESTS_M, None

    def distances(self, first: Sequence[float], second: Sequence[float]) -> np.ndarray:
        """How far each part of one is from each of the other at these poses, `(K,)` m; 0: it is in it."""
        return np.maximum(self._look(first, second), 0.0)

    def nearest(self, first: Sequence[float], second: Sequence[float]) -> tuple[float, str]:
        """The least of `distances`, m, and between what that is, in words."""
        distances = self.distances(first, second)
        k = int(np.argmin(distances))
        return float(distances[k]), self.text(k, distances[k])

    def overlaps(self) -> bool:
        """Whether one base is in the other, or as good as there: not every shape has one."""
        middle = [0.0] * self._levers.shape[1]
        distances = self.distances(middle[: self._n], middle[self._n :])
        return self._between < BASES_M or bool((distances[self._still] <= 0).any())

    def text(self, k: int, distance: float) -> str:
        objects, pair = self._geometry.geometryObjects, self._geometry.collisionPairs[k]
        first, second = (objects[i].name.rpartition("_")[0] for i in (pair.first, pair.second))
        how = f"{distance:.3f} m from" if distance > 0 else "in"
        return f"{first} of {self.names[0]} {how} {second} of {self.names[1]}"

    def may(self, first: list[float], second: list[float]) -> tuple[bool, bool]:
        """Whether one arm may pass the other at these poses, and whether it may come to rest there."""
        pose = [*first, *second]
        near = self._near(pose, pose, 0.0)
        if not near:
            return True, True
        self._place(first, second)
        distances = [(self._distance(k), k) for k in near]
        return all(d >= self._pass[k] for d, k in distances), all(d >= self._rest[k] for d, k in distances)

    def stay_apart(self, first: Way, second: Way, passes: bool) -> bool:
        """Whether no part of one comes too near to one of the other on these ways, at whatever time each
        arm is where on its own. passes: an arm is on its way to where it may come to rest."""
        bulge = 0.0
        for way, most, stop in (
            (first, self._bulges[0], self._stop_bulges[0]),
            (second, self._bulges[1], self._stop_bulges[1]),
        ):
            bulge += max(most * way.tick_s * way.tick_s, stop)
        near = self._near([*first.low, *second.low], [*first.high, *second.high], bulge)
        if not near:
            return True
        ends = self._pass if passes else self._rest
        self._place(first.rest, second.rest)
        for k in near:
            if self._distance(k) < ends[k]:
                return False
        between = [k for k, over in near.items() if over > self._rest[k] - self._keep[k]]
        return not between or self._stay_apart_between(first, second, between)

    def _near(self, low: list[float], high: list[float], bulge: float) -> dict[int, float]:
        """The pairs of parts that may be nearer than where an arm may rest, while joints are in this range
        and parts within `bulge` m of where that puts them; and by how much, m."""
        if self._free is not None:
            ways = [max(h - m, m - x) for x, h, m in zip(low, high, self._free_at)]
            over = self._levers.dot(ways) - self._free
            near = np.flatnonzero(over > -bulge).tolist()
            if not near:
                return {}
            if self._not_again and len(near) <= FEW:  # a new look would not find them further apart
                self._not_again -= 1
                return {k: float(over[k]) + bulge for k in near}
        self._free_at = [0.5 * (x + h) for x, h in zip(low, high)]
        self._free = self._look(self._free_at[: self._n], self._free_at[self._n :]) - (self._rest + INEXACT_M)
        over = self._levers.dot([h - m for h, m in zip(high, self._free_at)]) - self._free
        near = np.flatnonzero(over > -bulge).tolist()
        self._not_again = AGAIN if near else 0
        return {k: float(over[k]) + bulge for k in near}

    def _stay_apart_between(self, first: Way, second: Way, near: list[int]) -> bool:
        """As `stay_apart`, for these pairs of parts: the ways are cut in pieces until each is so short that
        nothing on it can be nearer than it should."""
        # what is looked at first is the last: there they are nearest, mostly
        pieces = [(a, b, near) for a in first.pieces() for b in second.pieces()]
        for _ in range(min(MOST_LOOKS, self.looks)):
            self.looks -= 1
            a, b, ks = pieces.pop()
            one, one_way, one_bulge = self._piece(0, first, a)
            two, two_way, two_bulge = self._piece(1, second, b)
            self._place(one, two)
            still_near: list[int] = []
            longest = 0.0, 0.0
            for k in ks:
                row = self._rows[k]
                reach_1 = math.sumprod(row[: self._n], one_way) + one_bulge
                reach_2 = math.sumprod(row[self._n :], two_way) + two_bulge
                free = self._distance(k) - float(self._keep[k]) - INEXACT_M
                if free < reach_1 + reach_2:
                    if free < 0 and reach_1 + reach_2 < PASSES_M:
                        return False
                    still_near.append(k)
                    longest = max(longest, (reach_1, reach_2), key=sum)
            if still_near:
                whole = a if longest[0] >= longest[1] else b
                if whole[1] - whole[0] < TINY_S:
                    return False
                if whole is a:
                    pieces += [(half, b, still_near) for half in _halves(a)]
                else:
                    pieces += [(a, half, still_near) for half in _halves(b)]
            elif not pieces:
                return True
        return False

    def _piece(self, arm: int, way: Way, span: tuple[float, float]) -> tuple[list[float], list[float], float]:
        """Of a piece of a way: its middle, how far each joint gets from there, and how far parts get beyond
        that, m."""
        start, end = way.at(span[0]), way.at(span[1])
        length = span[1] - span[0]
        bulge = self._bulges[arm] * length * length
        if span[0] >= way.tick_s:
            bulge = min(bulge, self._stop_bulges[arm])
        return (
            [0.5 * (x + y) for x, y in zip(start, end)],
            [0.5 * abs(y - x) for x, y in zip(start, end)],
            bulge,
        )

    def _place(self, first: Sequence[float], second: Sequence[float]) -> None:
        position = np.array([*first, *second])[self._columns] * self._present
        self._pin.updateGeometryPlacements(self.model, self._data, self._geometry, self._apart, position)

    def _distance(self, k: int) -> float:
        return self._pin.computeDistance(self._geometry, self._apart, k).min_distance

    def _look(self, first: Sequence[float], second: Sequence[float]) -> np.ndarray:
        position = np.array([*first, *second])[self._columns] * self._present
        self._pin.computeDistances(self.model, self._data, self._geometry, self._apart, position)
        return np.array([result.min_distance for result in self._distances])


def _halves(span: tuple[float, float]) -> list[tuple[float, float]]:
    middle = 0.5 * (span[0] + span[1])
    return [(span[0], middle), (middle, span[1])]
