"""How an arm is put down before its torque goes: at rest first, then to its rest pose, and then down until it
lies on something.

The way down needs no model of the arm. A joint that its motor must hold up gives way, slowly, to what pulls
at it, until something else carries it: so the arm goes where it would have fallen to."""

from __future__ import annotations

from enum import Enum

import numpy as np

GENTLE, FAST = 0.5, 1.2  # rad/s of the joint that has furthest to go, on the way to the rest pose
SINK = 0.25  # rad/s, of a joint that gives way until something is met
YIELD = 0.25  # rad/s for each full load, from then on
# Share of its full load with which a joint's friction holds by itself; the motor must hold what is heavier.
LIGHT = 0.07
SAG = 0.02  # rad (m) that a joint without a reading of its load lags by, when something pulls at it
SMOOTH_S = 0.1  # over which loads are averaged
# a joint that was light for so long has passed its balance, and what pulls at it may have turned
BALANCE_S = 0.3
CLEAR_S = 1.0  # without meeting anything, after which it goes faster again, and with `SINK` after twice that
CALM_S = 0.4  # an arm whose joints are all light for so long lies
# rad (m), s: an arm that met something and then goes down by less lies on it, though loads change with every
# step
STILL, STILL_S = 0.012, 0.8
ARRIVED = 0.03  # rad (m) between where an arm is sent and its rest pose
LAGS, LAGS_S = 0.25, 0.7  # rad (m), s: an arm that lags more for longer than that is in the way of something
LONGEST_SINK_S = 20.0


class Phase(Enum):
    GOING = "on its way to its rest pose"
    SINKING = "going down"
    DOWN = "down"
    STUCK = "not down"  # its motors still hold something up


class Parking:
    """One arm's way down. command: `(J,)`, where it is sent now, at rest. rest: `(J,)`, None where there is
    no pose to go to; lay_there: it lay there without torque before. lower, upper: `(J,)`, how far joints may
    be sent."""

    def __init__(
        self,
        command: np.ndarray,
        rest: np.ndarray | None,
        lower: np.ndarray,
        upper: np.ndarray,
        t_s: float,
        speed: float = GENTLE,
        lay_there: bool = False,
    ) -> None:
        self._lower, self._upper = lower, upper
        self._rest = None if rest is None else np.clip(rest, lower, upper)
        self.phase = Phase.SINKING if rest is None else Phase.GOING
        self._lay_there = lay_there
        self._touched_s = -np.inf  # when it last met something
        self._heavy_s = np.full(len(command), t_s)  # when each joint's motor last held something up
        self._held_up = np.zeros(len(command))  # the sense in which each joint was first held up
        self.at_rest = False  # whether it reached its rest pose
        self.load = np.zeros(len(command))
        self._target = command.copy()
        self._mark, self._mark_s, self._push = self._target, t_s, np.zeros(len(command))
        self._last_s = self._calm_since_s = self._lag_since_s = self._sinking_since_s = t_s
        self.set_speed(speed, t_s)

    def set_speed(self, speed: float, t_s: float) -> None:
        """Go on from here with `speed` rad/s."""
        self._from, self._from_s, self._speed = self._target.copy(), t_s, speed

    def step(
        self, t_s: float, command: np.ndarray, position: np.ndarray, load: np.ndarray | None
    ) -> np.ndarray:
        """Where to send the arm at `t_s`, `(J,)`. command: where it was sent last, after the filter. load:
        with which its motors push, signed, 1 is the full load; None where the arm does not tell."""
        dt_s, self._last_s = t_s - self._last_s, t_s
        lag = position - command
        if load is None:
            load = np.where(np.abs(lag) > SAG, -np.sign(lag), 0.0)
        w = min(dt_s / SMOOTH_S, 1.0)
        self.load += w * (load - self.load)
        if self.phase is Phase.GOING:
            self._go(t_s, command, lag)
        elif self.phase is Phase.SINKING:
            self._sink(t_s, dt_s, command, lag)
        return self._target

    def _go(self, t_s: float, command: np.ndarray, lag: np.ndarray) -> None:
        assert self._rest is not None
        way = self._rest - self._from
        # a cosine's fastest moment is π/2 times its mean
        duration_s = max(float(np.abs(way).max()) * np.pi / 2 / self._speed, 0.1)
        w = min((t_s - self._from_s) / duration_s, 1.0)
        self._target = self._from + (0.5 - 0.5 * np.cos(np.pi * w)) * way
        arrived = w >= 1.0 and float(np.abs(command - self._rest).max()) < ARRIVED
        behind = max(float(np.abs(lag).max()), float(np.abs(self._target - command).max()))
        # after the way is over, what the filter does not let through is waited for no longer
        if behind < LAGS and (w < 1.0 or arrived):
            self._lag_since_s = t_s
        if arrived or t_s - self._lag_since_s > LAGS_S:
            self.at_rest = arrived and float(np.abs(lag).max()) < LAGS
            self._begin_to_sink(t_s, command)

    def _begin_to_sink(self, t_s: float, command: np.ndarray) -> None:
        self.phase, self._target = Phase.SINKING, command.copy()
        self._sinking_since_s = self._calm_since_s = t_s
        self._touched_s = t_s if self.at_rest and self._lay_there else -np.inf
        self._mark, self._mark_s, self._push = self._target, t_s, np.zeros(len(command))

    def _sink(self, t_s: float, dt_s: float, command: np.ndarray, lag: np.ndarray) -> None:
        # a position loop lags to where something pulls; a joint that does not lag yields to its motor's push
        push = np.where(np.abs(lag) > SAG, -np.sign(lag) * np.maximum(np.abs(self.load), LIGHT), self.load)
        heavy = np.abs(push) > LIGHT
        # gravity turns its sense slowly, what is met turns it at once
        self._heavy_s = np.where(heavy, t_s, self._heavy_s)
        self._held_up = np.where(t_s - self._heavy_s > BALANCE_S, 0.0, self._held_up)
        # what falls is held up until it meets something, which then pushes back
        self._held_up = np.where(heavy & (self._held_up == 0), np.sign(push), self._held_up)
        if bool((heavy & (np.sign(push) == -self._held_up)).any()):
            self._touched_s = t_s
        # something hard answers to the smallest step, and a step is answered late; what was met may be passed
        speed = YIELD * np.abs(push) + SINK * max(t_s - self._touched_s - CLEAR_S, 0.0) / CLEAR_S
        speed = np.minimum(speed, SINK)
        target = self._target - speed * min(dt_s, 0.1) * np.sign(push)
        target = np.clip(target, self._lower, self._upper)
        heavy &= target != self._target
        near = np.abs(target - command) < LAGS  # not ahead of what the filter lets through
        self._target = np.where(heavy & near, target, self._target)
        if heavy.any():
            self._calm_since_s = t_s
        self._push = self._push + dt_s * push
        if t_s - self._mark_s > STILL_S:
            # what slides or trembles on its support is pushed to and fro; what is held up, in one sense
            held = float(np.abs(self._push / (t_s - self._mark_s)).max()) > LIGHT
            moved = float(np.abs(self._target - self._mark).max())
            if np.isfinite(self._touched_s) and moved < STILL and not held:
                self.phase = Phase.DOWN
            self._push = np.zeros(len(push))
            self._mark, self._mark_s = self._target, t_s
        if t_s - self._calm_since_s > CALM_S:
            self.phase = Phase.DOWN
        elif t_s - self._sinking_since_s > LONGEST_SINK_S:
            self.phase = Phase.STUCK
