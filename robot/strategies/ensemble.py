"""Temporal ensembling (ACT, Zhao et al. 2023, arXiv 2304.13705)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from ...policies.serving.metadata import Metadata
from .strategy import Asynchronous, Plan, Reply


@dataclass(frozen=True)
class Ensemble(Asynchronous):
    """Ask at every tick, or as soon as the last answer is there; the action is the mean of all predictions
    made for now, weighted exp(-decay·i) with i = 0 the *oldest* (Zhao et al. 2023, m = 0.01). Actions beyond
    those that the policy wants executed have no part in the mean."""

    decay: float | None = None
    """Of the weights; negative: the newest weigh most. None: as the policy says."""
    wait: bool = False
    """Let every tick wait for its chunk, as ACT's own code does and policies with the decoder ensemble are
    run where no strategy is chosen."""

    @property
    def waits(self) -> bool:
        return self.wait

    def plan(self, metadata: Metadata) -> Plan:
        return _Plan(metadata.ensemble_decay if self.decay is None else self.decay)


class _Plan(Plan):
    def __init__(self, decay: float) -> None:
        if not math.isfinite(decay):
            raise ValueError(f"decay is {decay}: it must be finite")
        self.decay = decay
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._chunks: deque[tuple[int, np.ndarray]] = (
            deque()
        )  # oldest first, with the tick of the first action

    def due(self, now: int, delay: int) -> bool:
        return True

    def take(self, reply: Reply, now: int) -> bool:
        actions = reply.actions[: reply.count(len(reply.actions))]
        if now - reply.asked >= len(actions):
            return False
        self._chunks.append((reply.asked, actions))
        return True

    def action(self, now: int) -> np.ndarray | None:
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= now:
            self._chunks.popleft()
        return self._mean(now)

    def ahead(self, now: int) -> np.ndarray:
        last = max((start + len(chunk) for start, chunk in self._chunks), default=now)
        means = [m for t in range(now, last) if (m := self._mean(t)) is not None]
        return np.stack(means) if means else self.actions

    def _mean(self, tick: int) -> np.ndarray | None:
        rows = [c[tick - start] for start, c in self._chunks if 0 <= tick - start < len(c)]
        if not rows:
            return None
        predictions = np.stack(rows)
        weights = np.exp(-self.decay * np.arange(len(predictions)))
        return (weights[:, None] * predictions).sum(0) / weights.sum()
