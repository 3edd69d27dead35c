"""Demonstrations of vector environments in an episode store, as a robot would have recorded them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.features import ACTION, Features
from ...datasets.recording.writer import EpisodeWriter
from ...datasets.store import EpisodeStore

if TYPE_CHECKING:
    from ...sim.planar.demonstrations import Demonstration


def record_demonstrations(
    demos: Sequence[Demonstration], folder: Path, features: Features, control_hz: float, robot: str
) -> EpisodeStore:
    """Write `demos` into the new store `folder`, which is there whole or not at all.
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
