"""Corridors without end, each with a cue of its own: what was remembered must be written over (the endless
T-maze of Shchendrigin et al. 2026, arXiv 2601.15086, in the plane)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, towards
from .env import ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector
from .expert import Expert

STEP = 0.03  # m a tick, 0.3 m/s
SHOWN = 3  # ticks that a cue is seen, from where its corridor begins
LENGTH = 0.4  # m, of a corridor
SHORTEST = 0.2  # m, where lengths are drawn
ARM = 0.12  # m from the corridor's middle: who is as far off has turned
NEAR = 0.06  # m before or behind the junction that a turn may be
START_SPREAD = 0.01
TICKS = 30  # for each corridor

X, Y, PASSED, SINCE = 0, 1, 2, 3  # columns of the world; SINCE: ticks in this corridor
# the constants are the cue of each corridor, then where its junction lies


class Corridors(PlanarEnv):
    """Success: turned as the cue said at the end of each of the corridors, which lead to and fro. A wrong
    turn, or one where there is none, ends the episode. A cue (-1 right, 1 left, of who looks along x) is seen
    for three ticks where its corridor begins, the junction's place always.

    corridors: how many. uniform: their lengths are drawn. visible: the control, a cue is seen to the
    corridor's end.

    info `passed` `(n,)` int, corridors that were passed."""

    task_name = "corridors"
    observed = {  # noqa: RUF012
        STATE: XY,
        ENVIRONMENT: Vector(("cue", "junction"), ("1", "m")),
    }

    def __init__(
        self, num_envs: int, corridors: int = 3, uniform: bool = False, visible: bool = False
    ) -> None:
        if corridors < 1:
            raise ValueError(f"corridors is {corridors}: there must be at least one")
        self.corridors, self.uniform, self.visible = corridors, uniform, visible
        super().__init__(num_envs, TICKS * corridors, (-0.3, -0.2), (0.5, 0.2))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        world = np.zeros(4)
        world[:2] = rng.uniform(-START_SPREAD, START_SPREAD, 2)
        cues = rng.choice([-1.0, 1.0], self.corridors)
        junctions, at = np.zeros(self.corridors), 0.0
        for i in range(self.corridors):
            length = rng.uniform(SHORTEST, LENGTH) if self.uniform else LENGTH
            at = at + length if i % 2 == 0 else at - length
            # never beyond the field: there is room for the longest between its ends
            junctions[i] = at = min(max(at, -0.2), 0.4)
        return world, np.concatenate([cues, junctions])

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        cue, junction = self._corridor(world_nS, constants_nC)
        turns = (np.abs(y) >= ARM) & (np.abs(world_nS[:, Y]) < ARM)
        right = turns & (np.abs(x - junction) <= NEAR) & (np.sign(y) == cue)
        passed = world_nS[:, PASSED] + right
        since = np.where(right, 0.0, world_nS[:, SINCE] + 1)
        return Outcome(np.stack([x, y, passed, since], axis=1), passed == self.corridors, turns & ~right)

    def _corridor(self, world_nS: np.ndarray, constants_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Its cue, and where its junction lies; of the last one, where all are passed."""
        rows = np.arange(len(world_nS))
        i = np.minimum(world_nS[:, PASSED].astype(np.int64), self.corridors - 1)
        return constants_nC[rows, i], constants_nC[rows, self.corridors + i]

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        cue, junction = self._corridor(world_nS, constants_nC)
        seen = np.where((world_nS[:, SINCE] < SHOWN) | self.visible, cue, 0.0)
        return {
            STATE: world_nS[:, :2].astype(np.float32),
            ENVIRONMENT: np.stack([seen, junction], axis=1).astype(np.float32),
        }

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"passed": world_nS[:, PASSED].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return "turn at each junction as the last cue said"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return CorridorsExpert(self, seeds, noise, **mode)


class CorridorsExpert(Expert):
    """Remembers the last cue, which no observation at the junction shows: on purpose, it is what the task
    tests."""

    def __init__(self, env: Corridors, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self._cue = np.zeros(len(self.seeds))

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        cue, junction = columns(observation[ENVIRONMENT])
        self._cue = np.where(cue != 0, cue, self._cue)
        there = (np.abs(x - junction) < 0.5 * NEAR) & (np.abs(y) < ARM)
        aim = np.where(there, 1.5 * ARM * self._cue, 0.0)
        return towards(x, y, junction, aim, STEP)
