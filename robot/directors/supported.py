"""Stop where the policy does what the data never did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...drivers.config import setting
from .director import End, Moment, Order

if TYPE_CHECKING:
    from ..config import Rig


@dataclass
class Supported:
    """The episode ends, as a failure, once what was sent was outside of what a guard's data did where the
    robot was, for `ticks` in a row. It is for what a policy drifts into: what is dangerous at once is a
    matter of the robot's file."""

    guard: str = ""
    """Folder that `ulna guard` made; it may see every vector of the robot."""
    ticks: int = setting(10, 1, 10_000)
    """How many in a row: of those in the data some are outside, too."""

    def open(self, rig: Rig) -> None:
        from ...policies.guard import Guard

        if not self.guard:
            raise ValueError("Supported needs a guard: --Supported.guard FOLDER, from `ulna guard`")
        self._guard = Guard(self.guard, rig.robot.features)
        self.reset("", 0)

    def close(self) -> None:
        pass

    def reset(self, task: str, seed: int) -> None:
        self._before: dict[str, np.ndarray] | None = None
        self._outside = 0

    def direct(self, moment: Moment) -> Order | None:
        before, values = self._before, moment.observation.values
        self._before = {k: values[k] for k in self._guard.keys}
        if before is None or moment.sent is None or moment.seconds == 0 or moment.failure:
            return None
        self._outside = 0 if self._guard.supports(before, moment.sent) else self._outside + 1
        if self._outside < self.ticks:
            return None
        return End(False, f"{self._outside} ticks in a row the data support nothing like it")
