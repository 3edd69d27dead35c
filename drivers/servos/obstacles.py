"""Blocked joints of a servo arm: which joints push without moving, and how hard they may go on pushing."""

from __future__ import annotations

import time

import numpy as np

# A joint is blocked when it pushes with at least STALL_LOAD of its full load, is at least STALL_ERROR rad
# from its goal, and has moved less than STALL_MOVED rad in STALL_S. The servo's own protection waits 1 to 2
# s, and then switches the torque off until it is reset.
STALL_LOAD, STALL_ERROR, STALL_MOVED, STALL_S = 0.8, 0.08, 0.03, 0.5
# Near its goal, or moving to and fro, it is blocked when it pushes that hard for TIRED_S without a rest,
# since the servo's protection looks at the load alone. From LAST_S on it stops pushing altogether.
TIRED_S, LAST_S = 1.0, 1.6
# A blocked joint leans STALL_PUSH rad beyond where it was blocked, and half of that after each EASE_S in
# which it still pushes too hard.
STALL_PUSH, EASE_S = 0.03, 0.15
# A blocked joint that pushes with less than EASY_LOAD creeps on at CREEP rad/s: the obstacle may be gone, or
# may give way.
EASY_LOAD, CREEP = 0.4, 0.2


class Obstacles:
    """Finds joints that push and do not move, or push without a rest, and keeps their goals from pushing
    harder while something is in the way."""

    def __init__(self, n: int) -> None:
        self.blocked = np.zeros(n)  # 1 or -1, the sense in which a joint is blocked; 0 where it is free
        self._at, self._push = np.zeros(n), np.zeros(n)
        self._since_ns, self._from = np.zeros(n, np.int64), np.zeros(n)
        self._look_ns = time.monotonic_ns()
        self._hard_ns = np.full(n, self._look_ns)  # since when it has pushed without a rest

    def clear(self) -> None:
        self.blocked[:] = 0
        self._since_ns[:] = self._hard_ns[:] = time.monotonic_ns()

    def look(self, q: np.ndarray, load: np.ndarray, answered: np.ndarray, goal: np.ndarray) -> None:
        """Take a reading. q: `(J,)` rad. load: `(J,)`, signed, 1 is the full load. answered: `(J,)` bool, the
        joints whose values count. goal: `(J,)` rad, what was last sent to them."""
        now, push = time.monotonic_ns(), goal - q
        was_blocked = self.blocked != 0
        creep = (
            CREEP
            * min((now - self._look_ns) * 1e-9, 0.1)
            * (answered & was_blocked & (np.abs(load) < EASY_LOAD))
        )
        self._at, self._look_ns = self._at + creep * self.blocked, now
        hard = (np.abs(load) >= STALL_LOAD) & ((np.abs(push) >= STALL_ERROR) | was_blocked)
        calm = answered & (~hard | (np.abs(q - self._from) > STALL_MOVED))
        self._since_ns = np.where(calm, now, self._since_ns)
        self._from = np.where(calm, q, self._from)
        is_stuck = answered & hard & (now - self._since_ns > np.where(was_blocked, EASE_S, STALL_S) * 1e9)
        self._hard_ns = np.where(answered & (np.abs(load) < STALL_LOAD), now, self._hard_ns)
        strain_s = (now - self._hard_ns) * 1e-9
        is_stuck |= answered & ~was_blocked & (strain_s > TIRED_S)
        self._since_ns = np.where(is_stuck, now, self._since_ns)
        self.blocked = np.where(is_stuck & ~was_blocked, np.sign(push), self.blocked)
        lean = np.where(was_blocked, self._push / 2, np.where(strain_s > LAST_S, 0.0, STALL_PUSH))
        self._push = np.where(is_stuck, lean, self._push)
        self._at = np.where(is_stuck, q + self.blocked * self._push, self._at)

    def release(self, goal: np.ndarray) -> None:
        """Free the joints whose new goal `(J,)` rad is not beyond their obstacle."""
        self.blocked = np.where((goal - self._at) * self.blocked <= 0, 0.0, self.blocked)

    def limit(self, goal: np.ndarray) -> np.ndarray:
        """`goal` `(J,)` rad, but no further than the obstacles."""
        goal = np.where(self.blocked > 0, np.minimum(goal, self._at), goal)
        return np.where(self.blocked < 0, np.maximum(goal, self._at), goal)
