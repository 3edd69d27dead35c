"""The synchronous receding horizon (Diffusion Policy, Chi et al. 2023, arXiv 2303.04137)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...policies.serving.metadata import Metadata
from .strategy import Plan, Reply, Strategy


@dataclass(frozen=True)
class Receding(Strategy):
    """Execute the first `n_action_steps` of a chunk, or as many as the policy wants executed, be it more or
    fewer; then wait for a new one, whose first action is for the tick at which it is there. What is left of a
    chunk is not executed."""

    @property
    def waits(self) -> bool:
        return True

    def plan(self, metadata: Metadata) -> Plan:
        if metadata.n_action_steps < 1:
            raise ValueError(f"n_action_steps must be at least 1, not {metadata.n_action_steps}")
        return _Plan(metadata.n_action_steps)


class _Plan(Plan):
    def __init__(self, n_action_steps: int) -> None:
        self.n_action_steps = n_action_steps
        super().__init__()

    def due(self, now: int, delay: int) -> bool:
        return now >= self.until

    def take(self, reply: Reply, now: int) -> bool:
        self.start, self.actions = now, reply.actions
        self.until = now + reply.count(self.n_action_steps)
        return True

    def action(self, now: int) -> np.ndarray | None:
        return super().action(now) if now < self.until else None

    def announced(self, now: int) -> np.ndarray:
        # the next chunk begins where the arm stood when the policy was asked
        return self.ahead(now)[: max(self.until - now, 0)]
