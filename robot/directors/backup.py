"""Another policy where the first one fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.features import STATE
from ...drivers.config import setting
from .director import Moment, Order, Replace

if TYPE_CHECKING:
    from ..config import Rig

RESTS = 0.01  # rad (m) that a joint that stands still may tremble by


@dataclass
class Backup:
    """The policy at another server takes over for the rest of the episode when the first one fails (its
    server died, or answers with what is no action), when the arm has stood still, or when time is up."""

    server: str = ""
    """Its address, `ws://HOST:PORT`."""
    after: float = setting(0.0, 0, 3600, "s")
    """Time that the first policy has; 0: as long as the episode lasts."""
    still: float = setting(0.0, 0, 600, "s")
    """Standing still for that long counts as failing; 0: never."""

    def open(self, rig: Rig) -> None:
        from ...policies.serving.client import PolicyClient
        from ..agent import PolicyAgent
        from ..lerobot_words import for_robot

        if not self.server:
            raise ValueError("Backup needs another policy: --Backup.server ws://HOST:PORT")
        self._client = PolicyClient(self.server)
        try:
            policy = for_robot(self._client, rig)
            self._agent = PolicyAgent(policy, rig.robot.features, rig.robot.control_hz)
        except BaseException:
            self._client.close()
            raise
        self.reset("", 0)

    def close(self) -> None:
        self._client.close()

    def reset(self, task: str, seed: int) -> None:
        self._replaced = False
        self._rest: tuple[float, np.ndarray] | None = None  # since when, and where

    def direct(self, moment: Moment) -> Order | None:
        if self._replaced:
            return None
        why = moment.failure
        if not why and self.after and moment.seconds >= self.after:
            why = f"not done after {moment.seconds:g} s"
        if not why and self.still and self._rested(moment) >= self.still:
            why = f"the arm has stood still for {self.still:g} s"
        if not why:
            return None
        self._replaced = True
        return Replace(self._agent, f"the policy at {self.server} takes over: {why}")

    def _rested(self, moment: Moment) -> float:
        """Seconds for which the joints have been where they are."""
        q = moment.observation.values[STATE]
        rest = self._rest
        if rest is None or rest[0] > moment.seconds or np.abs(q - rest[1]).max() > RESTS:
            self._rest = rest = moment.seconds, q
        return moment.seconds - rest[0]
