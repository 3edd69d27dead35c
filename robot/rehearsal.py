"""A script in the place of the person who takes over from a policy, in simulation: to rehearse corrections,
and to measure what they are worth."""

from __future__ import annotations

from typing import Any

import numpy as np

from .agent import ExpertAgent
from .robot import Observation

PATIENCE_S = 2.0
PROGRESS = 0.02  # of the reward, 0 to 1


class ExpertPerson(ExpertAgent):
    """The scene's expert. It takes over when the policy has made no progress (the scene's reward) for
    `patience_s`, and finishes the episode by itself."""

    tag = "human expert (scripted)"

    def __init__(self, scene: Any, control_hz: float, noise: float = 0.004, patience_s: float = PATIENCE_S):
        super().__init__(scene, noise)
        self._patience = round(patience_s * control_hz)

    def reset(self, task: str, seed: int) -> None:
        super().reset(task, seed)
        self._best, self._waited = 0.0, 0

    def asks(self) -> bool:
        reward = self.scene.reward()
        self._waited += 1
        if reward > self._best + PROGRESS:
            self._best, self._waited = reward, 0
        return self._waited >= self._patience

    def take(self, sent: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return super().act(observation)

    def sent(self, action: np.ndarray) -> None:
        pass
