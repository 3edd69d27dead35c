"""Watches how hot an arm's motors are and how hard they push, where the arm tells it: a hot arm goes slowly,
and one that is too hot, or pushes in vain for long, is stopped before its motors switch themselves off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...drivers.arm import Strain

WARM_C, HOT_C = 10.0, 4.0  # °C below the limit of the motor: from here on slowly, from here on no further
COOLED_C = 3.0  # °C below those, until which it stays so
SLOW = 0.3  # rad/s (m/s) of a joint that is warm
WARM = "warm"  # the reason of a tick in which that was less than what was asked for
PUSHES = 0.8  # share of the full load
LONGEST_LAG_S = 1.0
LONGEST_PUSH_S = 5.0  # a driver's own protection, where it has one, has eased off by then


class Guard:
    """One arm. names: of its joints.

    `slow`: it may go no faster than `SLOW`. `refusal`: why it takes no commands, else "". `note`: what there
    is to be said, else ""."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.slow, self.refusal, self.note = False, "", ""
        self._strained = self._astray = ""  # what of the refusal is of its motors, and of where it is
        self._near_s: float | None = None  # when every joint was last near to where it was sent
        self._warm = self._hot = np.zeros(len(names), bool)
        self._free_s: np.ndarray | None = None  # when each joint last pushed less

    def follows(self, lag: np.ndarray, most: float, t_s: float) -> bool:
        """Take by how much each joint `(J,)` is away from where it was sent; a gripper's is 0, since what it
        holds is in its way. most: rad or m. Returns whether the arm is found astray just now, which stays
        until there is a new guard."""
        if self._near_s is None or np.abs(lag).max() <= most:
            self._near_s = t_s
        if self._astray or t_s - self._near_s <= LONGEST_LAG_S:
            return False
        j = int(np.argmax(np.abs(lag)))
        self._astray = (
            f"{self.names[j]} was {abs(lag[j]):.2f} from where it was sent (at most {most:g}): the arm "
            "holds; look what keeps it, and enable it again"
        )
        self._tell("")
        return True

    def step(self, strain: Strain, t_s: float) -> None:
        """Take what the arm told of its motors at `t_s`."""
        room_c = np.nan_to_num(strain.limit_c - strain.temperature_c, nan=np.inf)
        self._warm = room_c < np.where(self._warm, WARM_C + COOLED_C, WARM_C)
        self._hot = room_c < np.where(self._hot, HOT_C + COOLED_C, HOT_C)
        if self._free_s is None:
            self._free_s = np.full(len(self.names), t_s)
        self._free_s = np.where(np.abs(strain.load) < PUSHES, t_s, self._free_s)
        pushing_s = t_s - self._free_s
        self.slow = bool(self._warm.any())
        j = int(np.argmin(room_c))
        heat = f"{self.names[j]} is at {strain.temperature_c[j]:.0f} °C"
        self._strained = ""
        if self._hot.any():
            self._strained = (
                f"{heat}, and its motor switches off at {strain.limit_c[j]:.0f}: the arm holds; end the run, "
                "which puts it down, and let it cool"
            )
        elif pushing_s.max() > LONGEST_PUSH_S:
            j = int(np.argmax(pushing_s))
            self._strained = (
                f"{self.names[j]} has pushed with {100 * abs(strain.load[j]):.0f} % of its strength for "
                f"{pushing_s[j]:.0f} s: the arm holds; look what it pushes against"
            )
        self._tell(f"{heat}: the arm goes slowly until it has cooled" if self.slow else "")

    def _tell(self, warning: str) -> None:
        self.refusal = self._strained or self._astray
        self.note = self.refusal or warning or (self.note if self.slow else "")
