"""One arm: its next motion, and whether that and the stop after it are free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_, mul

import numpy as np

from ...drivers.arm import Joints
from .body import Body
from .limits import Safety
from .mover import Line, Motion
from .part import Part

POSITION = "position"
APART_M = 0.02  # between two poses that are checked for touching no part moves further
MOST_CHECKS = 12  # poses of one motion
TICKS_BLOCKED = 20  # until it is tried again whether a line is still blocked: fingers may have closed
TICKS_BETWEEN = 5  # two looks at how far all is apart, where that was too near
FURTHEST = 12  # poses ahead that are looked at for what blocks a line
HALVINGS = 5


@dataclass(slots=True)
class _Seen:
    """Of a line, from `low` to `high`: nothing is touched there while the fingers are so. step: how far two
    looks may be apart."""

    line: Line
    fingers: list[list[float]]
    low: float
    high: float
    step: float


class ArmFilter:
    """columns: its joints, of the robot's; grippers: those of them that are its gripper's. body: None where
    its shape is not known."""

    def __init__(
        self, joints: Joints, safety: Safety, columns: list[int], grippers: list[int], body: Body | None
    ) -> None:
        self.body, self.n = body, len(columns)
        first = columns[0]
        self.first = first  # an arm's joints follow one another
        arm = [j for j in columns if j not in grippers]
        self.parts = [Part(joints, safety, group) for group in (arm, *([g] for g in grippers)) if group]
        self.places = [[j - first for j in part.columns] for part in self.parts]
        order = [i for places in self.places for i in places]
        self._in_order, self._order = order == sorted(order), [order.index(i) for i in range(self.n)]
        self._apart: np.ndarray | None = None  # how far all was, when the arm was at `_apart_at`
        self._apart_at, self._not_again = [0.0] * self.n, 0
        self._blocked: tuple[list[float], str] | None = None  # how far it may go to what was asked, and why
        self._since_blocked = 0
        self._seen: _Seen | None = None

    def reset(self, q: list[float]) -> tuple[str, ...]:
        for part in self.parts:
            part.reset([q[j] for j in part.columns])
        self._apart, self._not_again, self._blocked, self._seen = None, 0, None, None
        return () if self.body is None else self.body.begin(q[self.first : self.first + self.n])

    def halt(self, dt: float) -> None:
        """Along the stops that were checked."""
        self._take([part.stop for part in self.parts], dt)
        for part in self.parts:
            part.forget()

    def step(self, target: Sequence[float], dt: float) -> tuple[bool, str]:
        """Whether the arm moves on towards what was asked, and what blocks it, or ""."""
        arm = self.parts[0]
        same = True
        for part in self.parts:
            part.ask(target)
            same = same and part.asked == part.asked_before
        stops = [part.stop for part in self.parts]
        fingers = [part.plan(dt) for part in self.parts[1:]]
        if same and self._blocked is not None and self._since_blocked < TICKS_BLOCKED:
            self._since_blocked += 1
            goal, why = self._blocked
            rests = arm.mover.rests and arm.stop.end == goal
            motion = arm.stop if rests else arm.mover.plan(goal, None, dt, dt)
            motions = [motion, *fingers]
            if motion is not None and (all(map(is_, motions, stops)) or not self._fault(motions, dt)):
                self._take(motions, dt)
                return not rests, why
        self._blocked = None
        wanted = [arm.plan(dt), *fingers]
        if all(map(is_, wanted, stops)) and all(part.mover.rests for part in self.parts):
            return True, ""  # each is where it should be
        why = self._fault(wanted, dt)
        if not why:
            self._take(wanted, dt)
            return True, ""
        still = [wanted[0], *stops[1:]]
        if not all(map(is_, fingers, stops[1:])) and not self._fault(still, dt):
            self._take(still, dt)
            return True, why
        # the arm comes to rest before what blocks it; on the way there its stop is on the line, too
        goal, blocked = self._free_goal(stops)
        stays = arm.mover.rests and goal is arm.stop.end
        nearer = arm.stop if stays else arm.mover.plan(goal, None, dt, dt) or arm.stop
        for motions in ([nearer, *fingers], [nearer, *stops[1:]], [stops[0], *fingers]):
            if not self._fault(motions, dt):
                self._take(motions, dt)
                if blocked and motions[0] is nearer:
                    self._blocked, self._since_blocked = (goal, blocked), 0
                return any(abs(v) > 1e-6 for v in arm.mover.state.v), blocked or why
        self._take(stops, dt)
        return False, blocked or why

    def _take(self, motions: Sequence[Motion], dt: float) -> None:
        for part, motion in zip(self.parts, motions, strict=True):
            part.take(motion, dt)
        if self.body is not None and self.body.tight:
            self.body.settle(self._pose([part.mover.state.q for part in self.parts]))

    def _pose(self, by_part: Sequence[list[float]]) -> list[float]:
        pose = [x for q in by_part for x in q]
        return pose if self._in_order else [pose[i] for i in self._order]

    def _fault(self, motions: Sequence[Motion], dt: float) -> str:
        """Why the arm must not go along `motions` for a tick, or ""."""
        nexts = [motion.at(dt) for motion in motions]
        for part, motion, q in zip(self.parts, motions, nexts, strict=True):
            if not (part.within(q) and part.within(motion.end)):
                return POSITION
        body = self.body
        if body is None:
            return ""
        on_line = motions[0].line is not None and not body.tight and all(m.halt is None for m in motions[1:])
        if on_line and self._was_seen(motions[0], dt, nexts[1:]):
            return ""
        now = self._pose([part.mover.state.q for part in self.parts])
        then, end = self._pose(nexts), self._pose([motion.end for motion in motions])
        if self._stays_apart(body, now, then, end):
            return ""
        if on_line:
            return self._fault_on_line(body, motions[0], dt, nexts[1:])
        ways = [abs(y - x) + abs(z - y) for x, y, z in zip(now, then, end, strict=True)]
        longest = max([motion.duration for motion in motions])
        n = min(MOST_CHECKS, 1 + int(_sweep(body, ways) / APART_M))
        for k in range(n, 0, -1):  # the end is the most likely to be in something
            t = longest * k / n
            if why := body.fault(self._pose([motion.at(t) for motion in motions])):
                return why
        return body.fault(then) if longest > dt * n else ""

    def _seen_of(self, line: Line | None, fingers: list[list[float]]) -> _Seen | None:
        """What was looked at, where it was of this line and with the fingers here."""
        seen = self._seen
        return seen if seen is not None and seen.line is line and seen.fingers == fingers else None

    def _was_seen(self, motion: Motion, dt: float, fingers: list[list[float]]) -> bool:
        """Whether all of a motion on a line was looked at already, with the fingers where they rest."""
        seen = self._seen_of(motion.line, fingers)
        if seen is None:
            return False
        low, high = _ends(motion, dt)
        return seen.low <= low and high <= seen.high

    def _fault_on_line(self, body: Body, motion: Motion, dt: float, fingers: list[list[float]]) -> str:
        """As `_fault` while the fingers rest: what of a line was looked at stays free."""
        line = motion.line
        assert line is not None
        here, _ = line.project(self.parts[0].mover.state.q)
        seen = self._seen_of(line, fingers)
        if seen is None or not seen.low <= here <= seen.high:
            ways = [0.0] * self.n
            for i, x in zip(self.places[0], line.direction, strict=True):
                ways[i] = abs(x)
            step = APART_M / max(_sweep(body, ways), APART_M)
            seen = self._seen = _Seen(line, fingers, here, here, step)
        low, high = _ends(motion, dt)
        for sign, furthest in ((1.0, high), (-1.0, -low)):
            free = seen.high if sign > 0 else -seen.low
            why = ""
            while not why and free < furthest:
                ahead = free + seen.step  # if all is well, the next ticks need not look
                if not (why := body.fault(self._pose([line.at(sign * ahead), *fingers]))):
                    free = ahead
                elif ahead > furthest and not (
                    why := body.fault(self._pose([line.at(sign * furthest), *fingers]))
                ):
                    free = furthest
            if sign > 0:
                seen.high = free
            else:
                seen.low = -free
            if why:
                return why
        return ""

    def _stays_apart(self, body: Body, now: list[float], then: list[float], end: list[float]) -> bool:
        """Whether nothing is so near that joints which go from `now` to `then` to `end` could touch it."""
        if body.tight:
            return False
        if self._apart is not None and body.stays_apart(
            self._apart, _furthest(self._apart_at, now, then, end)
        ):
            return True
        if self._not_again:  # it was too near, just now
            self._not_again -= 1
            return False
        self._apart_at = [0.5 * (x + z) for x, z in zip(now, end, strict=True)]
        self._apart = body.apart(self._apart_at)
        apart = body.stays_apart(self._apart, _furthest(self._apart_at, now, then, end))
        self._not_again = 0 if apart else TICKS_BETWEEN
        return apart

    def _free_goal(self, stops: Sequence[Motion]) -> tuple[list[float], str]:
        """How far the arm may go on the line from where its checked stop ends to what was asked, and what
        blocks it there, or ""."""
        part, body = self.parts[0], self.body
        start, goal = stops[0].end, part.asked
        if body is None:
            return goal, ""
        away = [g - s for g, s in zip(goal, start, strict=True)]
        ways = [0.0] * self.n
        for i, x in zip(self.places[0], away, strict=True):
            ways[i] = abs(x)
        distance = _sweep(body, ways)
        n = max(1, math.ceil(distance / APART_M))
        others = [motion.end for motion in stops[1:]]

        def fault(share: float) -> str:
            arm = [s + share * x for s, x in zip(start, away, strict=True)]
            return body.fault(self._pose([arm, *others]))

        free, why = 0.0, ""
        for k in range(1, min(n, FURTHEST) + 1):
            if why := fault(k / n):
                taken = k / n
                # mostly, when something is in the way, the arm is there already
                if k == 1 and fault(taken / 2**HALVINGS):
                    return start, why
                for _ in range(HALVINGS):
                    middle = 0.5 * (free + taken)
                    if fault(middle):
                        taken = middle
                    else:
                        free = middle
                break
            free = k / n
        return [s + free * x for s, x in zip(start, away, strict=True)], why


def _ends(motion: Motion, dt: float) -> tuple[float, float]:
    """Of a motion on a line, the least and the most of what `dt` and its stop come to."""
    end = motion.end_along
    if motion.duration <= dt:
        return end, end
    then = motion.raw(dt)[0][0]
    return (end, then) if end < then else (then, end)


def _furthest(middle: list[float], now: list[float], then: list[float], end: list[float]) -> list[float]:
    """How far each joint gets from where it is in `middle`, on the way from `now` to `then` to `end`."""
    return [
        max(abs(x - m), abs(y - m), abs(z - m)) for m, x, y, z in zip(middle, now, then, end, strict=True)
    ]


def _sweep(body: Body, ways: list[float]) -> float:
    """By how much things that must not come together may come nearer, m, when joints go `ways`."""
    return max([sum(map(mul, row, ways)) for row in body.sweep], default=0.0)
