"""Scripted demonstrators of the planar tasks, for many episodes at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from .env import Observation, PlanarEnv

NOISE_STREAM, CHOICE_STREAM = 7, 8
MEMORY = 0.8
"""Share of a disturbance that is left after a control period: it moves the body rather than shakes it."""


class Expert(ABC):
    """A rule over observations, disturbed. It looks at the present observation (and at the instruction, where
    a task has words), never at timers or phases, so that what it shows is a function of what a policy can
    see; where a task hides its stage on purpose, its expert says that it remembers.

    seeds: of the episodes, which fix disturbances and choices of each row. noise: standard deviation of the
    disturbance on the targets, m; a first-order chain, see `MEMORY`. Good for one episode of every seed."""

    def __init__(self, env: PlanarEnv, seeds: Sequence[int], noise: float) -> None:
        self.env, self.seeds, self.noise = env, [int(s) for s in seeds], noise
        width, ticks = len(env.action_names), env.max_ticks
        if noise > 0:
            self._fresh = np.stack(
                [np.random.default_rng([s, NOISE_STREAM]).standard_normal((ticks, width)) for s in self.seeds]
            )
        self._disturbance = np.zeros((len(self.seeds), width))
        self._tick = 0

    @abstractmethod
    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        """The rule: x and y `(n,)` of the next targets, m."""

    def disturbed_share(self, observation: Observation) -> np.ndarray | float:
        """How much of the disturbance acts, 0 to 1: less where the task needs precision, as a person's."""
        return 1.0

    def keep_clear(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The disturbed targets, moved off what must not be touched."""
        return x, y

    def act(self, observation: Observation) -> np.ndarray:
        """Actions `(n, 2)` float32."""
        x, y = self.targets(observation)
        if self.noise > 0:
            fresh = self._fresh[:, min(self._tick, self.env.max_ticks - 1)]
            scale = self.noise * (1 - MEMORY**2) ** 0.5
            self._disturbance = MEMORY * self._disturbance + scale * fresh
            share = self.disturbed_share(observation)
            x, y = x + share * self._disturbance[:, 0], y + share * self._disturbance[:, 1]
        self._tick += 1
        return np.stack(self.keep_clear(x, y), axis=1).astype(np.float32)


def balanced_choice(seed: int, count: int) -> int:
    """0 to count-1, exactly balanced over each aligned block of `count` seeds, in an order that looks random:
    fifty demonstrations split 25 to 25, and no subset by parity takes one kind alone."""
    order = np.random.default_rng([seed // count, CHOICE_STREAM, count]).permutation(count)
    return int(order[seed % count])
