"""Try again where the task was not done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...drivers.config import setting
from .director import Again, End, Moment, Order
from .verifier import SCENE, verifier

if TYPE_CHECKING:
    from ..config import Rig


@dataclass
class Retry:
    """After `seconds` of the policy the verifier is asked; where the task is not done, the arm goes home and
    the policy begins anew (the retry loop of Robot Utility Models, Etukuru et al. 2024, whose verifier is a
    language model that looks at pictures; ours is a detector learned from labels, or the scene)."""

    attempts: int = setting(3, 1, 100)
    """How many in all."""
    seconds: float = setting(10.0, 0.1, 3600, "s")
    """That an attempt may take."""
    verifier: str = SCENE
    """`scene`, or the folder of a detector."""

    def open(self, rig: Rig) -> None:
        self._is_done = verifier(self.verifier, rig)
        self._begun = 1

    def close(self) -> None:
        pass

    def reset(self, task: str, seed: int) -> None:
        self._begun = 1

    def direct(self, moment: Moment) -> Order | None:
        if moment.seconds < self.seconds:
            return None
        if self._is_done(moment.observation):
            return End(True, f"attempt {self._begun} succeeded")
        failed = f"attempt {self._begun} of {self.attempts} failed: not done after {moment.seconds:g} s"
        if self._begun >= self.attempts:
            return End(False, failed)
        self._begun += 1
        return Again(f"{failed}; again from the beginning")
