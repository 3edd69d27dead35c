"""A planar benchmark task: many episodes stepped as one in numpy, so that evidence costs minutes.

Legend of suffixes: n environments, S numbers of the moving world, C constants of an episode, A action."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
GOAL = "observation.goal"
COMMAND = "observation.command"
DEMONSTRATION = "demonstration."
PICTURE = "observation.images.top"

Observation = dict[str, np.ndarray]


class Vector(NamedTuple):
    """The elements of an observation or action vector."""

    names: tuple[str, ...]
    units: tuple[str, ...]


def metres(*names: str) -> Vector:
    return Vector(names, ("m",) * len(names))


XY = metres("x", "y")


class Outcome(NamedTuple):
    """What one control period does to n worlds."""

    world: np.ndarray
    """`(n, S)` float64, the moving world after the period."""
    success: np.ndarray
    """`(n,)` bool, the goal is met at this instant."""
    failure: np.ndarray
    """`(n,)` bool, the episode is lost for good: a collision, a wrong visit."""


class Acting(Protocol):
    def act(self, observation: Observation) -> np.ndarray:
        """Actions `(n, A)` float32 for observations of n environments."""
        ...


class PlanarEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """Base of the planar tasks, a gymnasium vector environment. Lengths in metres, times in seconds.

    An action is where the body shall be at the end of the control period (absolute, metres); it moves
    straight there, no further than its speed allows. An episode depends on its seed and the task's options
    alone, never on the batch around it: bit for bit. Environments do not reset themselves
    (`AutoresetMode.DISABLED`): one whose episode has ended stands still, repeats its observation,
    `terminated`, `truncated` and info, earns nothing, and ignores its action until `reset` names it in
    `options={"reset_mask": …}`.

    `terminated` is success or failure, `truncated` the end of the time; both may come in the same tick.
    Success is judged at the instant, where the PyBullet tasks ask for `hold_s`: nothing here swings or rolls
    on, and what counts as success is undone by no later tick. The reward is 1 at success, else 0. info:
    `success` `(n,)` bool and `task` `(n,)` str, the instruction in words.

    A task is a pure function of arrays (`place`, `advance`, `observe`), so planners can step it, too."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)
    task_name: ClassVar[str]
    control_hz: ClassVar[float] = 10.0
    observed: Mapping[str, Vector]
    """Elements of each observed vector, by key."""
    pictures: Mapping[str, int] = {}
    """Side in pixels of each observed picture, `(side, side, 3)` uint8, by key."""
    demonstrated: int = 0
    """Ticks of a demonstration that is shown besides, `demonstration.<key>` `(ticks, D)` float32 of the
    vectors, beyond whose end the last row repeats; 0: none."""
    action: Vector = XY

    def __init__(self, num_envs: int, max_ticks: int, low: Sequence[float], high: Sequence[float]) -> None:
        """max_ticks: control periods until an episode is truncated. low, high: corners of the workspace,
        m."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: there must be at least one environment")
        self.num_envs, self.max_ticks = num_envs, max_ticks
        self.single_action_space = Box(
            np.asarray(low, np.float32), np.asarray(high, np.float32), dtype=np.float32
        )
        spaces: dict[str, Space[Any]] = {
            key: Box(-np.inf, np.inf, (len(v.names),), np.float32) for key, v in self.observed.items()
        }
        if n := self.demonstrated:
            spaces |= {
                DEMONSTRATION + k: Box(-np.inf, np.inf, (n, len(v.names)), np.float32)
                for k, v in self.observed.items()
            }
        for key, side in self.pictures.items():
            spaces[key] = Box(0, 255, (side, side, 3), np.uint8)
        self.single_observation_space = Dict(spaces)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.low = self.single_action_space.low.astype(np.float64)
        """`(A,)` m, and `high`: corners of the workspace, to which actions are cut."""
        self.high = self.single_action_space.high.astype(np.float64)
        self._placed = np.zeros(num_envs, bool)
        self._tick = np.zeros(num_envs, np.int64)
        self._terminated, self._truncated, self._success = np.zeros((3, num_envs), bool)
        self._task = np.full(num_envs, "", dtype="U64")

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.observed[STATE].names

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.action.names

    @abstractmethod
    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The episode of `seed`: its moving world `(S,)` and its constants `(C,)`, float64."""

    @abstractmethod
    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        """One control period from tick `tick_n`, towards targets in the workspace. Changes no argument."""

    @abstractmethod
    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        """What a policy may see, arrays of their own: float32 by the keys of `observed`, uint8 by those of
        `pictures`."""

    @abstractmethod
    def instruction(self, seed: int) -> str:
        """The task of the episode of `seed`, in words."""

    @abstractmethod
    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Acting:
        """A demonstrator for one episode of each seed. noise: standard deviation of the disturbance on its
        targets, m. mode: what else a task lets one choose."""

    def reward(self, before: np.ndarray, outcome: Outcome) -> np.ndarray:
        """`(n,)` of one period, before episodes that are over are set to 0."""
        return outcome.success.astype(np.float64)

    def details(self, world_nS: np.ndarray) -> dict[str, np.ndarray]:
        """More for `info`, arrays of n rows."""
        return {}

    def reset(  # type: ignore[override]
        self,
        *,
        seed: Sequence[int | None] | int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episodes of the seeds given: one for each environment, or one number from which
        environment i takes `seed + i`, or None for seeds off `np_random`. With `options={"reset_mask": (n,)
        bool}` only those environments, the others stay as they are (their seeds are not read).

        ValueError when mask or seeds do not fit."""
        mask = np.ones(self.num_envs, bool)
        if options and options.get("reset_mask") is not None:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(
                    f"reset_mask is {mask.dtype} of shape {mask.shape}: it must be bool of ({self.num_envs},)"
                )
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
        if seed is None:
            seeds = self.np_random.integers(1 << 31, size=self.num_envs).tolist()
        elif isinstance(seed, int | np.integer):
            seeds = range(int(seed), int(seed) + self.num_envs)
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments: give one for each")
        for i in np.flatnonzero(mask):
            episode = seeds[i]
            if episode is None or episode < 0:
                raise ValueError(f"the seed of environment {i} is {episode}: it must be a number from 0")
            world, constants = self.place(int(episode))
            if not self._placed.any():
                self._world = np.zeros((self.num_envs, len(world)))
                self._constants = np.zeros((self.num_envs, len(constants)))
            self._world[i], self._constants[i] = world, constants
            self._task[i], self._placed[i] = self.instruction(int(episode)), True
        for flags in (self._terminated, self._truncated, self._success):
            flags[mask] = False
        self._tick[mask] = 0
        return self._observation(), self._info()

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control period of all environments; actions `(n, A)`, cut to the workspace. ResetNeeded before
        every environment has been reset; ValueError for actions of another shape or not finite."""
        if not self._placed.all():
            raise ResetNeeded("reset every environment before the first step")
        target = np.asarray(actions, np.float64)
        if target.shape != self.action_space.shape or not np.isfinite(target).all():
            raise ValueError(
                f"actions of shape {target.shape} must be finite and of shape {self.action_space.shape}"
            )
        target = np.minimum(np.maximum(target, self.low), self.high)
        active = ~(self._terminated | self._truncated)
        outcome = self.advance(self._world, self._constants, self._tick, target)
        reward = self.reward(self._world, outcome) * active
        self._world = np.where(active[:, None], outcome.world, self._world)
        self._tick = self._tick + active
        self._success = np.where(active, outcome.success, self._success)
        self._terminated = np.where(active, outcome.success | outcome.failure, self._terminated)
        self._truncated = np.where(active, self._tick >= self.max_ticks, self._truncated)
        return (
            self._observation(),
            reward,
            self._terminated.copy(),
            self._truncated.copy(),
            self._info(),
        )

    def _observation(self) -> Observation:
        return self.observe(self._world, self._constants, self._tick)

    def _info(self) -> dict[str, Any]:
        return {"success": self._success.copy(), "task": self._task.copy(), **self.details(self._world)}
