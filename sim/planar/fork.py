"""T1 fork: a disc dead ahead, passed on the left or on the right. Whoever averages collides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, passing_distance, push_disc, towards
from .env import STATE, XY, Observation, Outcome, PlanarEnv
from .expert import Expert, balanced_choice

# Tuned on seeds 0 to 999. The start lies exactly on the axis of symmetry (with a start that is off it the
# side is a function of the observation, and the verdict on regression turns round). The disc begins five to
# seven ticks ahead: a chunk of eight along the mean of both routes ends in it, with no second look. A
# residual MLP 3x256 on 50 demonstrations (noise 0.005, 2000 steps of 128, chunks of 16 of which 8 are
# executed), 200 episodes of seeds 500 to 699, one training seed: regression 0 %, flow at 1, 2, 5 and 10
# evaluations 19, 68, 87 and 94 %. Wider discs lower flow at 1 and at 10 alike.
STEP = 0.05  # m a tick, 0.5 m/s
RADIUS = 0.13
FIRST, SPACING = 0.4, 0.7  # m: where the discs stand on the x axis
PASS, BEYOND = 0.30, 0.05  # m: the expert aims this far off the axis and past a disc's middle
MARGIN = 0.03  # m: the expert goes no nearer, however disturbed
GOAL_BEYOND, GOAL_RADIUS = 0.5, 0.05
START_SPREAD = 0.05  # m in x, along the axis

X, Y, SIDES = 0, 1, 2  # columns of the world; a side a disc from SIDES on: 0 not passed, 1 left, -1 right


class Fork(PlanarEnv):
    """Success: to the goal disc on the axis beyond the obstacles, touching none (a touch ends the episode).

    routes: 2 (one disc), 8 (three discs, 2³ routes), or 1, the control: one disc, which the expert always
    passes on the left, so that the data are unimodal. dense: adds the progress towards the goal, in metres,
    to the reward, for on-policy learning from nothing.

    info `route` `(n,)` int: -1 until the last disc is passed, then one bit a disc (0 left, 1 right), the
    first disc the lowest. Left is y > 0."""

    task_name = "fork"
    observed = {STATE: XY}  # noqa: RUF012

    def __init__(self, num_envs: int, routes: int = 2, dense: bool = False) -> None:
        if routes not in (1, 2, 8):
            raise ValueError(f"routes is {routes}: it must be 1, 2 or 8")
        self.routes, self.dense = routes, dense
        self.discs = [FIRST + SPACING * i for i in range(3 if routes == 8 else 1)]
        self.goal = self.discs[-1] + GOAL_BEYOND
        super().__init__(num_envs, 80 if routes == 8 else 40, (-0.2, -0.6), (self.goal + 0.2, 0.6))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        world = np.zeros(SIDES + len(self.discs))
        world[X] = np.random.default_rng(seed).uniform(-START_SPREAD, START_SPREAD)
        return world, np.zeros(0)

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x0, y0 = world_nS[:, X], world_nS[:, Y]
        x, y = towards(x0, y0, target_nA[:, 0], target_nA[:, 1], STEP)
        world = world_nS.copy()
        world[:, X], world[:, Y] = x, y
        hit = np.zeros(len(x), bool)
        for i, disc in enumerate(self.discs):
            hit |= passing_distance(x0, y0, x, y, disc, 0.0) < RADIUS
            crosses = (x0 < disc) != (x < disc)
            side = np.where(x < disc, 0.0, np.sign(y))
            world[:, SIDES + i] = np.where(crosses, side, world[:, SIDES + i])
        return Outcome(world, ~hit & (distance(x, y, self.goal, 0.0) < GOAL_RADIUS), hit)

    def reward(self, before: np.ndarray, outcome: Outcome) -> np.ndarray:
        reward = super().reward(before, outcome)
        if not self.dense:
            return reward
        far = distance(before[:, X], before[:, Y], self.goal, 0.0)
        return reward + far - distance(outcome.world[:, X], outcome.world[:, Y], self.goal, 0.0)

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        return {STATE: world_nS[:, :2].astype(np.float32)}

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        route, passed = np.zeros(len(world_nS), np.int64), np.ones(len(world_nS), bool)
        for i in range(len(self.discs)):
            side = world_nS[:, SIDES + i]
            route += (side < 0) * (1 << i)
            passed &= side != 0
        return {"route": np.where(passed, route, -1)}

    def instruction(self, seed: int) -> str:
        return "go round the obstacle" if len(self.discs) == 1 else "go round the obstacles"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        """mode: `route`, one for all (as info `route`); else the seeds share the routes out evenly."""
        return ForkExpert(self, seeds, noise, **mode)


class ForkExpert(Expert):
    def __init__(self, env: Fork, seeds: Sequence[int], noise: float, route: int | None = None) -> None:
        super().__init__(env, seeds, noise)
        if route is not None and not 0 <= route < 1 << len(env.discs):
            raise ValueError(f"route is {route}: there are {1 << len(env.discs)}, from 0")
        self.fork = env
        routes = [balanced_choice(s, env.routes) if route is None else route for s in self.seeds]
        self.route = np.array(routes)

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        aim_x, aim_y = np.full_like(x, self.fork.goal), np.zeros_like(x)
        for i, disc in reversed(list(enumerate(self.fork.discs))):
            ahead = x < disc
            aim_x = np.where(ahead, disc + BEYOND, aim_x)
            aim_y = np.where(ahead, np.where(self.route >> i & 1, -PASS, PASS), aim_y)
        return towards(x, y, aim_x, aim_y, STEP)

    def keep_clear(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for disc in self.fork.discs:
            x, y = push_disc(np.full_like(x, disc), np.zeros_like(y), x, y, RADIUS + MARGIN)
        return x, y
