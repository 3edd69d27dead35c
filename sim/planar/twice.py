"""T3 twice: visit A exactly twice, then B. How often A was visited is not observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import STATE, XY, Observation, Outcome, PlanarEnv
from .expert import Expert

# Tuned on seeds 0 to 999: from A home and back to A takes 12 ticks, so that 16 observations show at the
# second visit that there was a first, and 2 do not. B lies square to the way home.
STEP = 0.05  # m a tick, 0.5 m/s
HOME, A, B = (0.0, 0.0), (0.3, 0.0), (0.3, 0.4)
RADIUS = 0.04  # m: nearer than this is a visit
AWAY = 0.12  # m: A must be left this far before the next visit counts
START_SPREAD = 0.02

X, Y, VISITS, INSIDE = 0, 1, 2, 3  # columns of the world


class Twice(PlanarEnv):
    """Success: into B after exactly two visits of A. A third visit, and B before the second, end the episode.

    markov: the control, a plain reach of B with nothing hidden; A means nothing.

    info `visits` `(n,)` int, which a policy does not see."""

    task_name = "twice"
    observed = {STATE: XY}  # noqa: RUF012

    def __init__(self, num_envs: int, markov: bool = False) -> None:
        self.markov = markov
        super().__init__(num_envs, 60, (-0.2, -0.2), (0.5, 0.6))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        world = np.zeros(4)
        world[:2] = HOME + np.random.default_rng(seed).uniform(-START_SPREAD, START_SPREAD, 2)
        return world, np.zeros(0)

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        inside, from_a = world_nS[:, INSIDE] > 0, distance(x, y, *A)
        enters = ~inside & (from_a < RADIUS)
        visits = world_nS[:, VISITS] + enters
        world = np.stack([x, y, visits, enters | (inside & (from_a < AWAY))], axis=1)
        at_b = distance(x, y, *B) < RADIUS
        if self.markov:
            return Outcome(world, at_b, np.zeros(len(x), bool))
        return Outcome(world, at_b & (visits == 2), (at_b & (visits != 2)) | (visits > 2))

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        return {STATE: world_nS[:, :2].astype(np.float32)}

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"visits": world_nS[:, VISITS].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return "go to B" if self.markov else "visit A twice, then go to B"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return TwiceExpert(self, seeds, noise, **mode)


class TwiceExpert(Expert):
    """Remembers which leg of the way it is on, which no single observation shows: on purpose, it is what the
    task tests. Only `markov` needs no memory."""

    def __init__(self, env: Twice, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        legs = [B] if env.markov else [A, HOME, A, B]
        self._legs = np.array(legs)
        self._leg = np.zeros(len(self.seeds), np.int64)

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        aim = self._legs[self._leg]
        arrived = distance(x, y, aim[:, 0], aim[:, 1]) < 0.75 * RADIUS
        self._leg = np.minimum(self._leg + arrived, len(self._legs) - 1)
        aim = self._legs[self._leg]
        return towards(x, y, aim[:, 0], aim[:, 1], STEP)
