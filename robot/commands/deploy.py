"""Run a served policy on a robot."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .choices import robots, tasks_or_words
from .execution import split_strategy_fields, strategies, strategies_help, strategy_of
from .parsing import Output, unset

if TYPE_CHECKING:
    from ..takes import TakeResult

EXAMPLE = "ulna deploy --robot sim:so101 --server ws://127.0.0.1:8000 --task lift --episodes 5"
CHOICES = {"robot": robots, "task": tasks_or_words, "strategy": strategies}
prepare, more_help = split_strategy_fields, strategies_help


@dataclass
class Args:
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file."""
    server: str = "ws://127.0.0.1:8000"
    """Where `ulna serve` runs."""
    task: Annotated[str, unset("lift in simulation, none else")] = ""
    """Of a simulated robot: its scene. Of a real one: the instruction, in words."""
    episodes: int = 1
    """How many."""
    seed: int = 2000
    """Of the first scene, where one can be set up by its seed."""
    max_seconds: Annotated[float, unset("the scene's own, 60 s where it has none")] = 0.0
    """Longest episode, seconds."""
    strategy: Annotated[str, unset("receding; ensemble, each tick waiting, where the recipe says so")] = ""
    """How chunks are asked for and executed. All but receding ask while the last chunk is executed; a
    simulated robot without --realtime is charged the time that the policy took."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one."""
    reset_seconds: float = 5.0
    """Where no twin resets the scene and no keyboard is there: time between episodes to put things back."""
    out: Annotated[str, unset("nothing is recorded", "FOLDER")] = ""
    """Record what happens into this dataset."""
    json: bool = False
    """Print one JSON object."""
    strategy_fields: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def run(args: Args, out: Output) -> int:
    from ...datasets.features import ENVIRONMENT
    from ...policies.serving.client import PolicyClient
    from ..config import load_robot
    from ..deploy import deploy
    from ..keys import HELP, Keys
    from ..record import dropped_message, open_store, recorder_for
    from .evaluate import _cameras

    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    strategy = strategy_of(args.strategy, args.strategy_fields)
    with PolicyClient(args.server) as client:
        cameras = _cameras(client.metadata)
        tracking = ENVIRONMENT in client.metadata.features

    n_reported = 0

    def report(takes: Sequence[TakeResult]) -> None:
        nonlocal n_reported
        if len(takes) > n_reported:
            e = takes[-1]
            outcome = {True: "success", False: "no success", None: "done"}[e.success]
            line = f"episode {e.seed}: {outcome} after {e.ticks} ticks, {e.late} late"
            print(line + (f"; {e.safety}" if e.safety else ""), file=sys.stderr)
        n_reported = len(takes)

    with (
        load_robot(
            args.robot, args.task or "lift", cameras, realtime=args.realtime, trackers=tracking
        ) as rig,
        contextlib.ExitStack() as stack,
    ):
        words = args.task if rig.sim is None else ""
        recorder = None
        if args.out:
            recorder = stack.enter_context(recorder_for(rig, open_store(rig, args.out, words)))
        keys = stack.enter_context(Keys())
        if keys.is_terminal and rig.realtime:
            print(HELP, file=sys.stderr)
        result = deploy(
            rig,
            args.server,
            args.episodes,
            args.seed,
            words or None,
            args.max_seconds or None,
            recorder,
            report,
            keys=keys,
            reset_seconds=args.reset_seconds,
            strategy=strategy,
        )
    episodes = result["episodes"]
    successes = sum(e["success"] is True for e in episodes)
    ms = result["latency_ms"]
    out.answer(
        result,
        f"{successes} of {len(episodes)} succeeded, latency p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms"
        + starved_message(result)
        + dropped_message(result["dropped"]),
    )
    return 0


def starved_message(result: Mapping[str, Any]) -> str:
    """What to say of ticks without an action; "" where there were none."""
    if not result["starved"]:
        return ""
    too_late = f", {result['too_late']} answers came too late" if result["too_late"] else ""
    return f"\n{result['starved']} ticks had no action and repeated the last one{too_late}"
