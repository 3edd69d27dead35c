"""A request may run ahead of the arm only as fast as the arm really goes: a bound of Lipschitz's kind on what
is sent, by what was measured.

What is asked for may move by `floor` rad/s, and by `gain` times as fast as the arm was measured to move:

    |change of the request| <= (gain · |speed measured| + floor) · dt

A policy that jumps, trembles or changes its mind starts an arm at rest gently, at `floor`; as the arm
follows, the request may go faster, up to the limits of the filter where gain is above 1, and up to floor / (1
- gain) where it is below. An arm that is stopped by something is not asked further than `floor` goes, so that
it does not lunge when it comes free. What is slower than that passes as it is, without any lag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....drivers.arm import Joints
from ....drivers.config import parse, setting
from ..filter import Bodies
from ..limits import Safety, groups
from ..stage import Seen

SMOOTHING = "smoothing"
AHEAD = 0.2  # rad (m) that the request may be ahead of what is sent: the filter lets no request be further
AVERAGE_S = 0.05  # over which the measured speed is averaged: readings are counts of an encoder


@dataclass(frozen=True)
class Config:
    """The fields of `[safety.smoothing]`."""

    gain: float = setting(2.0, 0.0, 20.0)
    """How many times as fast as the arm goes the request may go."""
    floor: float = setting(0.5, 0.01, 20.0, "rad/s")
    """How fast it may go in any case; m/s of joints that slide."""


class Smoothing:
    """parts: of each arm and each gripper the joints; they are slowed together, on a straight line."""

    def __init__(self, parts: list[np.ndarray], gain: float, floor: float) -> None:
        self._parts, self._gain, self._floor = parts, gain, floor
        n = sum(map(len, parts))
        self._last, self._q, self._speed = np.zeros(n), np.zeros(n), np.zeros(n)
        self._times_ns = np.zeros(n, np.int64)

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        self._last, self._q = np.where(moved, q, self._last), np.where(moved, q, self._q)
        self._times_ns, self._speed = np.where(moved, 0, self._times_ns), np.where(moved, 0.0, self._speed)

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        self._measure(seen)
        # while the filter held, nothing was asked
        last = seen.command + np.clip(self._last - seen.command, -AHEAD, AHEAD)
        change = asked - last
        allowed = asked
        for part in self._parts:
            most = (self._gain * self._speed[part].max() + self._floor) * dt_s
            if (fastest := np.abs(change[part]).max()) > most:
                allowed = asked.copy() if allowed is asked else allowed
                allowed[part] = last[part] + change[part] * (most / fastest)
        self._last = allowed.copy()
        return allowed, "" if allowed is asked else SMOOTHING

    def _measure(self, seen: Seen) -> None:
        """The speed of each joint, from readings that are new."""
        dt_s = (seen.times_ns - self._times_ns) * 1e-9
        new = dt_s > 0
        if not new.any():
            return
        speed = np.abs(seen.q - self._q) / np.where(new, dt_s, 1.0)
        w = 1 - np.exp(-dt_s / AVERAGE_S)
        self._speed = np.where(
            new & (self._times_ns > 0), self._speed + w * (speed - self._speed), self._speed
        )
        self._q, self._times_ns = np.where(new, seen.q, self._q), np.where(new, seen.times_ns, self._times_ns)


def smoothing_of(
    table: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Bodies, where: str
) -> Smoothing:
    """The stage that the table `[safety.smoothing]` asks for. DeviceError: the table is wrong."""
    c = parse(Config, table, where)
    parts = [
        np.array(part)
        for columns, grippers in groups(joints).values()
        for part in ([j for j in columns if j not in grippers], *([g] for g in grippers))
        if part
    ]
    return Smoothing(parts, c.gain, c.floor)
