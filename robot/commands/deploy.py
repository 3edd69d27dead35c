"""Run a served policy on a robot."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .parsing import Output

if TYPE_CHECKING:
    from ..takes import Taken

EXAMPLE = "ulna deploy --robot sim:so101 --server ws://127.0.0.1:8000 --task lift --episodes 5"


@dataclass
class Args:
    robot: str = "sim:so101"
    """sim:so101, sim:panda, sim:ur5e, or a robot's TOML file."""
    server: str = "ws://127.0.0.1:8000"
    """Where `ulna serve` runs."""
    task: str = ""
    """Of a simulated robot: its scene, lift by default. Of a real one: the instruction, in words."""
    episodes: int = 1
    """How many."""
    seed: int = 2000
    """Of the first scene, where one can be set up by its seed."""
    max_seconds: float = 0.0
    """Longest episode; the task's own by default."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one."""
    reset_seconds: float = 5.0
    """Where no twin resets the scene and no keyboard is there: time between episodes to put things back."""
    out: str = ""
    """Record what happens into this dataset."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.features import ENVIRONMENT
    from ...policies.serving.client import PolicyClient
    from ..config import load_robot
    from ..deploy import deploy
    from ..keys import HELP, Keys
    from ..record import lost_says, open_store, recorder_for
    from .evaluate import _cameras

    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    with PolicyClient(args.server) as client:
        cameras = _cameras(client.metadata)
        tracking = ENVIRONMENT in client.metadata.features

    known = 0

    def report(taken: Sequence[Taken]) -> None:
        nonlocal known
        if len(taken) > known:
            e = taken[-1]
            outcome = {True: "success", False: "no success", None: "done"}[e.success]
            print(f"episode {e.seed}: {outcome} after {e.ticks} ticks, {e.late} late", file=sys.stderr)
        known = len(taken)

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
        if keys.there and rig.realtime:
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
        )
    done = result["episodes"]
    succeeded = sum(e["success"] is True for e in done)
    ms = result["latency_ms"]
    out.answer(
        result,
        f"{succeeded} of {len(done)} succeeded, latency p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms"
        + lost_says(result["dropped"]),
    )
    return 0
