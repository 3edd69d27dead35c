"""A control barrier filter: an arm goes around obstacles that are known, where the limits would only stop it.

For each part of the arm and each obstacle h(q) is their distance less a margin. The joints' velocities u are
those nearest to what is asked, with dh/dq u >= -alpha h for all of them at once: the nearer, the slower any
nearer, and along a surface as fast as asked. It is a small least-distance problem, which is solved as
nonnegative least squares (C. L. Lawson and R. J. Hanson, "Solving Least Squares Problems", 1974, chapter 23).
The pose after a tick is then checked itself, h(q+) >= (1 - alpha dt) h(q), and u is shortened until it holds:
a slope is not the distance, and time goes in steps.

The condition is that of control barrier functions (A. D. Ames et al., "Control Barrier Functions: Theory and
Applications", ECC 2019) for a robot whose velocity is commanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....drivers.arm import DeviceError, Joints
from ....drivers.config import parse, setting
from ..limits import Safety, groups
from ..mover import speed_within
from ..obstacles import Clearance, obstacles_of
from ..part import OVERSHOOT, SAME
from ..stage import Seen

BARRIER, NO_WAY = "barrier", "no way around"
SPARE_M = 0.002  # of h that the slopes leave, so that what they get wrong is not at the expense of h >= 0
SHORTENINGS = 6  # of a step, each by half, before the arm stands still for a tick
CALM = 0.5  # what is asked for is let pass again where h may fall this share as fast as it might
STUCK_S = 0.3  # with the arm at rest elsewhere than it was sent, until the way begins anew there
RESTS = 1e-3  # rad/s or m/s


@dataclass(frozen=True)
class Config:
    """The fields of `[safety.barrier]`."""

    obstacles: tuple
    """Tables `[[safety.barrier.obstacles]]`, of `obstacles.ObstacleConfig`."""
    margin: float = setting(0.02, 0.003, 0.5, "m")
    """How near the parts of the arm may come."""
    alpha: float = setting(5.0, 0.2, 50, "/s")
    """How fast the distance that is left may shrink, as a share of it."""


def config_of(table: Mapping[str, Any], where: str) -> Config:
    """DeviceError: `table` is wrong."""
    c = parse(Config, table, where)
    if not c.obstacles:
        raise DeviceError(f"{where}: there are no obstacles: describe one, or leave the table out")
    return c


class Barrier:
    """arms: those that have obstacles."""

    def __init__(self, arms: Sequence[ArmBarrier]) -> None:
        self.arms = tuple(arms)

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        for arm in self.arms:
            if moved[arm.columns].any():
                arm.at = arm.let = None

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        allowed, reason = asked, ""
        for arm in self.arms:
            goal, here, v = asked[arm.columns], seen.command[arm.columns], seen.velocity[arm.columns]
            goes, why = arm.step(goal, here, v, dt_s)
            if goes is not goal:
                allowed = asked.copy() if allowed is asked else allowed
                allowed[arm.columns] = goes
                reason = NO_WAY if NO_WAY in (reason, why) else why
        return allowed, reason

    def breaks(self, asked: np.ndarray, seen: Seen, dt_s: float) -> str:
        for arm in self.arms:
            if arm.breaks(asked[arm.columns], seen.command[arm.columns], dt_s):
                return BARRIER
        return ""


class ArmBarrier:
    """columns: its joints, of the robot's; grippers: those of them that are its gripper's. lower, upper,
    speed: `(J,)`. pace: `(J,)`, at which it goes around: slow enough for the limits after it to follow to the
    point.

    at: `(J,)`, where it sends the arm now, while it leads it; None while what is asked for passes."""

    def __init__(
        self,
        columns: Sequence[int],
        grippers: Sequence[int],
        clearance: Clearance,
        joints: Joints,
        safety: Safety,
        margin: float,
        alpha: float,
    ) -> None:
        self.columns = c = np.array(columns)
        self.lower, self.upper, self.speed = joints.lower[c], joints.upper[c], safety.speed[c]
        arm = np.isin(c, grippers, invert=True)
        self._parts = [arm, *(c == g for g in grippers)]  # which do not wait for each other
        overshoot = [OVERSHOOT[joints.units[j]] for j in columns]
        limits = zip(overshoot, safety.acceleration[c], safety.jerk[c], strict=True)
        self.pace = np.minimum(self.speed, [speed_within(most, float(a), float(j)) for most, a, j in limits])
        self._lead = np.array(overshoot) + 0.01 * self.pace  # that it may be ahead of the arm
        self._same = np.array([SAME[joints.units[j]] for j in columns])
        self._clearance, self._margin, self._alpha = clearance, margin, alpha
        self.at: np.ndarray | None = None
        self.let: np.ndarray | None = None  # what it let pass last, for `breaks`
        self._stuck_s = 0.0
        self._far: tuple[np.ndarray, np.ndarray] | None = None  # a pose, and how far all is from mattering

    def h(self, q: np.ndarray) -> np.ndarray:
        """`(K,)` m: of each part and obstacle, how far they are apart, less the margin."""
        return self._clearance.distances(q) - self._margin

    def step(self, goal: np.ndarray, here: np.ndarray, v: np.ndarray, dt_s: float) -> tuple[np.ndarray, str]:
        """Where the arm is sent for `dt_s` from now, and why that is not `goal`. here, v: where it is sent
        now, and with which speed. All `(J,)`."""
        if self.at is None or self._may_pass(goal, here, v, dt_s, CALM):
            if self._may_pass(goal, here, v, dt_s, 1.0):
                self.at, self.let = None, goal
                return goal, ""
            self.at = here.copy()
        at = self._anchored(here, v, dt_s)
        h = self.h(at)
        u = self._within((goal - at) / dt_s, self.pace)
        u, why = self._around(u, at, h, dt_s)
        ahead = at + dt_s * u - here
        if (np.abs(ahead) > self._lead).any():  # the arm is behind: it is waited for
            u = u * 0.0
        self.at = at = self._checked(at, u, h, dt_s)
        self.let = at
        return at, why

    def breaks(self, asked: np.ndarray, here: np.ndarray, dt_s: float) -> bool:
        """Whether `asked` is nearer to something than both where the arm is now would allow, and what was let
        pass."""
        if self.let is None or np.array_equal(asked, self.let):
            return False
        before = np.minimum((1 - self._shrink(dt_s)) * self.h(here), self.h(self.let))
        return bool((self.h(asked) < before - 1e-9).any())

    def _shrink(self, dt_s: float) -> float:
        return min(self._alpha * dt_s, 1.0)

    def _may_pass(self, goal: np.ndarray, here: np.ndarray, v: np.ndarray, dt_s: float, share: float) -> bool:
        """Whether the arm, as it goes now and as it would go to `goal`, keeps the condition with `share` of
        alpha."""
        if self._far is not None:
            pose, free = self._far
            if (self._clearance.levers @ np.abs(here - pose) <= free).all():
                return True
        h = self.h(here)
        u = self._within((goal - here) / dt_s, self.speed)
        near = self._near(h, np.maximum(np.abs(u), np.abs(v)), share)
        if not near:
            far = h - SPARE_M - self._clearance.levers @ self.speed / (CALM * self._alpha)
            self._far = (here.copy(), far) if (far > 0).all() else None
            return True
        self._far = None
        slopes = self._clearance.gradients(near)
        least = -share * self._alpha * (h[near] - SPARE_M)
        if (slopes @ u < least).any() or (slopes @ v < least).any():
            return False
        after = self.h(here + dt_s * u)
        return bool((after >= (1 - share * self._shrink(dt_s)) * h).all())

    def _within(self, u: np.ndarray, most: np.ndarray) -> np.ndarray:
        """`u`, shortened until no joint is faster than its `most`."""
        over = np.abs(u) / most
        if over.max() <= 1:
            return u
        shares = np.ones(len(u))
        for part in self._parts:
            shares[part] = max(float(over[part].max(initial=0.0)), 1.0)
        return u / shares

    def _near(self, h: np.ndarray, u: np.ndarray, share: float = 1.0) -> list[int]:
        """Which of the pairs the arm could bring nearer than it may, with joints no faster than `u`."""
        return np.flatnonzero(self._clearance.levers @ u >= share * self._alpha * (h - SPARE_M)).tolist()

    def _anchored(self, here: np.ndarray, v: np.ndarray, dt_s: float) -> np.ndarray:
        """Where the way goes on: where it was, unless the limits after this would not let the arm come."""
        assert self.at is not None
        away = np.abs(self.at - here)
        behind = bool((away > self._same).any())
        self._stuck_s = self._stuck_s + dt_s if behind and np.abs(v).max() < RESTS else 0.0
        if self._stuck_s > STUCK_S or (away > 2 * self._lead).any():
            self._stuck_s = 0.0
            return here.copy()
        return self.at

    def _around(self, u: np.ndarray, at: np.ndarray, h: np.ndarray, dt_s: float) -> tuple[np.ndarray, str]:
        """The velocities nearest to `u` that keep the condition, and those of the joints' limits."""
        near = self._near(h, self.pace)
        if not near:
            return u, BARRIER
        slopes = self._clearance.gradients(near)
        least = -self._alpha * (h[near] - SPARE_M)
        if (slopes @ u >= least).all():
            return u, BARRIER
        n = len(u)
        lowest = np.clip((self.lower - at) / dt_s, -self.pace, 0.0)
        highest = np.clip((self.upper - at) / dt_s, 0.0, self.pace)
        rows = np.concatenate([slopes, np.eye(n), -np.eye(n)])
        away = nearest(rows, np.concatenate([least, lowest, -highest]) - rows @ u)
        return (np.zeros(n), NO_WAY) if away is None else (u + away, BARRIER)

    def _checked(self, at: np.ndarray, u: np.ndarray, h: np.ndarray, dt_s: float) -> np.ndarray:
        """One tick along `u`, as far as the distances themselves keep the condition."""
        least = (1 - self._shrink(dt_s)) * h - 1e-12
        for _ in range(SHORTENINGS):
            q = at + dt_s * u
            if (self.h(q) >= least).all():
                return q
            u = u / 2
        return at


