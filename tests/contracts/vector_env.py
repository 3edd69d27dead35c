"""A vector environment in a few lines of numpy, for tests of what runs many episodes at once."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

STATE = "observation.state"
XY = SimpleNamespace(names=("x", "y"), units=("m", "m"))


class Go(VectorEnv):
    """Go to the origin from where the seed says; at most 0.1 m a tick along each axis. info `side`: -1 for
    episodes that began left of it, else 1."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    task_name, control_hz, max_ticks = "go", 10.0, 20
    observed, action, state_names, action_names = {STATE: XY}, XY, XY.names, XY.names

    def __init__(self, num_envs: int, radius: float = 0.05, fault: int | None = None) -> None:
        """fault: the step that fails."""
        self.num_envs, self.radius, self.fault, self.steps = num_envs, radius, fault, 0
        self.single_action_space = Box(-1, 1, (2,), np.float32)
        self.single_observation_space = Dict({STATE: Box(-np.inf, np.inf, (2,), np.float32)})
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.at, self.began = np.zeros((2, num_envs, 2))
        self.tick = np.zeros(num_envs, int)
        self.stepped = np.zeros(num_envs, int)  # how often a row was moved: ended ones are not

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(mask):
            self.at[i] = np.random.default_rng(seed[i]).choice([-1.0, 1.0]) * 0.5, 0.2
        self.began[mask], self.tick[mask] = self.at[mask], 0
        return self._observe(), self._info()

    def step(self, actions: np.ndarray) -> Any:
        self.steps += 1
        if self.steps == self.fault:
            raise RuntimeError("the power went off")
        running = ~(self._success() | (self.tick >= self.max_ticks))
        move = np.clip(np.clip(actions, -1, 1) - self.at, -0.1, 0.1)
        self.at += move * running[:, None]
        self.tick += running
        success = self._success()
        return (
            self._observe(),
            success * running * 1.0,
            success,
            self.tick >= self.max_ticks,
            self._info(),
        )

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Any:
        rng = np.random.default_rng([*seeds, 1])
        return SimpleNamespace(
            act=lambda o: (0.5 * o[STATE] + noise * rng.normal(size=o[STATE].shape)).astype(np.float32)
        )

    def _success(self) -> np.ndarray:
        return np.abs(self.at).max(1) < self.radius

    def _observe(self) -> dict[str, np.ndarray]:
        return {STATE: self.at.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success(),
            "task": np.full(self.num_envs, "go to the origin"),
            "side": np.sign(self.began[:, 0]).astype(int),
        }
