"""Deployment: a served policy on a robot, paced by the robot's own clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..datasets.recording.recorder import Recorder
from ..policies.serving.client import PolicyClient
from .agent import PolicyAgent
from .charge import Charge
from .config import Rig
from .keys import Keys
from .record import episode_metadata, total_drops
from .report.evaluation import Latency
from .strategies.all import description
from .strategies.strategy import Strategy
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
    strategy: Strategy | None = None,
) -> dict[str, Any]:
    """Run `episodes` episodes of the policy at `server`; returns what happened (JSON types only).

    When the server dies or answers with garbage the arm holds where it is, and PolicyServerError is raised.
    task: the instruction in words; a simulated scene brings its own. max_seconds: for one episode, 60 without
    a scene. report: called with the episodes so far whenever one has ended. keys and reset_seconds: as for
    `record`; whoever quits before the last episode gets the result of those before. strategy: how chunks are
    asked for and executed, by default as the policy's decoder says; a simulated robot whose time waits for us
    is charged what the policy took, where the strategy would not wait for it."""
    robot, scene = rig.robot, rig.scene
    with PolicyClient(server) as client, contextlib.ExitStack() as stack:
        charge = None if rig.realtime or strategy is None or strategy.waits else Charge(None)
        agent = PolicyAgent(client, robot.features, robot.control_hz, strategy=strategy, charge=charge)
        stack.callback(agent.close)
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
            "strategy": description(agent.strategy),
            "starved": agent.starved,
            "too_late": agent.too_late,
            "delay_ticks": max(agent.delays, default=0),
            "episodes": [asdict(t) for t in takes],
            "dropped": total_drops(takes),
            "latency_ms": asdict(Latency.of(agent.latencies_s or [0.0])),
        }
