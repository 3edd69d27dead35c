"""T8 stages: several places in the order that the words say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .demonstrations import demonstrations
from .env import DEMONSTRATION, ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector, metres
from .expert import Expert, balanced_choice

NAMES = ("key", "door", "lever", "exit")
STEP = 0.05  # m a tick, 0.5 m/s
REACH = 0.05  # m from the middle of a place: there it is visited
SLOTS = np.array([(0.25, 0.25), (-0.25, 0.25), (-0.25, -0.25), (0.25, -0.25)])
SPREAD, START_SPREAD = 0.02, 0.03  # m
HELD_OUT = 4  # one order of so many is not trained
PLACES = metres(*(f"{n}.{axis}" for n in NAMES for axis in "xy"))
SEEN = Vector((*PLACES.names, *(f"{n}.done" for n in NAMES)), (*PLACES.units, *("",) * len(NAMES)))

X, Y, DONE, COUNT = 0, 1, 2, 6  # columns of the world: the body, which places are done, how many
ORDER = 8  # column of the constants from which on they say the order; -1 beyond its end
SHOWN = 12  # ... from which on they hold the demonstration that is shown, a vector after the other


class Stages(PlanarEnv):
    """Success: every place of the order has been visited, one after the other; to visit another first ends
    the episode, one that is done may be passed again. What is done is seen, the order is in the words.

    stages: places in an order, 1 to 4. orders: "all", "train", or "held-out", every fourth, which is in none
    of the others. shown: a demonstration of this very episode, without noise, is seen from its beginning.
    info `visited` `(n,)` int."""

    task_name = "stages"
    observed = {STATE: XY, ENVIRONMENT: SEEN}  # noqa: RUF012

    def __init__(self, num_envs: int, stages: int = 3, orders: str = "all", shown: bool = False) -> None:
        if not 1 <= stages <= len(NAMES):
            raise ValueError(f"stages is {stages}: it must lie in 1..{len(NAMES)}")
        every = list(permutations(range(len(NAMES)), stages))
        chosen = {
            "all": every,
            "train": [o for i, o in enumerate(every) if i % HELD_OUT],
            "held-out": every[::HELD_OUT],
        }
        if orders not in chosen:
            raise ValueError(f"there are no orders {orders!r}: choose from {', '.join(chosen)}")
        self.stages, self.orders = stages, chosen[orders]
        ticks = 25 * stages
        self.demonstrated = ticks if shown else 0
        self._alike = partial(Stages, stages=stages, orders=orders)
        super().__init__(num_envs, ticks, (-0.5, -0.5), (0.5, 0.5))

    def order(self, seed: int) -> tuple[int, ...]:
        """The places, by number, of the episode of `seed`."""
        return self.orders[balanced_choice(seed, len(self.orders))]

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        places = SLOTS[rng.permutation(4)] + rng.uniform(-SPREAD, SPREAD, (4, 2))
        start = rng.uniform(-START_SPREAD, START_SPREAD, 2)
        order = np.full(len(NAMES), -1.0)
        order[: self.stages] = self.order(seed)
        constants = [places.ravel(), order]
        if n := self.demonstrated:
            seen = demonstrations(self._alike, [seed])[0].observation
            constants += [v[np.minimum(np.arange(n), len(v) - 1)].ravel() for v in seen.values()]
        return np.array([*start, *np.zeros(5)]), np.concatenate(constants)

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        world, wrong = world_nS.copy(), np.zeros(len(x), bool)
        world[:, X], world[:, Y] = x, y
        rows, count = np.arange(len(x)), world_nS[:, COUNT].astype(np.int64)
        due = constants_nC[rows, ORDER + np.minimum(count, self.stages - 1)]
        for i in range(len(NAMES)):
            there = distance(x, y, constants_nC[:, 2 * i], constants_nC[:, 2 * i + 1]) < REACH
            new = there & (world_nS[:, DONE + i] == 0)
            wrong |= new & (due != i)
            world[:, DONE + i] += new & (due == i)
            world[:, COUNT] += new & (due == i)
        return Outcome(world, ~wrong & (world[:, COUNT] == self.stages), wrong)

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        seen = np.concatenate([constants_nC[:, :ORDER], world_nS[:, DONE:COUNT]], axis=1)
        vectors = {STATE: world_nS[:, :2].astype(np.float32), ENVIRONMENT: seen.astype(np.float32)}
        if not (n := self.demonstrated):
            return vectors
        parts = np.split(constants_nC[:, SHOWN:].astype(np.float32), [2 * n], axis=1)
        return vectors | {
            DEMONSTRATION + k: part.reshape(len(part), n, -1) for k, part in zip(vectors, parts, strict=True)
        }

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"visited": world_nS[:, COUNT].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return ", then ".join(NAMES[i] for i in self.order(seed))

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return StagesExpert(self, seeds, noise, **mode)


class StagesExpert(Expert):
    """Sees what is done, and is told the order. Straight to the next place; none is on the way to another."""

    def __init__(self, env: Stages, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self._order = np.array([env.order(s) for s in self.seeds])

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        seen = observation[ENVIRONMENT].astype(np.float64)
        rows = np.arange(len(x))
        count = np.minimum(seen[:, 8:].sum(axis=1).astype(np.int64), self._order.shape[1] - 1)
        due = self._order[rows, count]
        return towards(x, y, seen[rows, 2 * due], seen[rows, 2 * due + 1], STEP)
