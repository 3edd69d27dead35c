"""Deployment: a served policy on a robot, paced by the robot's own clock."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..datasets.recording.recorder import Recorder
from ..policies.serving.client import PolicyClient
from .agent import Agent, PolicyAgent
from .charge import Charge
from .config import Rig
from .directors.directed import Directed
from .directors.director import Director
from .keys import Keys
from .lerobot_words import for_robot
from .loop import Subscriber
from .onlooker import Onlooker
from .prompts import prompts_for
from .record import episode_metadata, total_drops
from .report.evaluation import Latency
from .scene import Correction
from .strategies.all import description
from .strategies.strategy import Strategy
from .takeover import Person, Takeover
from .takes import RESET_S, TakeResult, take_episodes

STALL_S = 0.5  # between two ticks, beyond the control period: then it is said


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
    person: Person | None = None,
    directors: Sequence[Director] = (),
    meta: Mapping[str, Any] | None = None,
    onlooker: Onlooker | None = None,
    checkpoint: str | None = None,
    timeout_s: float = 30.0,
    prompt: str = "",
    prompt_episodes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Run `episodes` episodes of the policy at `server`; returns what happened (JSON types only).

    When the server dies or answers with garbage the arm holds where it is, and PolicyServerError is raised.
    task: the instruction in words; a simulated scene brings its own. max_seconds: for one episode, 60 without
    a scene. report: called with the episodes so far whenever one has ended. keys and reset_seconds: as for
    `record`; whoever quits before the last episode gets the result of those before. strategy: how chunks are
    asked for and executed, by default as the policy's decoder says; a simulated robot whose time waits for us
    is charged what the policy took, where the strategy would not wait for it. person: who may take the robot
    over. directors: see `directors.director`. meta: stored with each episode, beside what is known of the
    robot. onlooker: shows all that to the person. checkpoint: the content hash that every answer must be of,
    where another one may not move this robot, even if the server takes it up meanwhile. timeout_s: for one
    answer, from the question to its last byte. prompt, prompt_episodes: a dataset, and which of its episodes,
    for a policy that is shown demonstrations; see `prompts.Prompts`."""
    robot, scene = rig.robot, rig.scene
    with PolicyClient(server, timeout_s, checkpoint=checkpoint) as client, contextlib.ExitStack() as stack:
        charge = None if rig.realtime or strategy is None or strategy.waits else Charge(None)
        asked = for_robot(client, rig)
        policy = PolicyAgent(
            asked,
            robot.features,
            robot.control_hz,
            strategy=strategy,
            charge=charge,
            prompts=prompts_for(asked.metadata, prompt, prompt_episodes),
        )
        stack.callback(policy.close)
        agent: Agent = policy
        if directors:
            agent = stack.enter_context(Directed(agent, directors, rig))
        takeover = None
        if person is not None:
            agent = takeover = Takeover(agent, person, robot.control_hz)
        others: list[Subscriber] = [Stalls(robot.period_ns * 1e-9)] if rig.realtime else []
        if takeover is not None and rig.remote is not None:
            others.append(Correction(rig.remote))
        shown = {} if policy.shown is None else {"shown": policy.shown}
        takes = take_episodes(
            rig,
            agent,
            episodes,
            seed,
            recorder,
            keys,
            tasks=[task] if task else [],
            max_seconds=max_seconds,
            reset_seconds=reset_seconds,
            meta={**episode_metadata(rig), **shown, **(meta or {})},
            others=others,
            report=report,
            onlooker=onlooker,
        )
        return {
            "robot": robot.name,
            "task": scene.task_name if scene is not None else task or "",
            "agent": agent.tag,
            "server": server,
            "checkpoint": client.metadata.checkpoint,
            "decisions": len(policy.latencies_s),
            "nfe_per_decision": float(np.mean(policy.nfe or [0])),
            "strategy": description(policy.strategy),
            **shown,
            "starved": policy.starved,
            "too_late": policy.too_late,
            "delay_ticks": max(policy.delays, default=0),
            "episodes": [asdict(t) for t in takes],
            "dropped": total_drops(takes),
            "latency_ms": asdict(Latency.of(policy.latencies_s or [0.0])),
            **({} if takeover is None else {"takeovers": takeover.taken}),
        }


class Stalls:
    """A subscriber that says when no tick comes for more than `STALL_S`, while that lasts: the arm holds
    meanwhile, most often because the server does not answer. How long it was, the robot says once it is over.
    period_s: of control."""

    def __init__(
        self, period_s: float, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    ) -> None:
        self._longest_s, self._say = STALL_S + period_s, say
        self._lock = threading.Lock()
        self._last: float | None = None
        self._is_said = False
        self._over = threading.Event()

    def start(self, meta: Mapping[str, Any]) -> None:
        self._last, self._is_said, self._over = None, False, threading.Event()
        threading.Thread(target=self._watch, args=(self._over,), name="stalls", daemon=True).start()

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        with self._lock:
            self._last, self._is_said = time.monotonic(), False

    def end(self, meta: Mapping[str, Any]) -> None:
        self._over.set()

    def interrupt(self, reason: str) -> None:
        self._over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            with self._lock:
                waited = 0.0 if self._last is None else time.monotonic() - self._last
                stalls = waited > self._longest_s and not self._is_said
                self._is_said = self._is_said or stalls
            if stalls:
                self._say(f"no new action for {waited:.1f} s (is the server slow?): the arm holds")
