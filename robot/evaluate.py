"""Closed-loop evaluation in a scene that judges, a simulated one or a twin's: a success rate over fixed
seeds, with its interval."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..datasets.features import ACTION, STATE
from ..drivers.arm import DeviceError
from ..drivers.camera import StaleFrame
from ..policies.serving.client import PolicyServerError
from .agent import Agent, PolicyAgent
from .charge import FREE, Charge
from .config import Rig
from .directors.directed import Directed
from .lerobot_words import for_robot
from .loop import Subscriber, run_episode
from .motion import go_to
from .report.evaluation import ClosedLoop, EpisodeTrace, Latency, OpenLoop, Outcome, worst_first
from .report.video import VideoRecorder
from .safety.tally import Tally
from .strategies.all import description, usual_strategy
from .strategies.strategy import Strategy

if TYPE_CHECKING:
    from ..policies.serving.local import LocalPolicy
    from .prompts import Prompts

FIRST_SEED = 1000  # demonstrations count from 0
BROKEN_IN_A_ROW = 5  # episodes that the policy failed in: then it measures nothing


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

    An episode in which the policy fails (it raises, or gives what is no action) has failed, for that reason,
    and the next one begins; what is raised goes on where all did, or `BROKEN_IN_A_ROW`. A lost device ends
    the evaluation.

    Then `videos` of them are run again for the camera, failures first, into `video_dir`; their joint traces
    are kept. progress: called after each episode with how many have run, how many of them succeeded, and
    `episodes`."""
    if rig.scene is None:
        raise ValueError(
            "success is judged by a scene's ground truth: evaluate on a sim: robot, or on a twin of this one"
        )
    if episodes < 1:
        raise ValueError("evaluate at least one episode")
    outcomes: list[Outcome] = []
    began, limited, in_a_row = time.monotonic(), Tally(), 0
    for i in range(episodes):
        outcome, error = _run(rig, agent, seed + i)
        outcomes.append(outcome)
        limited.add(rig.robot.tally)
        in_a_row = 0 if error is None else in_a_row + 1
        if error is not None and in_a_row in (episodes, BROKEN_IN_A_ROW):
            raise error
        progress(i + 1, sum(o.success for o in outcomes), episodes)
    report = replace(_report(rig, agent, outcomes, began), safety=str(limited) or None)
    policy = _policy_of(agent)
    if policy is not None and policy.latencies_s:
        report = replace(
            report,
            decisions=len(policy.latencies_s),
            nfe_per_decision=float(np.mean(policy.nfe)),
            latency_ms=Latency.of(policy.latencies_s),
            starved=policy.starved or None,
        )
    return _with_film(rig, agent, report, video_dir, videos)


def _policy_of(agent: Agent) -> PolicyAgent | None:
    if isinstance(agent, Directed):
        return _policy_of(agent.policy)
    return agent if isinstance(agent, PolicyAgent) else None


class _Count:
    """A subscriber that counts ticks."""

    ticks = 0

    def start(self, meta: Mapping[str, Any]) -> None:
        pass

    def tick(self, values: Any, times_ns: Any, flags: Any) -> None:
        self.ticks += 1

    def end(self, meta: Mapping[str, Any]) -> None:
        pass

    def interrupt(self, reason: str) -> None:
        pass


def _run(
    rig: Rig, agent: Agent, seed: int, subscribers: Sequence[Subscriber] = ()
) -> tuple[Outcome, Exception | None]:
    """One episode, and what the policy broke it off by."""
    scene, count = rig.scene, _Count()
    assert scene is not None
    if rig.home is not None:
        go_to(rig.robot, rig.home)
    scene.reset(seed)
    try:
        result = run_episode(
            rig.robot,
            agent,
            [*subscribers, count],
            task=scene.instruction,
            seed=seed,
            max_ticks=round(scene.max_seconds * rig.robot.control_hz),
            success=scene.success,
        )
    except Exception as error:
        others = isinstance(error, DeviceError | StaleFrame | OSError)
        if others and not isinstance(error, PolicyServerError):
            raise
        reason = str(error) or type(error).__name__
        return Outcome(seed, False, count.ticks, scene.score(), reason=reason), error
    return Outcome(seed, bool(result.success), result.ticks, scene.score()), None


def _report(rig: Rig, agent: Agent, outcomes: list[Outcome], began_s: float) -> ClosedLoop:
    """What is known of every evaluation in simulation. began_s: when it did, by `time.monotonic`."""
    assert rig.scene is not None
    feature = rig.robot.action_features[ACTION]
    runs = _policy_of(agent)
    policy = None if runs is None else runs.metadata
    directors = agent.directors if isinstance(agent, Directed) else ()
    return ClosedLoop(
        task=rig.scene.task_name,
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
        steering=list(policy.steering) or None if policy else None,
        sampling_steps=policy and policy.sampling_steps,
        directors=[{"name": type(d).__name__, **asdict(cast(Any, d))} for d in directors] or None,
        **({} if runs is None else _execution(runs)),
    )


def _execution(agent: PolicyAgent) -> dict[str, Any]:
    """What a report says of it, where it is not the usual one."""
    usual = agent.strategy == usual_strategy(agent.metadata)
    charge = agent.charge
    return {
        "strategy": None if usual else description(agent.strategy),
        "charged": None if charge is None or charge.ms == 0 else str(charge),
        "shown": agent.shown,
    }


def _with_film(rig: Rig, agent: Agent, report: ClosedLoop, video_dir: Path | None, videos: int) -> ClosedLoop:
    """`report` with films of `videos` of its episodes, which are run again. An episode follows from its seed,
    but where a server's or a GPU's arithmetic is not the same twice; so what was filmed is judged anew."""
    if rig.sim is None or video_dir is None or videos < 1:
        return report
    film, tracer = VideoRecorder(rig.sim.film_camera(), video_dir, rig.robot.control_hz), _Tracer()
    chosen = worst_first(report.outcomes)[:videos]
    filmed = [_run(rig, agent, o.seed, [tracer, film])[0] for o in chosen]
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
    strategy: Strategy | None = None,
    charge: Charge = FREE,
    prompts: Prompts | None = None,
) -> ClosedLoop:
    """As `evaluate`, with up to `batch` episodes at once, whose physics `processes` processes share. The
    episodes are the same; those that are filmed are run again one at a time, and the latency is theirs. task:
    what the rig's was called when it was loaded, where that is not its own name. strategy, charge, prompts:
    as of `PolicyAgent`."""
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
    # refuses what does not fit
    agent = PolicyAgent(
        for_robot(policy, rig),
        rig.robot.features,
        rig.robot.control_hz,
        strategy=strategy,
        charge=charge,
        prompts=prompts,
    )
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
        randomisation=scene.xi,
    )
    try:
        seeds = range(seed, seed + episodes)
        decider = for_robot(BatchPolicy(policy), rig)
        found = rollout(
            decider, env, seeds, progress=progress, strategy=strategy, charge=charge, prompts=prompts
        )
    finally:
        env.close()
    report = replace(
        _report(rig, agent, found.outcomes, began),
        decisions=found.decisions,
        nfe_per_decision=found.nfe_per_decision,
        batch=env.num_envs,
        processes=processes,
        starved=found.starved or None,
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
