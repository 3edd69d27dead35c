"""Cubes that move about unseen: where each lies must be kept, and written over when it moves (the colour
cubes of Shchendrigin et al. 2026, arXiv 2601.15086, in the plane)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector
from .expert import Expert

COLOURS = ("red", "green", "blue")
N = len(COLOURS)
STEP = 0.04  # m a tick, 0.4 m/s
SLOTS = 0.25 * np.array([[1, 0], [0.5, 0.866], [-0.5, 0.866], [-1, 0], [-0.5, -0.866], [0.5, -0.866]])
RADIUS = 0.05  # m: nearer than this is at the cube
SHOWN = 3  # ticks that a cube is seen where it has come to lie
TICKS = 25  # for each cube that is fetched

PLACE, SINCE, DONE = slice(2, 2 + N), slice(2 + N, 2 + 2 * N), 2 + 2 * N  # columns of the world, after x, y
# PLACE: the slot of each cube; SINCE: ticks since it came to lie there; DONE: how many were fetched.
# The constants are the colours to fetch, and for every tick a colour that moves, or -1, and the slots in some
# order.


class Cubes(PlanarEnv):
    """Success: at the cube of the colour that is asked for, as often as one is asked for. Each that was
    fetched moves, and another colour is asked for; and now and then one that is not asked for moves. The
    touch of another cube ends the episode. A cube is seen for three ticks where it has come to lie, which all
    have where the episode begins; the colour that is asked for always.

    fetches: how many. moves: probability a tick that a cube moves. visible: the control, all are always seen.

    info `fetched` `(n,)` int."""

    task_name = "cubes"
    observed = {  # noqa: RUF012
        STATE: XY,
        ENVIRONMENT: Vector(
            (
                *(f"{c}.{what}" for c in COLOURS for what in ("seen", "x", "y")),
                *(f"wanted.{c}" for c in COLOURS),
            ),
            (*(("1", "m", "m") * N), *(("1",) * N)),
        ),
    }

    def __init__(self, num_envs: int, fetches: int = 4, moves: float = 0.1, visible: bool = False) -> None:
        if fetches < 1 or not 0 <= moves <= 1:
            raise ValueError(f"fetches {fetches} must be at least 1, and moves {moves} in 0..1")
        self.fetches, self.moves, self.visible = fetches, moves, visible
        super().__init__(num_envs, TICKS * fetches, (-0.35, -0.35), (0.35, 0.35))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        world = np.zeros(3 + 2 * N)
        world[:2] = rng.uniform(-0.02, 0.02, 2)
        world[PLACE] = rng.permutation(len(SLOTS))[:N]
        wanted = [int(rng.integers(N))]
        while len(wanted) < self.fetches:
            wanted.append((wanted[-1] + int(rng.integers(1, N))) % N)
        movers = np.where(rng.random(self.max_ticks) < self.moves, rng.integers(N, size=self.max_ticks), -1)
        orders = np.stack([rng.permutation(len(SLOTS)) for _ in range(self.max_ticks)])
        ticks = np.concatenate([movers[:, None], orders], axis=1)
        return world, np.concatenate([wanted, ticks.ravel()]).astype(np.float64)

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        rows = np.arange(len(world_nS))
        x, y = towards(world_nS[:, 0], world_nS[:, 1], target_nA[:, 0], target_nA[:, 1], STEP)
        places, wanted = world_nS[:, PLACE].astype(np.int64), self._wanted(world_nS, constants_nC)
        at = distance(x[:, None], y[:, None], SLOTS[places, 0], SLOTS[places, 1]) < RADIUS
        fetched = at[rows, wanted]
        others = at & (np.arange(N) != wanted[:, None])
        events = constants_nC[:, self.fetches :].reshape(len(rows), self.max_ticks, -1)
        event = events[rows, np.minimum(tick_n, self.max_ticks - 1)].astype(np.int64)
        mover = np.where(fetched, wanted, np.where(event[:, 0] == wanted, -1, event[:, 0]))
        # the first slot of the order where no cube lies, and where the body is not
        order = event[:, 1:]
        taken = (order[:, :, None] == places[:, None, :]).any(axis=2)
        near = distance(x[:, None], y[:, None], SLOTS[order, 0], SLOTS[order, 1]) < 2 * RADIUS
        new = order[rows, np.argmin(taken | near, axis=1)]
        moves = np.arange(N) == mover[:, None]
        world = world_nS.copy()
        world[:, 0], world[:, 1] = x, y
        world[:, PLACE] = np.where(moves, new[:, None], places)
        world[:, SINCE] = np.where(moves, 0.0, world_nS[:, SINCE] + 1)
        world[:, DONE] = world_nS[:, DONE] + fetched
        failure = others.any(axis=1)
        return Outcome(world, (world[:, DONE] == self.fetches) & ~failure, failure)

    def _wanted(self, world_nS: np.ndarray, constants_nC: np.ndarray) -> np.ndarray:
        done = np.minimum(world_nS[:, DONE].astype(np.int64), self.fetches - 1)
        return constants_nC[np.arange(len(world_nS)), done].astype(np.int64)

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        seen = (world_nS[:, SINCE] < SHOWN) | self.visible
        at = SLOTS[world_nS[:, PLACE].astype(np.int64)] * seen[..., None]
        cubes = np.concatenate([seen[..., None], at], axis=2).reshape(len(world_nS), -1)
        wanted = np.arange(N) == self._wanted(world_nS, constants_nC)[:, None]
        return {
            STATE: world_nS[:, :2].astype(np.float32),
            ENVIRONMENT: np.concatenate([cubes, wanted], axis=1).astype(np.float32),
        }

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"fetched": world_nS[:, DONE].astype(np.int64)}

    def instruction(self, seed: int) -> str:
        return "go to the cube of the colour that is asked for"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return CubesExpert(self, seeds, noise, **mode)


class CubesExpert(Expert):
    """Remembers where each cube was seen last, which no single observation shows: on purpose, it is what the
    task tests."""

    def __init__(self, env: Cubes, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self._at = np.zeros((len(self.seeds), N, 2))

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        shown = observation[ENVIRONMENT].astype(np.float64)
        cubes = shown[:, : 3 * N].reshape(-1, N, 3)
        self._at = np.where(cubes[:, :, :1] > 0.5, cubes[:, :, 1:], self._at)
        aim = self._at[np.arange(len(x)), shown[:, 3 * N :].argmax(axis=1)]
        return towards(x, y, aim[:, 0], aim[:, 1], STEP)
