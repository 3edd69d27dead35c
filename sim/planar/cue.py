"""T2 cue: a cue is shown, much later a turn is due. Which way, only memory tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector
from .expert import Expert, balanced_choice

STEP = 0.05  # m a tick, 0.5 m/s
SIDE = 0.25  # m: how far the two places to turn to lie from home, to the left and to the right
RADIUS = 0.04  # m: nearer than this is there
AWAY = 0.08  # m from home: who is further off before the turn is due has left too early
START_SPREAD = 0.02
SHOWN = 3  # ticks that a cue, or a distractor, is seen
QUIET = 9  # ticks between the distractors, on average
LATE = 25  # ticks that there are to turn


class Cue(PlanarEnv):
    """Success: at the right one of two places, left and right of home, once the turn is due. The other one,
    and leaving home before, end the episode. Whoever does not remember has 1 chance in 2.

    Each of the `cues` is shown for three ticks, one after the other in any order: its `key` is 1 and `value`
    is -1 (left) or 1 (right). Then `delay` ticks pass, in which values without a key are seen that mean
    nothing. Then `go` is 1 to the end, beside the key of the cue that counts.

    Controls. visible: that cue is seen, key and value, at every tick. irrelevant: the turn is always to the
    right, and cues mean nothing either."""

    task_name = "cue"

    def __init__(
        self,
        num_envs: int,
        delay: int = 40,
        cues: int = 1,
        visible: bool = False,
        irrelevant: bool = False,
    ) -> None:
        if delay < 0 or cues < 1:
            raise ValueError(f"delay {delay} must be at least 0 ticks, and cues {cues} at least 1")
        self.delay, self.cues, self.visible, self.irrelevant = delay, cues, visible, irrelevant
        self.due = SHOWN * cues + delay
        """Tick from which on the turn is due."""
        names = (*(f"key.{i}" for i in range(cues)), "value", "go")
        self.observed = {STATE: XY, ENVIRONMENT: Vector(names, ("1",) * len(names))}
        super().__init__(num_envs, self.due + LATE, (-0.35, -0.2), (0.35, 0.2))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        world = rng.uniform(-START_SPREAD, START_SPREAD, 2)
        values = rng.choice([-1.0, 1.0], self.cues)
        query = rng.integers(self.cues)
        values[query] = 2.0 * balanced_choice(seed, 2) - 1.0
        noise = np.zeros(self.delay)
        for t in range(self.delay - SHOWN + 1):
            if not noise[max(t - 1, 0) : t + 1].any() and rng.random() < 1 / QUIET:
                noise[t : t + SHOWN] = rng.choice([-1.0, 1.0])
        # the key and the value of each cue in the order that they are shown, what counts, the distractors
        order = rng.permutation(self.cues)
        return world, np.concatenate([[query, values[query]], order, values[order], noise])

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, 0], world_nS[:, 1], target_nA[:, 0], target_nA[:, 1], STEP)
        side = np.ones(len(x)) if self.irrelevant else constants_nC[:, 1]
        due = tick_n >= self.due
        right = distance(x, y, side * SIDE, 0.0) < RADIUS
        wrong = distance(x, y, -side * SIDE, 0.0) < RADIUS
        early = distance(x, y, 0.0, 0.0) > AWAY
        return Outcome(np.stack([x, y], axis=1), due & right, np.where(due, wrong, early))

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        rows, n = np.arange(len(world_nS)), self.cues
        shown = np.zeros((len(rows), n + 2))
        place = np.minimum(tick_n // SHOWN, n - 1)
        key, value = constants_nC[rows, 2 + place], constants_nC[rows, 2 + n + place]
        due, first = tick_n >= self.due, tick_n < SHOWN * n
        if self.visible:
            key, value = constants_nC[:, 0], constants_nC[:, 1]
            first = np.ones(len(rows), bool)
        between = ~first & ~due
        shown[rows, np.where(first, key, constants_nC[:, 0]).astype(np.int64)] = first | due
        shown[:, n] = np.where(first, value, 0.0)
        if self.delay:
            after = np.clip(tick_n - SHOWN * n, 0, self.delay - 1)
            shown[:, n] = np.where(between, constants_nC[rows, 2 + 2 * n + after], shown[:, n])
        shown[:, n + 1] = due
        return {STATE: world_nS.astype(np.float32), ENVIRONMENT: shown.astype(np.float32)}

    def instruction(self, seed: int) -> str:
        return "turn right" if self.irrelevant else "turn to the side that the cue said"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return CueExpert(self, seeds, noise, **mode)


class CueExpert(Expert):
    """Remembers every cue, which no observation of the turn shows: on purpose, it is what the task tests."""

    def __init__(self, env: Cue, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self._irrelevant = env.irrelevant
        self._values = np.zeros((len(self.seeds), env.cues))

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        shown = observation[ENVIRONMENT].astype(np.float64)
        key, value, go = shown[:, :-2] > 0.5, shown[:, -2], shown[:, -1] > 0.5
        self._values = np.where(key & (value != 0)[:, None], value[:, None], self._values)
        asked = np.where(key, self._values, 0.0).sum(axis=1)
        aim = np.where(go, SIDE if self._irrelevant else SIDE * asked, 0.0)
        return towards(x, y, aim, 0.0, STEP)

    def disturbed_share(self, observation: Observation) -> np.ndarray:
        # steadier where it waits, so that the noise of a demonstration does not leave home by itself
        return np.where(observation[ENVIRONMENT][:, -1] > 0.5, 1.0, 0.5)
