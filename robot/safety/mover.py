"""Joints that move together, with limited speed, acceleration and jerk, on a straight line where that can be.

What is planned here is a `Motion`: one tick towards a goal, and then the stop that could follow it. Both are
computed by Ruckig (L. Berscheid and T. Kröger, "Jerk-limited Real-time Trajectory Generation with Arbitrary
Target States", RSS 2021). On a line it plans for one number, the way gone along it: joints that are each
planned for leave the line by themselves as soon as one of them rounds differently."""

# ruff: noqa: B905, SIM110  `strict` is a third of what a loop over five joints costs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul, sub
from typing import Any

from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

# Below these a joint rests, and two directions are one (rad and s, or m).
STILL_V, STILL_A, ASIDE = 1e-9, 1e-6, 1e-9
NO_V, NO_A = 1e-12, 1e-9  # what rounding leaves of a standstill
WORKING, FINISHED = Result.Working, Result.Finished


def stopping_distance(speed: float, acceleration: float, jerk: float) -> float:
    """How far a joint goes until it stands, from `speed` at constant speed."""
    if speed * jerk <= acceleration**2:  # the full acceleration is not reached
        return speed * (speed / jerk) ** 0.5
    return 0.5 * speed * (speed / acceleration + acceleration / jerk)


def speed_within(distance: float, acceleration: float, jerk: float) -> float:
    """The speed that can be stopped within `distance`."""
    low, high = 0.0, (2 * acceleration * distance) ** 0.5 + (distance**2 * jerk) ** (1 / 3)
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if stopping_distance(middle, acceleration, jerk) <= distance else (low, middle)
        )
    return low


@dataclass(slots=True)
class State:
    """q, v, a: position, velocity and acceleration of each joint."""

    q: list[float]
    v: list[float]
    a: list[float]


@dataclass(slots=True)
class Line:
    """origin: a point of joint space. direction: of length 1. limits: of speed, acceleration and jerk along
    it."""

    origin: list[float]
    direction: list[float]
    limits: list[list[float]]

    def at(self, s: float) -> list[float]:
        return [o + s * x for o, x in zip(self.origin, self.direction)]

    def project(self, q: list[float]) -> tuple[float, float]:
        """How far along the line `q` is, and how far from it at most, by joint."""
        away = list(map(sub, q, self.origin))
        along = _dot(away, self.direction)
        return along, max([abs(a - along * x) for a, x in zip(away, self.direction)])


@dataclass(slots=True)
class Motion:
    """`go` for `dt` seconds, then `halt`, of which `since` seconds are over already. Without `go` it is the
    stop alone, without `halt` it rests at `end`. line: that it stays on; the trajectories then have one
    number. then: position, velocity and acceleration where `go` ends, as the trajectories have them.

    Plain, not frozen: two are made a tick, and each frozen one takes microseconds."""

    end: list[float]  # where it comes to rest
    duration: float = 0.0
    line: Line | None = None
    go: Any = None
    halt: Any = None
    dt: float = 0.0
    since: float = 0.0
    then: Any = None
    end_along: float = 0.0  # of `end`, on the line

    def at(self, t: float) -> list[float]:
        """Positions `t` seconds from now."""
        if t >= self.duration:
            return self.end
        p, _, _ = self.raw(t)
        return p if self.line is None else self.line.at(p[0])

    def raw(self, t: float) -> tuple[list[float], list[float], list[float]]:
        """Position, velocity, acceleration `t` seconds from now, as its trajectories have them; before it
        rests."""
        if t == self.dt and self.then is not None:
            return self.then
        return self.go.at_time(t) if t <= self.dt else self.halt.at_time(t - self.dt + self.since)

    def after(self, t: float) -> Motion:
        """The stop that remains when `t` seconds are over, which is at least `dt`."""
        if self.duration <= t:
            return Motion(self.end)
        return Motion(
            self.end,
            self.duration - t,
            self.line,
            None,
            self.halt,
            0.0,
            self.since + t - self.dt,
            None,
            self.end_along,
        )