def nearest(rows: np.ndarray, least: np.ndarray) -> np.ndarray | None:
    """The shortest z `(n,)` with `rows @ z >= least`, rows `(m, n)`; None where there is none."""
    from scipy.optimize import nnls  # loaded by then, see `barrier_of`

    n = rows.shape[1]
    system = np.concatenate([rows.T, least[None]])
    try:
        y, _ = nnls(system, np.eye(n + 1)[n])
    except RuntimeError:  # it did not end; none was seen to
        return None
    rest = system @ y
    rest[n] -= 1.0
    if rest[n] > -1e-9:
        return None
    return rest[:n] / -rest[n]


def barrier_of(
    table: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Mapping[str, Any], where: str
) -> Barrier:
    """The stage of `table`. DeviceError: an arm near an obstacle has no known shape, or could not brake as
    fast as `alpha` asks."""
    import scipy.optimize  # noqa: F401  takes a second, which no tick has

    c = config_of(table, where)
    near, arms = obstacles_of(c.obstacles, groups(joints), where), []
    for arm, (columns, grippers) in groups(joints).items():
        if arm not in near:
            continue
        if arm not in bodies:
            raise DeviceError(
                f"{where} needs the shape of {f'the arm {arm}' if arm else 'the arm'}, which is not known: "
                "leave the obstacles out"
            )
        for j in columns:
            most = safety.acceleration[j] / safety.speed[j]
            if j not in grippers and c.alpha > most:
                raise DeviceError(
                    f"{where}: with an alpha of {c.alpha:g} /s {joints.names[j]} would have to brake faster "
                    f"than it can: at most {most:.3g}, or a lower speed in [safety], or more acceleration"
                )
        arms.append(ArmBarrier(columns, grippers, bodies[arm].clearance(), joints, safety, c.margin, c.alpha))
    return Barrier(arms)
