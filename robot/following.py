"""A leader that goes where its follower is, while a policy drives: whoever takes over finds it there."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ..drivers.arm import Arm, DeviceError, Sprung

REST_S, RESTS = 1.0, 0.02  # a leader that moved less (rad) for so long is in nobody's hand
SPEED = 0.5  # rad/s
RESISTS = 0.3  # rad: further from where it was sent a hand moves it


class Following:
    """Torque only as long as nobody leads: a leader gets it once it has rested for `REST_S`, and loses it
    where a hand moves it, and before a person takes over (`let_go`). The spring of a gripper stays on all the
    while. leader: one that its user asked to follow, open. joints: those of it that do (`Follows.follows`).
    say: told when it gets torque, and when it has lost it."""

    def __init__(
        self,
        name: str,
        leader: Arm,
        joints: Sequence[int],
        control_hz: float,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self.name, self.leader, self._hz, self._say = name, leader, control_hz, say
        self._joints = list(joints)
        self._state: Literal["free", "waking", "follows", "refuses"] = "free"
        self._goal = np.zeros(0)
        self._rested: tuple[np.ndarray, int] | None = None  # where, and for how many ticks
        self._waking: threading.Thread | None = None
        self._refusal = ""
        self._has_torque = False  # it may have some, from `enable` on until that is confirmed to be off

    def step(self, where: np.ndarray) -> None:
        """In every tick in which the policy drives. where: the follower's joints `(J,)`. Never waits."""
        sample = self.leader.read()
        if not np.all(sample.valid):
            self._rested = None
        elif self._state == "free":
            if self._rest(sample.data) >= REST_S * self._hz:
                self._state = "waking"
                self._waking = threading.Thread(target=self._wake, name=f"{self.name} wakes", daemon=True)
                self._waking.start()
        elif self._state == "waking":
            if self._waking is not None and not self._waking.is_alive():
                self._state, self._goal = ("refuses" if self._refusal else "follows"), sample.data.copy()
                self._say(self._refusal or f"the leader of {self.name} follows the arm now: hands off")
        elif self._state == "follows":
            self._follow(sample.data, where)

    def let_go(self) -> None:
        """Take its torque away, and wait for that; from the next `step` on it must rest again. DeviceError:
        it may still have torque."""
        if self._waking is not None:
            self._waking.join()
        if self._has_torque:
            self._free()
        self._state, self._rested, self._waking, self._refusal = "free", None, None, ""

    def _free(self) -> None:
        if isinstance(self.leader, Sprung) and self.leader.sprung:
            self.leader.spring()
        else:
            self.leader.disable()
        self._has_torque = False

    def _rest(self, q: np.ndarray) -> int:
        """For how many ticks it has been where it is."""
        at, ticks = self._rested or (q, 0)
        self._rested = (at, ticks + 1) if np.abs(q - at).max() <= RESTS else (q, 0)
        return self._rested[1]

    def _wake(self) -> None:
        try:
            self.leader.enable()
            self._has_torque = True
        except DeviceError as error:
            self._refusal = f"the leader of {self.name} does not follow: {error}"

    def _follow(self, q: np.ndarray, where: np.ndarray) -> None:
        most = SPEED / self._hz
        try:
            if np.abs(q - self._goal)[self._joints].max() > RESISTS:
                self.let_go()
                self._say(f"the leader of {self.name} is free: a hand moved it, or it cannot carry itself")
                return
            goal = self._goal + np.clip(where - self._goal, -most, most)
            # two periods: at the rate of control the next command comes before this one is reached
            due = time.monotonic_ns() + round(2e9 / self._hz)
            self._goal = self.leader.command(goal, due)
        except DeviceError as error:
            self._refusal = f"the leader of {self.name} does not follow any more: {error}"
            self._state = "refuses"
            if self._has_torque:
                with contextlib.suppress(DeviceError):  # `let_go` tries again, and says so
                    self._free()
            self._say(self._refusal)
