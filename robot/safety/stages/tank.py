"""An energy tank: what an arm pushes against gets no more energy than it holds, whatever is asked.

A position-controlled joint is taken for a spring of stiffness K between where it is sent, c, and where it is,
x. To move c by d then costs E = K (c - x) d + K d²/2, at the x that was measured. All of it is taken from the
tank T, and d is shortened to beta d with E(beta) = beta p + beta² q = T - T_min where it asks for more. To
move c back gives energy back. What the joint's damping D was seen to dissipate comes back, too, a share
`efficiency` of it: from the way between two readings, which is never more than what it was.

So T >= T_min at all times, and the environment gets no more than the spring held at first, the tank, and what
readings that are one tick old hide. These are the standard equations of energy tanks in passivity-based
control, for joint set-points in discrete time; no paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....drivers.arm import DeviceError, Joints
from ....drivers.config import parse, require_known, setting
from ..limits import GRIPPER, Safety, groups
from ..stage import Seen

TANK = "tank"
ENOUGH = 1 - 1e-9  # a share of what was asked that is as good as all
SOFT = 2.0  # ways to stop that are paid for beforehand, or the arm slows down
RESTS = 1e-6  # rad/s


@dataclass(frozen=True)
class Config:
    """The fields of `[safety.tank]`."""

    stiffness: float | dict
    """K of each joint that turns, N m/rad: its torque, by how far it then is from where it is sent. By joint:
    { elbow_flex = 20.0 }; those that are not in it cost nothing."""
    damping: float | dict = 0.0
    """D of each joint that turns, N m s/rad: its torque that is lost to speed. Without it the tank is only
    filled by moving back."""
    begin: float = setting(1.0, 0, 1000, "J")
    """T of each arm when it is enabled, and when an episode begins."""
    most: float = setting(2.0, 0.001, 1000, "J")
    """T is never more."""
    least: float = setting(0.05, 0, 1000, "J")
    """T_min."""
    efficiency: float = setting(0.8, 0, 1)
    """Share of what is dissipated that comes back."""
    resolution: float = setting(0.002, 0, 0.1, "rad")
    """Readings that differ by less may be of an arm that rests."""


@dataclass(frozen=True, eq=False)
class Brakes:
    """acceleration, jerk: `(J,)` of the limits after the tank. What moves needs a way to stop, for which the
    tank keeps energy back: where it does not have that, the arm brakes."""

    acceleration: np.ndarray
    jerk: np.ndarray

    def far(self, speed: np.ndarray, dt_s: float) -> np.ndarray:
        """`(J,)`: how far a joint with `speed` gets at most, when it may do as it likes for `dt_s` and then
        brakes."""
        fades_s = self.acceleration / self.jerk  # of an acceleration that it may have
        speed = speed + self.acceleration * (dt_s + 0.5 * fades_s)
        brakes = 0.5 * speed * (speed / self.acceleration + fades_s)
        # from slow speeds without the whole acceleration
        brakes = np.where(speed < self.acceleration * fades_s, speed * np.sqrt(speed / self.jerk), brakes)
        return speed * (dt_s + fades_s) + brakes


class Tank:
    """columns: the joints that have one together. stiffness, damping: `(J,)`. brakes: None: what it lets pass
    is sent at once.

    energy: T, in J. lowest: the least that it was since `reset`."""

    def __init__(
        self,
        columns: np.ndarray,
        stiffness: np.ndarray,
        damping: np.ndarray,
        config: Config,
        brakes: Brakes | None,
    ) -> None:
        self.columns, self._k, self._d = columns, stiffness, damping
        self._config, self._brakes = config, brakes
        self.reset(np.zeros(int(columns.max()) + 1))

    def reset(self, q: np.ndarray) -> None:
        self.energy = self.lowest = min(self._config.begin, self._config.most)
        q = q[self.columns].copy()
        self._sent = self._was = self._read = q
        self._read_ns: np.ndarray | None = None

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        columns = self.columns
        sent, x = seen.command[columns], seen.q[columns]
        self._settle(sent, x, seen.times_ns[columns])
        self._sent, self._was = sent, x
        left = self.energy - self._config.least
        pull, away = sent - x, asked[columns] - sent
        if self._brakes is None:
            return self._shortened(asked, sent, pull, away, left)
        v = seen.velocity[columns]
        far = self._brakes.far(np.abs(v), dt_s)
        if self._affords(pull, away, v, SOFT * far, left):
            return asked, ""
        if self._affords(pull, away, v, far, left):  # it slows down in time
            return self._shortened(asked, sent, pull, np.clip(away, -SOFT * far, SOFT * far), left)
        if np.abs(v).max() > RESTS:
            return None, TANK
        away = np.where(self._k * away * pull < 0, np.clip(away, -far, far), 0.0)  # back is free
        return self._shortened(asked, sent, pull, away, left)

    def _affords(
        self, pull: np.ndarray, away: np.ndarray, v: np.ndarray, far: np.ndarray, left: float
    ) -> bool:
        """Whether there is enough to go `far` of what is asked, `away`, or of the way that the arm has, `v`,
        whichever costs more."""
        costs = self._costs(pull, np.clip(away, -far, far)), self._costs(pull, np.sign(v) * far)
        return bool(np.maximum(*costs).sum() <= max(left, 0.0))

    def _shortened(
        self, asked: np.ndarray, sent: np.ndarray, pull: np.ndarray, away: np.ndarray, left: float
    ) -> tuple[np.ndarray, str]:
        beta = share(float((self._k * pull) @ away), float(0.5 * self._k @ away**2), left)
        if beta >= ENOUGH and np.array_equal(away, asked[self.columns] - sent):
            return asked, ""
        allowed = asked.copy()
        allowed[self.columns] = sent + beta * away
        return allowed, TANK

    def _costs(self, pull: np.ndarray, away: np.ndarray) -> np.ndarray:
        """E of each joint, J."""
        return self._k * away * (pull + 0.5 * away)

    def _settle(self, sent: np.ndarray, x: np.ndarray, times_ns: np.ndarray) -> None:
        """What was really sent since the last step, and what was dissipated."""
        spent = float(self._costs(self._sent - self._was, sent - self._sent).sum())
        lost = 0.0
        if self._read_ns is None:
            self._read, self._read_ns = x, times_ns
        elif (fresh := times_ns > self._read_ns).any():
            dt = np.where(fresh, (times_ns - self._read_ns) * 1e-9, 1.0)
            way = np.maximum(np.abs(x - self._read) - self._config.resolution, 0.0)
            lost = float((self._d * way**2 / dt)[fresh].sum())
            self._read = np.where(fresh, x, self._read)
            self._read_ns = np.where(fresh, times_ns, self._read_ns)
        self.energy = min(self.energy - spent + self._config.efficiency * lost, self._config.most)
        self.lowest = min(self.lowest, self.energy)


def share(p: float, q: float, left: float) -> float:
    """The largest beta in [0, 1] with beta p + beta² q <= left; where there is none, that which costs least.
    q: not negative."""
    if p + q <= left:
        return 1.0
    if q <= 1e-12 * abs(p):
        return min(max(left / p, 0.0), 1.0) if p > 0 else 1.0
    root = max(p * p + 4 * q * left, 0.0) ** 0.5
    # the same number in two ways: this one loses no digits
    beta = 2 * left / (p + root) if p > 0 and left > 0 else (root - p) / (2 * q)
    return min(max(beta, 0.0), 1.0)


class Tanks:
    """One of each arm: none pays for another."""

    def __init__(self, each: Mapping[str, Tank]) -> None:
        self.each = dict(each)

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        for tank in self.each.values():
            if moved[tank.columns].any():
                tank.reset(q)

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        reason, brakes = "", False
        for tank in self.each.values():
            allowed, why = tank.step(asked, seen, dt_s)
            brakes = brakes or allowed is None
            asked, reason = asked if allowed is None else allowed, reason or why
        return (None if brakes else asked), reason


def tank_of(
    table: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Mapping[str, Any], where: str
) -> Tanks:
    """The stage of `table`. DeviceError: it is wrong."""
    c = parse(Config, table, where)
    if not c.least < c.begin <= c.most:
        raise DeviceError(
            f"{where}: begin is {c.begin:g} J, it must be more than least, {c.least:g} J, and at most most, "
            f"{c.most:g} J"
        )
    stiffness = _by_joint(c.stiffness, joints, f"{where}: stiffness")
    damping = _by_joint(c.damping, joints, f"{where}: damping")
    if not stiffness.any():
        raise DeviceError(f"{where}: no joint has a stiffness: give it in N m/rad, or leave the table out")
    tanks = {}
    for arm, (columns, _) in groups(joints).items():
        stiff = np.array([j for j in columns if stiffness[j] > 0], int)
        if len(stiff):
            brakes = Brakes(safety.acceleration[stiff], safety.jerk[stiff])
            tanks[arm] = Tank(stiff, stiffness[stiff], damping[stiff], c, brakes)
    return Tanks(tanks)


def _by_joint(value: float | Mapping[str, Any], joints: Joints, where: str) -> np.ndarray:
    """`(A,)`. One number counts for every joint that turns, except grippers."""
    short = [name.rpartition(".")[2] for name in joints.names]
    if isinstance(value, Mapping):
        for name, one in value.items():
            require_known(f"joint for {where}:", name, {*joints.names, *short})
            _require_positive(one, f"{where} of {name}")
        pairs = zip(joints.names, short, strict=True)
        return np.array([float(value.get(name, value.get(bare, 0.0))) for name, bare in pairs])
    _require_positive(value, where)
    turns = [unit == "rad" and bare != GRIPPER for unit, bare in zip(joints.units, short, strict=True)]
    return np.where(turns, float(value), 0.0)


def _require_positive(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e5:
        raise DeviceError(f"{where} is {value!r}, it must be a number that is not negative, at most 100000")
