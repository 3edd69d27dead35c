"""Demonstrations of planar tasks, and of other vector environments that have an `expert`, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .env import Observation


@dataclass(frozen=True)
class Demonstration:
    """One episode of T ticks. Frame t is what was seen before action t."""

    observation: dict[str, np.ndarray]
    """`(T, D)` float32 by key; pictures `(T, side, side, 3)` uint8."""
    action: np.ndarray
    """`(T, A)` float32, metres: as it was sent, disturbance and all."""
    reward: np.ndarray
    """`(T,)` float32."""
    success: bool
    task: str
    """The instruction in words."""
    seed: int
    terminated: bool
    """Ended by success or failure; False when the time ran out."""
    last_observation: dict[str, np.ndarray]
    """`(D,)` float32 by key, pictures as they are: what was seen after the last action, for
    temporal-difference learning."""


def demonstrations(
    task: Callable[[int], Any],
    seeds: Sequence[int],
    noise: float = 0.0,
    batch: int = 256,
    **mode: Any,
) -> list[Demonstration]:
    """One episode of each seed, in their order, failures included (see `success`).

    task: makes the environment, for as many episodes as it is told: `Fork`, or `partial(Fork, routes=8)`.
    noise: standard deviation of the disturbance on the expert's targets, m. batch: episodes at once, which
    changes nothing in them. mode: as the task's `expert` takes it."""
    if batch < 1:
        raise ValueError(f"batch is {batch}: it must be at least 1")
    episodes: list[Demonstration] = []
    for start in range(0, len(seeds), batch):
        some = [int(s) for s in seeds[start : start + batch]]
        episodes += _roll_out(task(len(some)), some, noise, mode)
    return episodes


def _roll_out(env: Any, seeds: list[int], noise: float, mode: dict[str, Any]) -> list[Demonstration]:
    n = len(seeds)
    expert = env.expert(seeds, noise, **mode)
    observation, info = env.reset(seed=seeds)
    observations: list[Observation] = [observation]
    actions, rewards = [], []
    length = np.zeros(n, np.int64)
    over = terminated = np.zeros(n, bool)
    while not over.all():
        action = expert.act(observation)
        length += ~over
        observation, reward, terminated, truncated, info = env.step(action)
        over = terminated | truncated
        observations.append(observation)
        actions.append(np.asarray(info.get("sent", action), np.float32))
        rewards.append(reward.astype(np.float32))
    env.close()
    seen = {key: np.stack([o[key] for o in observations], axis=1) for key in observation}
    action_nTA, reward_nT = np.stack(actions, axis=1), np.stack(rewards, axis=1)
    return [
        Demonstration(
            observation={key: rows[i, :t].copy() for key, rows in seen.items()},
            action=action_nTA[i, :t].copy(),
            reward=reward_nT[i, :t].copy(),
            success=bool(info["success"][i]),
            task=str(info["task"][i]),
            seed=seeds[i],
            terminated=bool(terminated[i]),
            last_observation={key: rows[i, t].copy() for key, rows in seen.items()},
        )
        for i, t in enumerate(length)
    ]
