"""T10 gates: a way that is known by heart, and a camera that says how it differs a little each time; the
camera may fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import COMMAND, ENVIRONMENT, STATE, XY, Observation, Outcome, PlanarEnv, Vector, metres
from .expert import Expert, balanced_choice

STEP = 0.04  # m a tick, 0.4 m/s
AT = np.array([0.2, 0.4, 0.6, 0.8])  # m in x: where the gates stand
USUAL = np.array([0.12, -0.12, 0.08, -0.08])  # m in y: the middle of each, but for what the camera says
GATE = 0.010  # m that a gate is wide to either side
SPREAD, START_SPREAD = 0.012, 0.02
SEEN_NOISE = 0.1  # m, standard deviation of a reading where the camera's picture is of noise
BLANK = 1.0  # m: what a camera reads that sees nothing, as no camera does that sees
BEFORE = 0.03  # m in front of a gate, where the expert is on its line

SPEEDS = {
    "none": (STEP,),
    "train": (0.012, 0.020, 0.040),
    "held-out": (0.016, 0.030),
}
"""Metres a tick that an episode is to go, by number."""
PACE = 0.15  # of the speed that is asked for: how far the mean speed may lie off it

# columns of the world: the body, gates that it has passed, metres that it has gone, its pace
X, Y, NEXT, WAY, MEAN = range(5)
CAMERAS = ("clean", "noise", "blank")


class Gates(PlanarEnv):
    """Success: through all gates in a row, in each within `GATE` of its middle; beside one ends the episode.
    Where the gates are differs by `spread` to either side from one episode to the next: who goes the usual
    way gets through one in two times. The state says where the body is, `observation.environment_state`
    where the middle of the next gate is.

    spread: m; 0.012, or 0.06, where the camera alone knows. camera: "clean", "noise" (a new wrong reading at
    every tick) or "blank" (always the same, of nothing). speeds: "none", or "train" and "held-out": the
    episode's seed says how fast to go, `observation.command` tells it, and success is also to have gone as
    fast in the mean, within `PACE`.

    info `gates` `(n,)` int: how many were passed; `pace` `(n,)` float: the mean speed as a share of what was
    asked."""

    task_name = "gates"

    def __init__(
        self, num_envs: int, spread: float = SPREAD, camera: str = "clean", speeds: str = "none"
    ) -> None:
        if spread < 0:
            raise ValueError(f"spread is {spread}: it must not be negative")
        if camera not in CAMERAS:
            raise ValueError(f"there is no camera {camera!r}: choose from {', '.join(CAMERAS)}")
        if speeds not in SPEEDS:
            raise ValueError(f"there are no speeds {speeds!r}: choose from {', '.join(SPEEDS)}")
        self.spread, self.camera, self.speeds, self.told = spread, camera, SPEEDS[speeds], speeds != "none"
        command = {COMMAND: Vector(("speed",), ("m",))} if self.told else {}
        self.observed = {STATE: XY, ENVIRONMENT: metres("gate.y"), **command}
        super().__init__(num_envs, 150 if self.told else 60, (-0.1, -0.4), (1.0, 0.4))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        start = np.array([0.0, 0.0]) + rng.uniform(-START_SPREAD, START_SPREAD, 2)
        gates = USUAL + rng.uniform(-self.spread, self.spread, len(USUAL))
        wrong = SEEN_NOISE * rng.standard_normal(self.max_ticks + 1)
        return np.array([*start, 0.0, 0.0, 0.0]), np.concatenate([gates, [self.speed(seed)], wrong])

    def speed(self, seed: int) -> float:
        """Metres a tick that the episode of `seed` asks for."""
        return self.speeds[balanced_choice(seed, len(self.speeds))]

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x0, y0 = world_nS[:, X], world_nS[:, Y]
        x, y = towards(x0, y0, target_nA[:, 0], target_nA[:, 1], STEP)
        passed, beside = world_nS[:, NEXT].copy(), np.zeros(len(x), bool)
        for i, at in enumerate(AT):  # a step is shorter than the way from gate to gate
            crosses = (passed == i) & (x0 < at) & (x >= at)
            share = np.where(crosses, (at - x0) / np.maximum(x - x0, 1e-12), 0.0)
            within = np.abs(y0 + share * (y - y0) - constants_nC[:, i]) <= GATE
            beside |= crosses & ~within
            passed = np.where(crosses & within, i + 1, passed)
        way = world_nS[:, WAY] + distance(x0, y0, x, y)
        pace = way / ((tick_n + 1) * constants_nC[:, len(AT)])
        through = ~beside & (passed == len(AT))
        off = through & (np.abs(pace - 1) > PACE) & self.told
        return Outcome(np.stack([x, y, passed, way, pace], axis=1), through & ~off, beside | off)

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        rows, gates = np.arange(len(world_nS)), constants_nC[:, : len(AT)]
        seen = gates[rows, np.minimum(world_nS[:, NEXT].astype(np.int64), len(AT) - 1)]
        if self.camera == "noise":
            seen = seen + constants_nC[rows, len(AT) + 1 + np.minimum(tick_n, self.max_ticks)]
        elif self.camera == "blank":
            seen = np.full_like(seen, BLANK)
        command = {COMMAND: constants_nC[:, [len(AT)]].astype(np.float32)} if self.told else {}
        return {
            STATE: world_nS[:, :2].astype(np.float32),
            ENVIRONMENT: seen[:, None].astype(np.float32),
            **command,
        }

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"gates": world_nS[:, NEXT].astype(np.int64), "pace": world_nS[:, MEAN].copy()}

    def instruction(self, seed: int) -> str:
        return "go through the gates"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return GatesExpert(self, seeds, noise, **mode)


class GatesExpert(Expert):
    """To the point before the next gate, then straight through it, as fast as is asked. It sees what the
    camera sees."""

    def __init__(self, env: Gates, seeds: Sequence[int], noise: float) -> None:
        super().__init__(env, seeds, noise)
        self.speed = np.array([env.speed(s) for s in self.seeds])

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        gate = observation[ENVIRONMENT][:, 0].astype(np.float64)
        ahead = AT[np.minimum(np.searchsorted(AT, x, side="right"), len(AT) - 1)]
        aligned = np.abs(y - gate) < 0.3 * GATE
        aim_x = np.where(aligned, ahead + BEFORE, ahead - BEFORE)
        dx, dy = aim_x - x, gate - y
        share = self.speed / np.maximum(np.sqrt(dx * dx + dy * dy), self.speed)
        return x + share * dx, y + share * dy

    def disturbed_share(self, observation: Observation) -> np.ndarray:
        x = observation[STATE][:, X].astype(np.float64)
        return np.clip((np.abs(x[:, None] - AT).min(axis=1) - 0.05) / 0.05, 0.0, 1.0)
