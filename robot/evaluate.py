"""Closed-loop evaluation in simulation: a success rate over fixed seeds, with its interval."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.features import ACTION, STATE
from .agent import Agent, PolicyAgent
from .config import Rig
from .loop import Subscriber, run_episode
from .report.evaluation import ClosedLoop, EpisodeTrace, Latency, OpenLoop, Outcome, worst_first
from .report.video import VideoRecorder
from .safety.tally import Tally

if TYPE_CHECKING:
    from ..policies.serving.local import LocalPolicy

FIRST_SEED = 1000  # demonstrations count from 0


class _Tracer:
    """A subscriber that keeps what a plot needs of each episode."""

    def __init__(self) -> None:
        self.traces: list[EpisodeTrace] = []

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
        self.traces.append(EpisodeTrace(self._seed, action, state))

    def interrupt(self, reason: str) -> None:
        self._rows = []


def evaluate(
    rig: Rig,
    agent: Agent,
    episodes: int,
    seed: int = FIRST_SEED,
    video_dir: Path | None = None,
    videos: int = 3,
    progress: Callable[[int, int, int], None] = lambda finished, successes, episodes: None,
) -> ClosedLoop:
    """Run `episodes` episodes with seeds `seed`, `seed + 1`, … ValueError where no scene judges them.

    Then `videos` of them are run again for the camera, failures first, into `video_dir`; their joint traces
    are kept. progress: called after each episode with how many have run, how many of them succeeded, and
    `episodes`."""
    if rig.sim is None:
        raise ValueError("success is judged by a simulated scene's ground truth: evaluate on a sim: robot")
    if episodes < 1:
        raise ValueError("evaluate at least one episode")
    outcomes: list[Outcome] = []
    began, limited = time.monotonic(), Tally()
    for i in range(episodes):
        outcomes.append(_run(rig, agent, seed + i))
        limited.add(rig.robot.tally)
        progress(i + 1, sum(o.success for o in outcomes), episodes)
    report = replace(_report(rig, agent, outcomes, began), safety=str(limited) or None)
    if isinstance(agent, PolicyAgent):
        report = replace(
            report,
            decisions=len(agent.latencies_s),
            nfe_per_decision=float(np.mean(agent.nfe)),
            latency_ms=Latency.of(agent.latencies_s),
        )
    return _with_film(rig, agent, report, video_dir, videos)


def _run(rig: Rig, agent: Agent, seed: int, subscribers: Sequence[Subscriber] = ()) -> Outcome:
    scene = rig.sim
    assert scene is not None
    scene.reset(seed)
    result = run_episode(
        rig.robot,
        agent,
        subscribers,
        task=scene.instruction,
        seed=seed,
        max_ticks=round(scene.max_seconds * rig.robot.control_hz),
        success=scene.success,
    )
    return Outcome(seed, bool(result.success), result.ticks, scene.score())


def _report(rig: Rig, agent: Agent, outcomes: list[Outcome], began_s: float) -> ClosedLoop:
    """What is known of every evaluation in simulation. began_s: when it did, by `time.monotonic`."""
    assert rig.sim is not None
    feature = rig.robot.action_features[ACTION]
    policy = agent.metadata if isinstance(agent, PolicyAgent) else None
    return ClosedLoop(
        task=rig.sim.task.name,
        robot=rig.robot.name,
        agent=agent.tag,
        joints=list(feature.names),
        units=list(feature.units),
        control_hz=rig.robot.control_hz,
        outcomes=outcomes,
        seconds=time.monotonic() - began_s,
        versions={"ulna": version("ulna")},
        checkpoint=policy and policy.checkpoint,
        recipe=policy and policy.recipe,
    )


def _with_film(rig: Rig, agent: Agent, report: ClosedLoop, video_dir: Path | None, videos: int) -> ClosedLoop:
    """`report` with films of `videos` of its episodes, which are run again. An episode follows from its seed,
    but where a server's or a GPU's arithmetic is not the same twice; so what was filmed is judged anew."""
    if rig.sim is None or video_dir is None or videos < 1:
        return report
    film, tracer = VideoRecorder(rig.sim.film_camera(), video_dir, rig.robot.control_hz), _Tracer()
    chosen = worst_first(report.outcomes)[:videos]
    filmed = [_run(rig, agent, o.seed, [tracer, film]) for o in chosen]
    return replace(report, filmed=filmed, traces=tracer.traces, videos=[str(f) for f in film.files])


def evaluate_at_once(
    rig: Rig,
    policy: LocalPolicy,
    episodes: int,
    seed: int = FIRST_SEED,
    batch: int = 32,
    processes: int = 1,
    task: str = "",
    video_dir: Path | None = None,
    videos: int = 3,
    progress: Callable[[int, int, int], None] = lambda finished, successes, episodes: None,
) -> ClosedLoop:
    """As `evaluate`, with up to `batch` episodes at once, whose physics `processes` processes share. The
    episodes are the same; those that are filmed are run again one at a time, and the latency is theirs. task:
    what the rig's was called when it was loaded, where that is not its own name."""
    if rig.robot.filter is not None:
        raise ValueError(
            f"episodes that run at once go through no safety filter, and {rig.robot.name} has a table "
            "[safety]: leave out --batch"
        )
    from ..policies.serving.batch import BatchPolicy
    from ..sim.vector import vector_env
    from .rollout import rollout

    if batch < 1:
        raise ValueError(f"--batch is how many episodes run at once, not {batch}")
    if episodes < 1:
        raise ValueError("evaluate at least one episode")
    scene = rig.sim
    if scene is None:
        raise ValueError("only simulated robots can be many: leave out --batch, or evaluate on a sim: robot")
    agent = PolicyAgent(policy, rig.robot.features, rig.robot.control_hz)  # refuses what does not fit
    began = time.monotonic()
    sizes = [(c.height, c.width) for c in scene.cameras.values()]
    env = vector_env(
        task or scene.task.name,
        rig.config["model"],
        min(batch, episodes),
        processes,
        cameras=tuple(scene.cameras),
        image_size=sizes[0] if sizes else (96, 96),
        control_hz=rig.robot.control_hz,
    )
    try:
        found = rollout(BatchPolicy(policy), env, range(seed, seed + episodes), progress=progress)
    finally:
        env.close()
    report = replace(
        _report(rig, agent, found.outcomes, began),
        decisions=found.decisions,
        nfe_per_decision=found.nfe_per_decision,
        batch=env.num_envs,
        processes=processes,
    )
    report = _with_film(rig, agent, report, video_dir, videos)
    return replace(report, latency_ms=Latency.of(agent.latencies_s)) if agent.latencies_s else report


def save_report(checkpoint: str | Path, name: str, report: ClosedLoop | OpenLoop) -> Path:
    """Write `validation/NAME.json` into the checkpoint, whole or not at all."""
    folder = Path(checkpoint) / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.{secrets.token_hex(4)}"
    new.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
    os.replace(new, folder / f"{name}.json")
    return folder / f"{name}.json"
