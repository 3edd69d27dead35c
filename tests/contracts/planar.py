"""Demonstrations of the planar tasks as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulna.datasets.store import EpisodeStore
from ulna.robot.rollout import env_features
from ulna.robot.study.demonstrations import record_demonstrations
from ulna.sim.planar.all import TASKS
from ulna.sim.planar.demonstrations import demonstrations


def write_demonstrations(folder: Path, task: str, count: int, **options: Any) -> EpisodeStore:
    """Of the seeds from 0 on."""
    env = TASKS[task](1, **options)
    demos = demonstrations(lambda n: TASKS[task](n, **options), range(count), 0.005)
    return record_demonstrations(demos, folder, env_features(env), env.control_hz, f"sim:{task}")
