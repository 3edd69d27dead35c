"""A filter that changes nothing, in the place of the safety filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Filtered:
    command: np.ndarray
    velocity: np.ndarray
    flags: int = 0
    reasons: tuple[str, ...] = ()


class Straight:
    def reset(self, q_A: np.ndarray) -> None:
        self._q = q_A.copy()

    def step(self, target_A: np.ndarray | None, dt_s: float) -> Filtered:
        if target_A is None:
            return Filtered(self._q.copy(), np.zeros(len(self._q)))
        velocity = (target_A - self._q) / dt_s
        self._q = target_A.copy()
        return Filtered(target_A.copy(), velocity)
