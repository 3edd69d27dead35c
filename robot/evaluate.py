"""Closed-loop evaluation in simulation: a success rate over fixed seeds, with its interval."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import ACTION, STATE
from .agent import Agent, PolicyAgent
from .config import Rig
from .loop import EpisodeResult, run_episode
from .report.video import VideoRecorder
from .statistics import wilson

FIRST_SEED = 1000  # demonstrations count from 0


class _Trace:
    """Keeps what a plot needs of one episode."""

    def __init__(self) -> None:
        self.traces: list[dict[str, Any]] = []

    def start(self, meta: Mapping[str, Any]) -> None:
        self._seed, self._rows = meta["seed"], []

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        self._rows.append((values[ACTION], values[STATE]))

    def end(self, meta: Mapping[str, Any]) -> None:
        action, state = (np.stack(column).round(5).tolist() for column in zip(*self._rows, strict=True))
        self.traces.append({"seed": self._seed, "action": action, "state": state})

    def interrupt(self, reason: str) -> None:
        self._rows = []


def evaluate(
    rig: Rig,
    agent: Agent,
    episodes: int,
    seed: int = FIRST_SEED,
    video_dir: Path | None = None,
    videos: int = 3,
    report: Callable[[int, int, int], None] = lambda done, successes, episodes: None,
) -> dict[str, Any]:
    """Run `episodes` episodes with seeds `seed`, `seed + 1`, … and return the report (JSON types only).

    The first `videos` episodes are filmed into `video_dir` and their joint traces kept.
    """
    robot, scene = rig.robot, rig.sim
    if scene is None:
        raise ValueError("success is judged by a simulated scene's ground truth: evaluate on a sim: robot")
    if episodes < 1:
        raise ValueError("evaluate at least one episode")
    film = VideoRecorder(scene.film_camera(), video_dir, robot.control_hz) if video_dir else None
    trace = _Trace()
    outcomes: list[dict[str, Any]] = []
    began = time.monotonic()
    for i in range(episodes):
        scene.reset(seed + i)
        subscribers = [trace, *([film] if film else [])] if i < videos else []
        result: EpisodeResult = run_episode(
            robot,
            agent,
            subscribers,
            task=scene.instruction,
            seed=seed + i,
            max_ticks=round(scene.max_seconds * robot.control_hz),
            success=scene.success,
        )
        outcomes.append(
            {"seed": seed + i, "success": bool(result.success), "ticks": result.ticks, "score": scene.score()}
        )
        report(i + 1, sum(o["success"] for o in outcomes), episodes)
    successes = sum(o["success"] for o in outcomes)
    low, high = wilson(successes, episodes)
    return {
        "kind": "closed-loop",
        "task": scene.task.name,
        "robot": robot.name,
        "agent": agent.tag,
        "joints": list(robot.action_features[ACTION].names),
        "units": list(robot.action_features[ACTION].units),
        "control_hz": robot.control_hz,
        "episodes": episodes,
        "first_seed": seed,
        "successes": successes,
        "success_rate": successes / episodes,
        "wilson_95": [low, high],
        "outcomes": outcomes,
        "seconds": time.monotonic() - began,
        "traces": trace.traces,
        "videos": [str(f) for f in film.files] if film else [],
        "versions": {"ulna": version("ulna")},
        **(_decisions(agent) if isinstance(agent, PolicyAgent) else {}),
    }


def _decisions(agent: PolicyAgent) -> dict[str, Any]:
    latency = np.array(agent.latencies_s) * 1e3
    return {
        "checkpoint": agent.metadata.checkpoint,
        "recipe": agent.metadata.recipe,
        "decisions": len(latency),
        "nfe_per_decision": float(np.mean(agent.nfe)),
        "latency_ms": {"p50": float(np.percentile(latency, 50)), "p99": float(np.percentile(latency, 99))},
    }


def save_report(checkpoint: str | Path, name: str, report: Mapping[str, Any]) -> Path:
    """Write `validation/NAME.json` into the checkpoint, whole or not at all."""
    folder = Path(checkpoint) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.{secrets.token_hex(4)}"
    new.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    os.replace(new, folder / f"{name}.json")
    return folder / f"{name}.json"
