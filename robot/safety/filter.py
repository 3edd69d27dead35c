"""What stands between whoever commands a robot and its arms.

Each tick the filter is asked for a position, and returns one that keeps every limit, whatever was asked. An
arm goes towards what was asked on a straight line of joint space, as fast as its limits allow; where the line
is blocked it comes to rest before that. It never turns aside.

A command is only given when a stop from there was checked, too: that no joint leaves its limits on the way to
rest, and that nothing touches. When a later one cannot be checked, the arm follows the stop that was. So it
never runs into a limit because it was too fast to stop (a backup controller, as of K. P. Wabersich and M. N.
Zeilinger, "A predictive safety filter for learning-based control", Automatica 129, 2021; D. Beckert,
A. Pereira and M. Althoff, "Online verification of multiple safety criteria for a robot trajectory", CDC
2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import add, is_, le, mul, sub, truediv
from typing import NamedTuple

import numpy as np

from ...datasets.flags import HELD, LIMITED
from ...drivers.arm import Joints
from .body import CLEAR, SELF, TABLE, WORKSPACE, Body
from .limits import Safety, groups
from .mover import Line, Motion, Mover, speed_within

POSITION, SPEED, ACCELERATION, NOT_FINITE = "position", "speed", "acceleration", "not finite"
REASONS = (
    NOT_FINITE,
    POSITION,
    WORKSPACE,
    TABLE,
    SELF,
    SPEED,
    ACCELERATION,
)  # the last ones also "stopped: …"
# What a command may differ from what was asked before that is worth saying
SAME = {"rad": 5e-3, "m": 5e-4}
# How far a joint goes beyond what was asked, at most, when whoever asks moves and then stops at once. A
# filter that never does so lags behind everything that moves.
OVERSHOOT = {"rad": 0.05, "m": 0.002}
SETTLES_S = 0.03  # over which the speed of the requests is averaged: they tremble
# What moves is met where it will be after this time: to be just where it is, with its speed, a joint that is
# a little ahead of it would have to turn back.
LOOKAHEAD_S = 0.06
ROUNDING = 1e-9  # rad or m
RESTS = 1e-3  # rad/s or m/s of requests that rest
APART_M = 0.02  # between two poses that are checked for touching no part moves further
MOST_CHECKS = 12  # poses of one motion
TICKS_BLOCKED = 20  # until it is tried again whether a line is still blocked: fingers may have closed
TICKS_BETWEEN = 5  # two looks for a clear space around the arm
FURTHEST = 12  # poses ahead that are looked at for what blocks a line
HALVINGS = 5
SHORTEST_S, LONGEST_S = 1e-4, 0.1  # of a tick; a longer one is gone for as long as this

Bodies = Mapping[str, Body]  # by arm; arms that are not in it have no known shape


class State(Enum):
    RUN = "run"
    HOLD = "hold"  # it was asked for nothing that it can do; it goes on with the next request
    DECEL = "decelerate"  # tripped, and not at rest yet
    STOP = "stop"  # at rest until `reset`


class Filtered(NamedTuple):
    """command, velocity: `(A,)` float64, to be reached one tick from now. flags: LIMITED, HELD, or 0.
    reasons: of `REASONS`, or why it was tripped."""

    command: np.ndarray
    velocity: np.ndarray
    flags: int
    reasons: tuple[str, ...]
    state: State


class _Part:
    """Joints of one arm that move together: those of the arm itself, or its gripper."""

    def __init__(self, joints: Joints, safety: Safety, columns: Sequence[int]) -> None:
        self.columns = list(columns)
        c = np.array(columns, int)
        self.lower, self.upper = joints.lower[c].tolist(), joints.upper[c].tolist()
        self.mover = Mover(safety.speed[c].tolist(), safety.acceleration[c].tolist(), safety.jerk[c].tolist())
        m = self.mover
        self.passing_limits = [
            speed_within(OVERSHOOT[joints.units[j]], a, jerk)
            for j, a, jerk in zip(columns, m.acceleration, m.jerk, strict=True)
        ]
        self.fast = [0.98 * v for v in m.speed]
        self.jump_limits = [1.001 * v for v in m.speed]
        self.same = min(SAME[joints.units[j]] for j in columns)
        self._rest = [0.0] * len(columns)
        self._dt, self._keep = 0.0, 1.0
        self.reset(self._rest)

    def reset(self, q: list[float]) -> None:
        self.mover.reset(q)
        self.stop = Motion(list(q))
        self.asked, self.asked_before, self.passing, self.clipped = list(q), list(q), self._rest, False
        # a joint that stands outside its limits comes back in, and goes no further out
        self.low, self.high = [-math.inf] * len(q), [math.inf] * len(q)
        self._come_in()

    def _come_in(self) -> None:
        q = self.mover.state.q
        self.low = [
            max(low, min(x, limit) - ROUNDING) for x, low, limit in zip(q, self.low, self.lower, strict=True)
        ]
        self.high = [
            min(high, max(x, limit) + ROUNDING)
            for x, high, limit in zip(q, self.high, self.upper, strict=True)
        ]
        self.inside = all(low <= x <= high for x, low, high in zip(q, self.lower, self.upper, strict=True))

    def ask(self, target: Sequence[float]) -> None:
        self.asked_before = self.asked
        q = [target[j] for j in self.columns]
        self.asked = list(map(min, map(max, q, self.lower), self.upper))
        self.clipped = q != self.asked and max(map(abs, map(sub, q, self.asked))) > self.same

    def plan(self, dt: float) -> Motion:
        """Towards what was asked, which moves on with the speed of the requests, as far as that can be
        stopped within OVERSHOOT; a jump has no speed."""
        if dt != self._dt:
            self._dt, self._keep = dt, math.exp(-dt / SETTLES_S)
        asked, keep = self.asked, self._keep
        if asked == self.asked_before:
            passing = [keep * before for before in self.passing]
        else:
            speeds = [(new - old) / dt for new, old in zip(asked, self.asked_before, strict=True)]
            if not all(map(le, map(abs, speeds), self.jump_limits)):
                speeds = self._rest
            passing = [v + keep * (before - v) for v, before in zip(speeds, self.passing, strict=True)]
        self.passing = passing
        if max(map(abs, passing)) < RESTS:
            self.passing = self._rest if asked == self.asked_before else passing
            mover = self.mover
            if mover.rests and max(map(abs, map(sub, asked, mover.state.q))) < ROUNDING:
                return self.stop
            return mover.plan(asked, None, dt, dt) or self.stop
        share = max(map(truediv, map(abs, passing), self.passing_limits))
        if share > 1:
            passing = [v / share for v in passing]
        ahead = [goal + v * LOOKAHEAD_S for goal, v in zip(asked, passing, strict=True)]
        if not (all(map(le, self.lower, ahead)) and all(map(le, ahead, self.upper))):
            return self.mover.plan(asked, None, dt, dt) or self.stop
        return self.mover.plan(ahead, passing, dt, dt + LOOKAHEAD_S) or self.stop

    def within(self, q: list[float]) -> bool:
        return all(map(le, self.low, q)) and all(map(le, q, self.high))

    def take(self, motion: Motion, dt: float) -> None:
        self.stop = self.mover.take(motion, dt)
        if not self.inside:
            self._come_in()


@dataclass(slots=True)
class _Seen:
    """Of a line, from `low` to `high`: nothing is touched there while the fingers are so. step: how far two
    looks may be apart."""

    line: Line
    fingers: list[list[float]]
    low: float
    high: float
    step: float


class _ArmFilter:
    def __init__(
        self, joints: Joints, safety: Safety, columns: list[int], grippers: list[int], body: Body | None
    ) -> None:
        self.body, self.n = body, len(columns)
        first = columns[0]
        self.first = first  # an arm's joints follow one another
        arm = [j for j in columns if j not in grippers]
        self.parts = [_Part(joints, safety, group) for group in (arm, *([g] for g in grippers)) if group]
        self.places = [[j - first for j in part.columns] for part in self.parts]
        order = [i for places in self.places for i in places]
        self._in_order, self._order = order == sorted(order), [order.index(i) for i in range(self.n)]
        self._clear, self._clear_at, self._not_again = 0.0, [0.0] * self.n, 0
        self._blocked: tuple[list[float], str] | None = None  # how far it may go to what was asked, and why
        self._since_blocked = 0
        self._seen: _Seen | None = None

    def reset(self, q: list[float]) -> tuple[str, ...]:
        for part in self.parts:
            part.reset([q[j] for j in part.columns])
        self._clear, self._not_again, self._blocked, self._seen = 0.0, 0, None, None
        return () if self.body is None else self.body.begin(q[self.first : self.first + self.n])

    def halt(self, dt: float) -> None:
        """Along the stops that were checked."""
        self._take([part.stop for part in self.parts], dt)

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
        if motions[0].line is not None and not body.tight and all(m.halt is None for m in motions[1:]):
            return self._fault_on_line(body, motions[0], dt, nexts[1:])
        now = self._pose([part.mover.state.q for part in self.parts])
        then, end = self._pose(nexts), self._pose([motion.end for motion in motions])
        ways = [abs(y - x) + abs(z - y) for x, y, z in zip(now, then, end, strict=True)]
        if self._is_clear(body, now, ways):
            return ""
        longest = max([motion.duration for motion in motions])
        n = min(MOST_CHECKS, 1 + int(_sweep(body, ways) / APART_M))
        for k in range(n, 0, -1):  # the end is the most likely to be in something
            t = longest * k / n
            if why := body.fault(self._pose([motion.at(t) for motion in motions])):
                return why
        return body.fault(then) if longest > dt * n else ""

    def _fault_on_line(self, body: Body, motion: Motion, dt: float, fingers: list[list[float]]) -> str:
        """As `_fault` while the fingers rest: what of a line was looked at stays free."""
        line, seen = motion.line, self._seen
        assert line is not None
        if seen is None or seen.line is not line or seen.fingers != fingers:
            here, _ = line.project(self.parts[0].mover.state.q)
            ways = [0.0] * self.n
            for i, x in zip(self.places[0], line.direction, strict=True):
                ways[i] = abs(x)
            step = APART_M / max(_sweep(body, ways), APART_M)
            seen = self._seen = _Seen(line, fingers, here, here, step)
        ends = [motion.end_along]
        if motion.duration > dt:
            ends.append(motion.raw(dt)[0][0])
        for sign, furthest in ((1.0, max(ends)), (-1.0, -min(ends))):
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

    def _is_clear(self, body: Body, now: list[float], ways: list[float]) -> bool:
        """Whether nothing is so near that joints which go `ways` from `now` could touch it."""
        if self._clear and max(map(add, ways, map(abs, map(sub, now, self._clear_at)))) <= self._clear:
            return True
        furthest = max(ways)
        if furthest > CLEAR[0]:
            return False
        if self._not_again:  # it was not, just now
            self._not_again -= 1
            return False
        self._clear, self._clear_at = body.clear(now), now
        self._not_again = 0 if furthest <= self._clear else TICKS_BETWEEN
        return furthest <= self._clear

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


def _sweep(body: Body, ways: list[float]) -> float:
    """By how much things that must not come together may come nearer, m, when joints go `ways`."""
    return max([sum(map(mul, row, ways)) for row in body.sweep], default=0.0)


class Filter:
    """joints: of all arms of one robot, one arm after the other, as `robot.action_features` names them.
    bodies: by arm, "" where the robot has one.

    Arms, and the gripper of each, are limited for themselves: none waits for another. Pure computation."""

    def __init__(self, joints: Joints, safety: Safety, bodies: Bodies | None) -> None:
        self.joints, self.safety = joints, safety
        self._arms = [
            _ArmFilter(joints, safety, columns, grippers, (bodies or {}).get(arm))
            for arm, (columns, grippers) in groups(joints).items()
        ]
        self._parts = [part for arm in self._arms for part in arm.parts]
        columns = [j for part in self._parts for j in part.columns]
        in_order = columns == sorted(columns)
        self._order = None if in_order else [columns.index(j) for j in range(len(joints))]
        self._why = ""
        self.state = State.STOP
        self._stands = False  # whether it knows where the arms are

    def reset(self, q: np.ndarray) -> tuple[str, ...]:
        """The arms stand at `q` `(A,)`; whatever tripped the filter is over. Returns what touches there, in
        words: it does not count until it is apart."""
        q = np.asarray(q, np.float64)
        if q.shape != (len(self.joints),) or not np.isfinite(q).all():
            raise ValueError(f"the filter needs where each of {', '.join(self.joints.names)} is, not {q}")
        texts = [text for arm in self._arms for text in arm.reset(q.tolist())]
        self._stands, self._why, self.state = True, "", State.RUN
        return tuple(texts)

    def trip(self, reason: str) -> None:
        """Slow down to rest, and stay there until `reset`. The first reason stays."""
        if self.state not in (State.DECEL, State.STOP):
            self._why, self.state = reason, State.DECEL

    def step(self, target: np.ndarray | None, dt_s: float) -> Filtered:
        """The command for `dt_s` seconds from now, given that `target` `(A,)` is asked for then. None, or a
        number that is not finite: the arms slow down and hold."""
        if not self._stands:
            raise ValueError("the filter does not know where the arms are: reset it first")
        asked: list[float] | None = None
        if target is not None:
            target = np.asarray(target, np.float64)
            if target.shape != (len(self.joints),):
                raise ValueError(
                    f"a target has shape {target.shape}, but there are joints {', '.join(self.joints.names)}"
                )
            asked = target.tolist()
        reasons: list[str] = []
        flags = 0
        dt = min(max(dt_s, SHORTEST_S), LONGEST_S) if dt_s > 0 else SHORTEST_S
        if self.state in (State.DECEL, State.STOP):
            reasons.append(self._why)
        elif asked is None or not all(map(math.isfinite, asked)) or not dt_s > 0:
            self.state = State.HOLD
            reasons.append("no target" if asked is None else NOT_FINITE)
        else:
            self.state = State.RUN
        if self.state is State.RUN and asked is not None:
            for arm in self._arms:
                moves, why = arm.step(asked, dt)
                if why:
                    reasons.append(why)
                    flags |= 0 if moves else HELD
        elif dt_s > 0:
            for arm in self._arms:
                arm.halt(dt)
            flags |= HELD
            if self.state is State.DECEL and all(part.stop.duration == 0 for part in self._parts):
                self.state = State.STOP
        return self._filtered(flags, reasons)

    def _filtered(self, flags: int, reasons: list[str]) -> Filtered:
        command: list[float] = []
        velocity: list[float] = []
        outside = late = fast = False
        for part in self._parts:
            state = part.mover.state
            command += state.q
            velocity += state.v
            outside = outside or part.clipped
            if max(map(abs, map(sub, part.asked, state.q))) > part.same:
                late = True
                fast = fast or any(map(le, part.fast, map(abs, state.v)))
        if self.state is State.RUN:
            if outside and POSITION not in reasons:
                reasons.append(POSITION)
            if late and not flags:
                reasons.append(SPEED if fast else ACCELERATION)
        if reasons:
            flags |= LIMITED
        if self._order is not None:
            command, velocity = [command[i] for i in self._order], [velocity[i] for i in self._order]
        said = tuple(dict.fromkeys(reasons)) if len(reasons) > 1 else tuple(reasons)
        return Filtered(np.array(command), np.array(velocity), flags, said, self.state)
