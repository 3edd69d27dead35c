"""Trials of one task: which of four places is right is found out by trying, and stays so (after the trials of
AdA, Adaptive Agent Team 2023, arXiv 2301.07608, in the plane)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector
from .expert import Expert

PLACES = 4
STEP = 0.04  # m a tick, 0.4 m/s
RING = 0.25  # m from the middle to a place
TOUCH = 0.05  # m, as near as that is there
BACK = 0.05  # m from the middle, where the next trial begins
START_SPREAD = 0.02
TICKS = 20  # for each trial

X, Y, TRIAL, ENDED, RIGHT = range(5)  # columns of the world; ENDED: how, until it is back in the middle
# the constants are x and y of each place, then which is right in each trial


class Trials(PlanarEnv):
    """Success: in the last of the trials the first place that is touched is the right one, which is the same
    in all of them. A trial ends at whatever place is touched, and the next begins where the body is back in
    the middle; on its way there it sees whether that was right (1) or not (-1), and no place counts. Where
    the places lie is drawn for each episode. Who remembers nothing has 1 chance in 4 in any trial; who tries
    one after the other, and remembers, has found it by the fourth.

    trials: how many. anew: the control, the right place is drawn anew for each trial, so that nothing that
    was found out is worth anything.

    info `right` `(n,)` int, trials that ended at the right place."""

    task_name = "trials"
    observed = {  # noqa: RUF012
        STATE: XY,
        ENVIRONMENT: Vector(
            (*(f"place {i}.{axis}" for i in range(PLACES) for axis in "xy"), "ended"),
            (*["m"] * 2 * PLACES, "1"),
        ),
    }

    def __init__(self, num_envs: int, trials: int = 4, anew: bool = False) -> None:
        if trials < 1:
            raise ValueError(f"trials is {trials}: there must be at least one")
        self.trials, self.anew = trials, anew
        super().__init__(num_envs, TICKS * trials, (-0.4, -0.4), (0.4, 0.4))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        world = np.zeros(5)
        world[:2] = rng.uniform(-START_SPREAD, START_SPREAD, 2)
        angle = rng.uniform(0, 2 * np.pi) + np.arange(PLACES) * 2 * np.pi / PLACES
        places = RING * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        right = rng.integers(PLACES, size=self.trials) if self.anew else rng.integers(PLACES)
        return world, np.concatenate([places.ravel(), np.broadcast_to(right, self.trials)])

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        trial, before = world_nS[:, TRIAL], world_nS[:, ENDED]
        rows, i = np.arange(len(x)), np.minimum(trial.astype(np.int64), self.trials - 1)
        answer = constants_nC[rows, 2 * PLACES + i]
        ended = before
        for p in range(PLACES):
            there = distance(x, y, constants_nC[:, 2 * p], constants_nC[:, 2 * p + 1]) <= TOUCH
            ended = np.where(there & (before == 0), np.where(answer == p, 1.0, -1.0), ended)
        over, last = (ended != 0) & (before == 0), trial == self.trials - 1
        found = over & (ended > 0)
        back = (before != 0) & (distance(x, y, 0.0, 0.0) <= BACK)
        world = np.stack([x, y, trial + back, np.where(back, 0.0, ended), world_nS[:, RIGHT] + found], axis=1)
        return Outcome(world, last & found, last & over & ~found)

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        seen = np.concatenate([constants_nC[:, : 2 * PLACES], world_nS[:, ENDED, None]], axis=1)
        return {STATE: world_nS[:, :2].astype(np.float32), ENVIRONMENT: seen.astype(np.float32)}

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"right": world_nS[:, RIGHT].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return "find the right place, and go there again"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return TrialsExpert(self, seeds, noise, **mode)


class TrialsExpert(Expert):
    """Tries the places in a row until one was right, and then goes there. It remembers which it tried last,
    which no observation in the middle shows: on purpose, it is what the task tests."""

    def __init__(self, env: Trials, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self._next = np.zeros(len(self.seeds), np.int64)
        self._told = np.zeros(len(self.seeds))

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        seen = observation[ENVIRONMENT].astype(np.float64)
        told, before = seen[:, -1], self._told
        self._told = told
        self._next = np.where((told < 0) & (before == 0), (self._next + 1) % PLACES, self._next)
        rows, back = np.arange(len(x)), told != 0
        aim_x, aim_y = (np.where(back, 0.0, seen[rows, 2 * self._next + axis]) for axis in (0, 1))
        return towards(x, y, aim_x, aim_y, STEP)
