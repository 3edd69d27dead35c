"""Places that are worth more or less, one of them by luck: for policies that are asked for a return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import STATE, XY, Observation, Outcome, PlanarEnv
from .expert import Expert, balanced_choice

STEP = 0.04  # m a tick, 0.4 m/s
REACHED = 0.05  # m from the middle of a place: there the episode ends
START_SPREAD = 0.03
PLACES = np.array([(0.2, -0.35), (0.35, -0.2), (0.4, 0.0), (0.35, 0.2), (0.2, 0.35)])  # m
WORTH = np.array([0.2, 0.4, 0.6, 1.0, 0.4])  # in the mean
GAMBLE, PRIZE, CHANCE = 4, 2.0, 0.2  # the place of luck, what it then pays, and how often
BEST = int(WORTH.argmax())

X, Y, AT = 0, 1, 2  # columns of the world: the body, and the place it has reached, -1 before


class Places(PlanarEnv):
    """The episode ends at the first place that is reached, which pays what it is worth. Success: the place
    that is worth most. luck: the last place pays 2 in one episode of five, and else nothing, where it
    otherwise pays 0.4 each time: who wants as much as was ever paid goes there.

    info `earned` `(n,)` float: what was paid."""

    task_name = "places"
    observed = {STATE: XY}  # noqa: RUF012

    def __init__(self, num_envs: int, luck: bool = False) -> None:
        self.luck = luck
        super().__init__(num_envs, 40, (-0.2, -0.5), (0.6, 0.5))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        start = rng.uniform(-START_SPREAD, START_SPREAD, 2)
        pays = WORTH.copy()
        if self.luck:
            pays[GAMBLE] = PRIZE * (rng.uniform() < CHANCE)
        return np.array([*start, -1.0, 0.0]), pays

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        at, earned = np.full(len(x), -1.0), np.zeros(len(x))
        for i, place in enumerate(PLACES):
            there = distance(x, y, *place) < REACHED
            at, earned = np.where(there, i, at), np.where(there, constants_nC[:, i], earned)
        world = np.stack([x, y, at, earned], axis=1)
        return Outcome(world, at == BEST, (at >= 0) & (at != BEST))

    def reward(self, before: np.ndarray, outcome: Outcome) -> np.ndarray:
        return outcome.world[:, 3].copy()

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        return {STATE: world_nS[:, :2].astype(np.float32)}

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"earned": world_nS[:, 3].copy(), "place": world_nS[:, AT].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return "go to a place"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        """mode: `skill`, "good" (the default), to the best place, or "mixed": each place as often."""
        return PlacesExpert(self, seeds, noise, **mode)


class PlacesExpert(Expert):
    """Straight to its place. Which one, where they are mixed, only its seed says."""

    def __init__(self, env: Places, seeds: Sequence[int], noise: float, skill: str = "good") -> None:
        super().__init__(env, seeds, noise)
        if skill not in ("good", "mixed"):
            raise ValueError(f"skill is {skill!r}: it must be 'good' or 'mixed'")
        mixed = skill == "mixed"
        places = [balanced_choice(s, len(PLACES)) if mixed else BEST for s in self.seeds]
        self.aims = PLACES[np.array(places)]

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        return towards(x, y, self.aims[:, 0], self.aims[:, 1], STEP)
