"""An arm's setpoint between two commands: on a straight line to the last target, within the limits of
position and velocity."""

from __future__ import annotations

import numpy as np

from .arm import Joints, limit_target


class Setpoint:
    """Moves from its present value to the last target `(J,)`, and arrives at that target's time. Times are ns
    of one clock. For one thread at a time."""

    def __init__(self, q: np.ndarray, now_ns: int) -> None:
        self.hold(q, now_ns)

    def hold(self, q: np.ndarray, now_ns: int) -> None:
        self._from = self.goal = q
        self._t_from = self._t_goal = now_ns
        # when the last command came; None: there is no command that a watchdog could miss the next of
        self.commanded_ns: int | None = None

    def command(self, target: np.ndarray, t_target_ns: int, joints: Joints, now_ns: int) -> np.ndarray:
        """Take a new target. Returns it as the limits allow it, `(J,)`."""
        # start from the setpoint's value now: a command that comes early must not skip the rest of the last
        # one
        start = self.goal if now_ns >= self._t_goal else self.at(now_ns)
        goal = limit_target(target, start, (t_target_ns - now_ns) * 1e-9, joints)
        self._from, self.goal = start, goal
        self._t_from, self._t_goal = now_ns, max(t_target_ns, now_ns + 1)
        self.commanded_ns = now_ns
        return goal.copy()

    def at(self, t_ns: int) -> np.ndarray:
        """The setpoint at a time, `(J,)`."""
        span = self._t_goal - self._t_from
        w = 1.0 if span <= 0 else min((t_ns - self._t_from) / span, 1.0)
        return self._from + w * (self.goal - self._from)
