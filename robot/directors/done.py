"""Stop when the task is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...drivers.config import setting
from .director import End, Moment, Order
from .verifier import SCENE, verifier

if TYPE_CHECKING:
    from ..config import Rig


@dataclass
class Done:
    """The episode ends as a success once the verifier has said so for `hold` seconds without a break: a
    policy goes on for ever, and may undo what it did."""

    verifier: str = SCENE
    """`scene`, or the folder of a detector."""
    hold: float = setting(0.5, 0, 60, "s")
    """How long it must say so."""

    def open(self, rig: Rig) -> None:
        self._is_done = verifier(self.verifier, rig)
        self._since: float | None = None

    def close(self) -> None:
        pass

    def reset(self, task: str, seed: int) -> None:
        self._since = None

    def direct(self, moment: Moment) -> Order | None:
        if not self._is_done(moment.observation):
            self._since = None
            return None
        if self._since is None or self._since > moment.seconds:  # the policy began anew meanwhile
            self._since = moment.seconds
        held = moment.seconds - self._since
        return End(True, f"done, by {self.verifier}") if held >= self.hold - 1e-9 else None
