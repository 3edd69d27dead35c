"""T6 catch: close the hand round a target that turns when nobody expects it. What is late acts on where the
target was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, towards
from .env import ENVIRONMENT, STATE, Observation, Outcome, PlanarEnv, Vector
from .expert import Expert

# Tuned on seeds 0 to 999, so that a decision that is late costs much and one in time little. A flow MLP
# (residual, 3x128, 1500 steps of 128, 10 evaluations) on 100 demonstrations (noise 0.005), chunks of 16 of
# which 8 are executed, 100 episodes of seeds 500 to 599, one training seed: at delays of 0, 50, 150 and 300
# ms 88, 80, 37 and 9 % where each chunk is waited for, and 88, 86, 71 and 31 % where it is asked for while
# the last one is executed.
STEP = 0.03  # m a tick, 0.6 m/s
SPEED = 0.008  # m a tick, 0.16 m/s: of the target
TURNS = 0.03  # probability a tick that it flies on in another direction
FIELD = 0.3  # m: it turns back at the walls of a square of twice this
REACH = 0.03  # m: how near the target must be when the hand has closed
GRIP_STEP = 0.5  # share of its way that the hand goes in a tick
CLOSED = 0.8  # share of its way from which on it counts as closed
SURE = 0.6  # share of the reach within which the expert closes
START, START_SPREAD = (0.0, -0.35), 0.03
NEAREST = 0.2  # m: the target begins no nearer to the hand

X, Y, GRIP, NEAR = 0, 1, 2, 3  # columns of the world; NEAR: how near the target was at the last tick
# the constants are the target's x, y and its velocity by tick, four numbers a tick


class Catch(PlanarEnv):
    """Success: the hand closes with the target in reach. Who closes on nothing must open the hand and try
    again, while there is time. The target flies straight on, turns at walls, and every now and then for no
    reason.

    speed: of the target, m a tick; 0, the control, where nothing is ever late. turns: probability a tick.

    info `near` `(n,)` m: how far the target was at the end."""

    task_name = "catch"
    control_hz = 20.0
    observed = {  # noqa: RUF012
        STATE: Vector(("x", "y", "grip"), ("m", "m", "1")),
        ENVIRONMENT: Vector(
            ("target.x", "target.y", "target.vx", "target.vy"), ("m", "m", "m/tick", "m/tick")
        ),
    }
    action = observed[STATE]

    def __init__(self, num_envs: int, speed: float = SPEED, turns: float = TURNS) -> None:
        if speed < 0 or speed > 0.5 * STEP or not 0 <= turns <= 1:
            raise ValueError(
                f"speed {speed} must lie in 0..{0.5 * STEP}, half of the hand's, and turns {turns} in 0..1"
            )
        self.speed, self.turns = speed, turns
        super().__init__(num_envs, 80, (-0.4, -0.4, 0.0), (0.4, 0.4, 1.0))

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        start = START + rng.uniform(-START_SPREAD, START_SPREAD, 2)
        at = rng.uniform(-FIELD, FIELD, 2)
        while np.hypot(*(at - start)) < NEAREST:
            at = rng.uniform(-FIELD, FIELD, 2)
        velocity = self._velocity(rng)
        ways = np.zeros((self.max_ticks + 1, 4))
        for t in range(self.max_ticks + 1):
            outside = np.abs(at + velocity) > FIELD
            velocity = np.where(outside, -velocity, velocity)
            ways[t] = *at, *velocity
            at = at + velocity
            if rng.uniform() < self.turns:
                velocity = self._velocity(rng)
        # half closed at first, so that demonstrations show how it is opened
        grip = rng.uniform(0, 1)
        return np.array([*start, grip, np.hypot(*(ways[0, :2] - start))]), ways.ravel()

    def _velocity(self, rng: np.random.Generator) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi)
        return self.speed * np.array([np.cos(angle), np.sin(angle)])

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x, y = towards(world_nS[:, X], world_nS[:, Y], target_nA[:, 0], target_nA[:, 1], STEP)
        before = world_nS[:, GRIP]
        grip = before + np.minimum(np.maximum(target_nA[:, 2] - before, -GRIP_STEP), GRIP_STEP)
        flying = _at(constants_nC, tick_n + 1)
        near = distance(x, y, flying[:, 0], flying[:, 1])
        caught = (before < CLOSED) & (grip >= CLOSED) & (near < REACH)
        return Outcome(np.stack([x, y, grip, near], axis=1), caught, np.zeros(len(x), bool))

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        return {
            STATE: world_nS[:, :3].astype(np.float32),
            ENVIRONMENT: _at(constants_nC, tick_n).astype(np.float32),
        }

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        return {"near": world_nS[:, NEAR].copy()}

    def instruction(self, seed: int) -> str:
        return "catch the target"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        return CatchExpert(self, seeds, noise, **mode)


def _at(constants_nC: np.ndarray, tick_n: np.ndarray) -> np.ndarray:
    """`(n, 4)`: the target and its velocity at a tick."""
    ways = constants_nC.reshape(len(constants_nC), -1, 4)
    return ways[np.arange(len(ways)), np.minimum(tick_n, ways.shape[1] - 1)]


class CatchExpert(Expert):
    """Goes where the target will be a tick later, and closes the hand when it is there."""

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        aim_x, aim_y = self._aim(observation)
        return towards(x, y, aim_x, aim_y, STEP)

    def act(self, observation: Observation) -> np.ndarray:
        """Actions `(n, 3)` float32."""
        xy = super().act(observation)
        target_x, target_y = columns(observation[ENVIRONMENT])
        there = distance(*columns(observation[STATE]), target_x, target_y) < SURE * REACH
        return np.concatenate([xy, there[:, None].astype(np.float32)], axis=1)

    def disturbed_share(self, observation: Observation) -> np.ndarray:
        x, y = columns(observation[STATE])
        far = distance(x, y, *columns(observation[ENVIRONMENT]))
        return np.minimum(far / 0.1, 1.0)

    def _aim(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        target = observation[ENVIRONMENT].astype(np.float64)
        return target[:, 0] + target[:, 2], target[:, 1] + target[:, 3]
