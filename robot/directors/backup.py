"""Another policy where the first one fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.features import STATE
from ...drivers.config import setting
from ..gate import require_validated
from .director import Moment, Order, Replace

if TYPE_CHECKING:
    from ...policies.serving.client import PolicyClient
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

    def __post_init__(self) -> None:
        self._checkpoint: str | None = None  # that every answer must be of

    def admit(self, config: dict[str, Any], where: str, unvalidated: str = "") -> Mapping[str, Any]:
        """What is stored of this policy with each episode on a real robot, as of `gate.require_validated`;
        from now on another checkpoint may not take its place."""
        with self._connect() as client:
            metadata = client.metadata
        self._checkpoint = metadata.checkpoint or None
        passed = require_validated(config, where, metadata, unvalidated)
        return {"server": self.server, "checkpoint": metadata.checkpoint, **passed}

    def _connect(self) -> PolicyClient:
        from ...policies.serving.client import PolicyClient

        if not self.server:
            raise ValueError("Backup needs another policy: --Backup.server ws://HOST:PORT")
        return PolicyClient(self.server, checkpoint=self._checkpoint)

    def open(self, rig: Rig) -> None:
        from ..agent import PolicyAgent
        from ..lerobot_words import for_robot

        self._client = self._connect()
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
