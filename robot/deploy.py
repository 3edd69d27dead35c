"""Deployment: a served policy on a robot, paced by the robot's own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..datasets.recording.recorder import Recorder
from ..policies.serving.client import PolicyClient
from .agent import PolicyAgent
from .config import Rig
from .keys import Keys
from .record import episode_metadata, total_drops
from .report.evaluation import Latency
from .takes import RESET_S, TakeResult, take_episodes


def deploy(
    rig: Rig,
    server: str,
    episodes: int,
    seed: int = 0,
    task: str | None = None,
    max_seconds: float | None = None,
    recorder: Recorder | None = None,
    report: Callable[[Sequence[TakeResult]], None] = lambda takes: None,
    *,
    keys: Keys | None = None,
    reset_seconds: float = RESET_S,
) -> dict[str, Any]:
    """Run `episodes` episodes of the policy at `server`; returns what happened (JSON types only).

    When the server dies or answers with garbage the arm holds where it is, and PolicyServerError is raised.
    task: the instruction in words; a simulated scene brings its own. max_seconds: for one episode, 60 without
    a scene. report: called with the episodes so far whenever one has ended. keys and reset_seconds: as for
    `record`; whoever quits before the last episode gets the result of those before."""
    robot, scene = rig.robot, rig.scene
    with PolicyClient(server) as client:
        agent = PolicyAgent(client, robot.features, robot.control_hz)
        takes = take_episodes(
            rig,
            agent,
            episodes,
            seed,
            recorder,
            keys,
            task=task or "",
            max_seconds=max_seconds,
            reset_seconds=reset_seconds,
            meta=episode_metadata(rig),
            report=report,
        )
        return {
            "robot": robot.name,
            "task": scene.task_name if scene is not None else task or "",
            "agent": agent.tag,
            "server": server,
            "checkpoint": client.metadata.checkpoint,
            "decisions": len(agent.latencies_s),
            "nfe_per_decision": float(np.mean(agent.nfe or [0])),
            "episodes": [asdict(t) for t in takes],
            "dropped": total_drops(takes),
            "latency_ms": asdict(Latency.of(agent.latencies_s or [0.0])),
        }
