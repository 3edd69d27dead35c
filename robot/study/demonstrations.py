"""Demonstrations of vector environments, gathered, and in an episode store as a robot would have recorded
them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.features import ACTION, REWARD, Feature, Features
from ...datasets.recording.writer import EpisodeWriter
from ...datasets.store import EpisodeStore
from .study import StudyError

if TYPE_CHECKING:
    from ...sim.planar.demonstrations import Demonstration

FEWEST = 4  # of whose seeds one must succeed, where only successes are kept


def gather_demonstrations(
    task: Callable[[int], Any],
    first_seed: int,
    count: int,
    noise: float = 0.0,
    only_successes: bool = False,
    batch: int = 256,
    **mode: Any,
) -> list[Demonstration]:
    """`count` demonstrations of the seeds from `first_seed` on; arguments as of
    `ulna.sim.planar.demonstrations`. only_successes: seeds at which the expert fails are passed over;
    StudyError where three in four of them are."""
    from ...sim.planar.demonstrations import demonstrations

    demos: list[Demonstration] = []
    tried = 0
    while len(demos) < count:
        n = count - len(demos)
        if tried + n > FEWEST * count:
            raise StudyError(
                f"the expert succeeded at {len(demos)} of {tried} seeds: too few for {count} demonstrations"
            )
        seeds = range(first_seed + tried, first_seed + tried + n)
        some = demonstrations(task, seeds, noise, batch, **mode)
        demos += [d for d in some if d.success or not only_successes]
        tried += n
    return demos


def record_demonstrations(
    demos: Sequence[Demonstration], folder: Path, features: Features, control_hz: float, robot: str
) -> EpisodeStore:
    """Write `demos` into the new store `folder`, which is there whole or not at all, rewards included.
    Tick t has its exact time, t periods, for what was seen and what was sent."""
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    rewarded = {**features, REWARD: Feature((1,), "float32", ("reward",), ("",))}
    store = EpisodeStore.create(staging, rewarded, control_hz, robot)
    with EpisodeWriter(store) as writer:
        for demo in demos:
            writer.start({"task": demo.task, "seed": demo.seed, "agent": "expert", "robot": robot})
            for t, (action, reward) in enumerate(zip(demo.action, demo.reward, strict=True)):
                now = round(t * 1e9 / control_hz)
                values = {k: v[t] for k, v in demo.observation.items()}
                values |= {ACTION: action, REWARD: np.array([reward], np.float32)}
                writer.tick(values, dict.fromkeys(values, (now, now)))
            writer.end({"success": demo.success, "return": float(np.sum(demo.reward))})
    os.replace(staging, folder)
    return EpisodeStore.open(folder)
