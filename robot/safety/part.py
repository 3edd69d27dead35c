"""Joints of one arm that move together, and what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import le, sub, truediv

import numpy as np

from ...drivers.arm import Joints
from .limits import Safety
from .mover import Motion, Mover, speed_within

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


class Part:
    """Those of the arm itself, or its gripper. columns: which they are of the robot's joints."""

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

    def forget(self) -> None:
        """What was asked for, and with which speed it moved: it brakes."""
        self.asked, self.passing, self.clipped = self.stop.end, self._rest, False

    def take(self, motion: Motion, dt: float) -> None:
        self.stop = self.mover.take(motion, dt)
        if not self.inside:
            self._come_in()
