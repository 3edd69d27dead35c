"""Merging of the ticks that two chunks share, as LeRobot's asynchronous inference does it (Shukor et al.
2025, SmolVLA, arXiv 2506.01844)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...policies.serving.metadata import Metadata
from .strategy import Asynchronous, Plan, Reply

NEW = {"weighted_average": 0.7, "latest_only": 1.0, "average": 0.5, "conservative": 0.3}


@dataclass(frozen=True)
class Overlap(Asynchronous):
    """Ask when no more than a share of the chunk is left, and on the ticks for which the old chunk has an
    action, too, take a weighted mean of both. Both are right for their tick, so the mean averages modes.

    Faithful: the four merges by LeRobot's names and weights, and its threshold. Not: observations that are
    like the last one are not left out, and nobody has to say that a chunk must go on. What the policy wants
    executed is honoured: it is asked again after as many ticks at the latest."""

    merge: Literal["weighted_average", "latest_only", "average", "conservative"] = "weighted_average"
    """Share of the new chunk in the mean: 0.7, 1, 0.5 or 0.3."""
    threshold: float = 0.5
    """Share of the chunk that is left when the next one is asked for, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: it is a share of the chunk, 0 to 1")

    def plan(self, metadata: Metadata) -> Plan:
        return _Plan(NEW[self.merge], self.threshold)


class _Plan(Plan):
    def __init__(self, new: float, threshold: float) -> None:
        self.new, self.threshold = new, threshold
        super().__init__()

    def due(self, now: int, delay: int) -> bool:
        left = self.start + len(self.actions) - now
        return now >= self.until or left <= self.threshold * self._whole

    def reset(self) -> None:
        super().reset()
        self._whole = 0

    def take(self, reply: Reply, now: int) -> bool:
        rest = reply.actions[now - reply.asked :]
        if not len(rest):
            return False
        old = self.ahead(now)[: len(rest)]
        merged = np.array(rest)
        if len(old):
            merged[: len(old)] = (1 - self.new) * old + self.new * rest[: len(old)]
        self.start, self.actions, self._whole = now, merged, len(reply.actions)
        self.until = reply.asked + reply.count(len(reply.actions))
        return True
