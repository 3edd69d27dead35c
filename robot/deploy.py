"""Deployment: a served policy on a robot, paced by the robot's own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..policies.serving.client import PolicyClient
from .agent import PolicyAgent
from .config import Rig
from .loop import EpisodeResult, Subscriber, run_episode
from .motion import go_to
from .record import about


@dataclass(frozen=True)
class DeployedEpisode:
    """seed: of the scene in simulation. success: None where nobody can tell."""

    seed: int
    ticks: int
    late: int
    success: bool | None


def deploy(
    rig: Rig,
    server: str,
    episodes: int,
    seed: int = 0,
    task: str | None = None,
    max_seconds: float | None = None,
    subscribers: Sequence[Subscriber] = (),
    report: Callable[[DeployedEpisode], None] = lambda episode: None,
) -> dict[str, Any]:
    """Run `episodes` episodes of the policy at `server`; returns what happened (JSON types only).

    When the server dies or answers with garbage the arm holds where it is and PolicyServerError goes on to the caller.
    task: the instruction in words; a simulated scene brings its own. max_seconds: for one episode, 60 without a scene.
    """
    robot, scene = rig.robot, rig.scene
    done: list[DeployedEpisode] = []
    with PolicyClient(server) as client:
        agent = PolicyAgent(client, robot.features, robot.control_hz)
        for i in range(episodes):
            if rig.home is not None:
                go_to(robot, rig.home)
            if scene is not None:
                scene.reset(seed + i)
            limit = max_seconds or (scene.max_seconds if scene is not None else 60.0)
            result: EpisodeResult = run_episode(
                robot,
                agent,
                subscribers,
                task=task or (scene.instruction if scene is not None else ""),
                seed=seed + i,
                max_ticks=round(limit * robot.control_hz),
                success=scene.success if scene is not None else None,
                meta=about(rig) if subscribers else None,
            )
            done.append(DeployedEpisode(seed + i, result.ticks, result.late, result.success))
            report(done[-1])
        latency = np.array(agent.latencies_s) * 1e3
        return {
            "robot": robot.name,
            "task": scene.task_name if scene is not None else task or "",
            "agent": agent.tag,
            "server": server,
            "checkpoint": client.metadata.get("checkpoint", ""),
            "decisions": len(latency),
            "nfe_per_decision": float(np.mean(agent.nfe)),
            "episodes": [asdict(e) for e in done],
            "latency_ms": {
                "p50": float(np.percentile(latency, 50)),
                "p99": float(np.percentile(latency, 99)),
            },
        }
