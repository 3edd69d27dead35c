"""What is in the way of a servo arm: which joints push and do not get there, and how far they may go on
pushing."""

from __future__ import annotations

import time

import numpy as np

# A joint is blocked when it pushes with this part of its strength, this far (rad) from its goal, and moves no
# further than this for so long. The servos' own protection waits 1 to 2 s, and then lets go until it is
# reset.
STALL_LOAD, STALL_ERROR, STALL_MOVED, STALL_S = 0.8, 0.08, 0.03, 0.5
# Near its goal, or moving to and fro under its load, it is blocked when it pushes so hard for so long without
# a rest: that is all that the servos' protection looks at. Where even that did not ease it, it stops pushing.
TIRED_S, LAST_S = 1.0, 1.6
STALL_PUSH = (
    0.03  # rad beyond where it is blocked: it goes on leaning there, and less while that is still too much
)
EASE_S = 0.15
# Where it pushes with less than this part, it feels its way on, in rad/s: what was in the way may be gone, or
# may give
EASY_LOAD, CREEP = 0.4, 0.2


class Obstacles:
    """Finds joints that push and do not move, or push without a rest, and keeps their goals from pushing
    harder while something is in the way."""

    def __init__(self, n: int) -> None:
        self.blocked = np.zeros(n)  # the sense in which a joint is, else 0
        self._at, self._push = np.zeros(n), np.zeros(n)
        self._since_ns, self._from = np.zeros(n, np.int64), np.zeros(n)
        self._looked_ns = time.monotonic_ns()
        self._hard_ns = np.full(n, self._looked_ns)  # since when it has pushed without a rest

    def clear(self) -> None:
        self.blocked[:] = 0
        self._since_ns[:] = self._hard_ns[:] = time.monotonic_ns()

    def look(self, q: np.ndarray, load: np.ndarray, known: np.ndarray, sent: np.ndarray) -> None:
        """A reading: q `(J,)` rad, load `(J,)` in parts of the full one, of the joints where `known`. sent:
        their goals."""
        now, push = time.monotonic_ns(), sent - q
        already = self.blocked != 0
        on = CREEP * min((now - self._looked_ns) * 1e-9, 0.1) * (known & already & (np.abs(load) < EASY_LOAD))
        self._at, self._looked_ns = self._at + on * self.blocked, now
        hard = (np.abs(load) >= STALL_LOAD) & ((np.abs(push) >= STALL_ERROR) | already)
        calm = known & (~hard | (np.abs(q - self._from) > STALL_MOVED))
        self._since_ns = np.where(calm, now, self._since_ns)
        self._from = np.where(calm, q, self._from)
        found = known & hard & (now - self._since_ns > np.where(already, EASE_S, STALL_S) * 1e9)
        self._hard_ns = np.where(known & (np.abs(load) < STALL_LOAD), now, self._hard_ns)
        strained_s = (now - self._hard_ns) * 1e-9
        found |= known & ~already & (strained_s > TIRED_S)
        self._since_ns = np.where(found, now, self._since_ns)
        self.blocked = np.where(found & ~already, np.sign(push), self.blocked)
        less = np.where(already, self._push / 2, np.where(strained_s > LAST_S, 0.0, STALL_PUSH))
        self._push = np.where(found, less, self._push)
        self._at = np.where(found, q + self.blocked * self._push, self._at)

    def release(self, wanted: np.ndarray) -> None:
        """A joint told to come back, or that got there, is free again."""
        self.blocked = np.where((wanted - self._at) * self.blocked <= 0, 0.0, self.blocked)

    def limit(self, wanted: np.ndarray) -> np.ndarray:
        """`wanted` `(J,)`, but no further than the obstacles."""
        goal = np.where(self.blocked > 0, np.minimum(wanted, self._at), wanted)
        return np.where(self.blocked < 0, np.maximum(goal, self._at), goal)
