"""Demonstrations by a task's own expert, many episodes at once, in an episode store as a robot would have
recorded them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.features import ACTION, Features
from ...datasets.recording.writer import EpisodeWriter
from ...datasets.store import EpisodeStore


@dataclass(frozen=True)
class Demonstration:
    """One episode of T ticks. Row t is what was seen before action t."""

    observation: dict[str, np.ndarray]
    """`(T, *shape)` by key."""
    action: np.ndarray
    """`(T, A)` float32, as it was sent."""
    reward: np.ndarray
    """`(T,)` float32."""
    success: bool
    task: str
    """The instruction in words."""
    seed: int


def demonstrate(
    task: Callable[[int], Any], seeds: Sequence[int], noise: float = 0.0, batch: int = 64, **mode: Any
) -> list[Demonstration]:
    """One episode of each seed, failures included. task: makes the vector environment for so many episodes;
    its `expert(seeds, noise, **mode)` has `act(observation) -> (n, A)`."""
    episodes: list[Demonstration] = []
    for start in range(0, len(seeds), batch):
        some = [int(s) for s in seeds[start : start + batch]]
        env = task(len(some))
        try:
            episodes += _roll_out(env, some, noise, mode)
        finally:
            env.close()
    return episodes


def _roll_out(env: Any, seeds: list[int], noise: float, mode: Mapping[str, Any]) -> list[Demonstration]:
    expert = env.expert(seeds, noise, **mode)
    observation, info = env.reset(seed=seeds)
    rows: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []
    length, over = np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    while not over.all():
        action = np.asarray(expert.act(observation))
        before, length = observation, length + ~over
        observation, reward, terminated, truncated, info = env.step(action)
        sent = np.asarray(info.get("sent", action), np.float32)
        rows.append((before, sent, reward.astype(np.float32)))
        over = terminated | truncated
    return [
        Demonstration(
            {k: np.stack([o[k][i] for o, _, _ in rows[:t]]) for k in observation},
            np.stack([a[i] for _, a, _ in rows[:t]]),
            np.stack([r[i] for _, _, r in rows[:t]]),
            bool(info["success"][i]),
            str(info["task"][i]),
            seed,
        )
        for i, (t, seed) in enumerate(zip(length, seeds, strict=True))
    ]


def record_demonstrations(
    demos: Sequence[Any], folder: Path, features: Features, control_hz: float, robot: str
) -> EpisodeStore:
    """Write `demos` (as `Demonstration`) into the new store `folder`, which is there whole or not at all.
    Tick t has its exact time, t periods, for what was seen and what was sent."""
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = EpisodeStore.create(staging, features, control_hz, robot)
    with EpisodeWriter(store) as writer:
        for demo in demos:
            writer.start({"task": demo.task, "seed": demo.seed, "agent": "expert", "robot": robot})
            for t, action in enumerate(demo.action):
                now = round(t * 1e9 / control_hz)
                values = {k: v[t] for k, v in demo.observation.items()} | {ACTION: action}
                writer.tick(values, dict.fromkeys(values, (now, now)))
            writer.end({"success": demo.success, "return": float(np.sum(demo.reward))})
    os.replace(staging, folder)
    return EpisodeStore.open(folder)