class Mover:
    """speed, acceleration, jerk: limits of each joint. It is at `state`."""

    def __init__(self, speed: Sequence[float], acceleration: Sequence[float], jerk: Sequence[float]) -> None:
        self.speed, self.acceleration, self.jerk = list(speed), list(acceleration), list(jerk)
        n = len(self.speed)
        self._one, self._all = Ruckig(1), Ruckig(n)
        self._limits_of: Line | None = None  # whose limits `_go_one` and `_halt_one` have
        self._go_one, self._halt_one = InputParameter(1), InputParameter(1)
        self._go_all, self._halt_all = InputParameter(n), InputParameter(n)
        for halt, joints in ((self._halt_one, 1), (self._halt_all, n)):
            halt.control_interface = ControlInterface.Velocity
            halt.synchronization = Synchronization.No
            halt.target_velocity = [0.0] * joints
        for whole in (self._go_all, self._halt_all):
            whole.max_velocity, whole.max_acceleration = self.speed, self.acceleration
            whole.max_jerk = self.jerk
        self.reset([0.0] * n)

    def reset(self, q: Sequence[float]) -> None:
        n = len(q)
        self.state = State(list(q), [0.0] * n, [0.0] * n)
        self._rest: list[float] = self.state.v
        self._line: Line | None = None
        self._along = (0.0, 0.0, 0.0)  # position, velocity, acceleration on the line

    @property
    def rests(self) -> bool:
        return self.state.v is self._rest

    def plan(
        self, goal: list[float], passing: list[float] | None, dt: float, earliest: float
    ) -> Motion | None:
        """From `state` for `dt` seconds towards `goal`, which is passed with the velocity `passing` (None: it
        comes to rest there) and not before `earliest` seconds. None: Ruckig finds no way."""
        if len(goal) > 1 and self._on_line(goal, passing):
            line = self._line
            assert line is not None
            go, halt = self._go_one, self._halt_one
            if line is not self._limits_of:
                speed, acceleration, jerk = line.limits
                go.max_velocity, go.max_acceleration, go.max_jerk = speed, acceleration, jerk
                halt.max_velocity, halt.max_acceleration, halt.max_jerk = speed, acceleration, jerk
                self._limits_of = line
            s, v, a = self._along
            go.current_position, go.current_velocity, go.current_acceleration = [s], [v], [a]
            go.target_position = [self._goal_along]
            go.target_velocity = [self._passing_along]
            return self._motion(self._one, go, halt, line, dt, earliest)
        go, state = self._go_all, self.state
        go.current_position, go.current_velocity, go.current_acceleration = state.q, state.v, state.a
        go.target_position, go.target_velocity = goal, passing or self._rest
        return self._motion(self._all, go, self._halt_all, None, dt, earliest)

    def _motion(
        self, ruckig: Ruckig, go: Any, halt: Any, line: Line | None, dt: float, earliest: float
    ) -> Motion | None:
        n = 1 if line is not None else len(self.speed)
        ahead, stop = Trajectory(n), Trajectory(n)
        go.minimum_duration = earliest
        if not _calculated(ruckig, go, ahead):
            # there is no way to arrive with all joints at once, or it is not found: some times in a million
            go.synchronization = Synchronization.No
            found = _calculated(ruckig, go, ahead)
            go.synchronization = Synchronization.Time
            if not found:
                return None
        then = ahead.at_time(dt)
        halt.current_position, halt.current_velocity, halt.current_acceleration = then
        if not _calculated(ruckig, halt, stop):
            return None
        duration = stop.duration
        end, _, _ = stop.at_time(duration)
        at_rest = end if line is None else line.at(end[0])
        return Motion(at_rest, dt + duration, line, ahead, stop, dt, 0.0, then, end[0])

    def take(self, motion: Motion, dt: float) -> Motion:
        """Go along `motion` for `dt` seconds. The stop that remains."""
        line, rest = motion.line, self._rest
        if motion.duration <= dt:
            self.state, self._line = State(motion.end, rest, rest), None
            return Motion(motion.end)
        q, v, a = motion.raw(dt)
        if within(v, NO_V) and within(a, NO_A):
            q = q if line is None else line.at(q[0])
            self.state, self._line = State(q, rest, rest), None
            return Motion(q)
        if line is None:
            self.state, self._line = State(q, v, a), None
        else:
            u = line.direction
            self._along = s, ds, dds = q[0], v[0], a[0]
            self.state, self._line = State(line.at(s), [ds * x for x in u], [dds * x for x in u]), line
        return motion.after(dt)

    def _on_line(self, goal: list[float], passing: list[float] | None) -> bool:
        """Whether what moves already moves along the line to `goal`, which is then `_line`."""
        line = self._line
        along, aside = (0.0, 1.0) if line is None else line.project(goal)
        if line is None or aside > ASIDE:
            line = self._line = self._new_line(goal)
            if line is None:
                return False
            u = line.direction
            self._along = 0.0, _dot(self.state.v, u), _dot(self.state.a, u)
            along, _ = line.project(goal)
        self._goal_along = along
        self._passing_along = 0.0 if passing is None else _dot(passing, line.direction)
        return True

    def _new_line(self, goal: list[float]) -> Line | None:
        state = self.state
        away = list(map(sub, goal, state.q))
        length = _dot(away, away) ** 0.5
        if length < ASIDE:
            return None
        u = [x / length for x in away]
        if not (self.rests or (_is_along(state.v, u, STILL_V) and _is_along(state.a, u, STILL_A))):
            return None
        limits = [
            [min([x / abs(y) for x, y in zip(of_joints, u) if y])]
            for of_joints in (self.speed, self.acceleration, self.jerk)
        ]
        return Line(state.q, u, limits)


def _calculated(ruckig: Ruckig, request: Any, trajectory: Any) -> bool:
    try:
        result = ruckig.calculate(request, trajectory)
    except RuckigError:
        return False
    return result is WORKING or result is FINISHED


# Looked at many times a tick. Over five numbers a plain loop that ends early takes half the time of `max` and
# `map`, and a tenth of NumPy's.


def within(x: Sequence[float], most: float) -> bool:
    """Whether each number is less than `most` from zero."""
    for value in x:
        if not -most < value < most:
            return False
    return True


def near(x: Sequence[float], y: Sequence[float], most: float) -> bool:
    """Whether no number of `x` is further than `most` from that of `y`."""
    for a, b in zip(x, y):
        if not -most <= a - b <= most:
            return False
    return True


def between(x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether each number is where it may be."""
    for value, least, most in zip(x, low, high):
        if not least <= value <= most:
            return False
    return True


def _dot(x: list[float], y: list[float]) -> float:
    return sum(map(mul, x, y))


def _is_along(x: list[float], u: list[float], aside: float) -> bool:
    """Whether `x` is no further than `aside` from the line through zero along `u`, by joint."""
    along = _dot(x, u)
    for a, b in zip(x, u):
        if not -aside <= a - along * b <= aside:
            return False
    return True
