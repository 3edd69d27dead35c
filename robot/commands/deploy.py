"""Run a served policy on a robot."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from .parsing import Output

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
    out: str = ""
    """Record what happens into this dataset."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.features import ENVIRONMENT
    from ...datasets.recorder import Recorder
    from ...policies.serving.client import PolicyClient
    from ..config import load_robot
    from ..deploy import DeployedEpisode, deploy
    from ..record import open_store
    from .evaluate import _cameras

    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    with PolicyClient(args.server) as client:
        cameras = _cameras(client.metadata)
        tracking = ENVIRONMENT in client.metadata.get("features", {})

    def report(e: DeployedEpisode) -> None:
        outcome = {True: "success", False: "no success", None: "done"}[e.success]
        print(f"episode {e.seed}: {outcome} after {e.ticks} ticks, {e.late} late", file=sys.stderr)

    with (
        load_robot(
            args.robot, args.task or "lift", cameras, realtime=args.realtime, trackers=tracking
        ) as rig,
        contextlib.ExitStack() as stack,
    ):
        words = args.task if rig.sim is None else ""
        recorders = []
        if args.out:
            store = open_store(rig, args.out, words)
            overflow = "drop" if rig.realtime else "wait"
            recorders = [stack.enter_context(Recorder(store, overflow=overflow))]
        result = deploy(
            rig,
            args.server,
            args.episodes,
            args.seed,
            words or None,
            args.max_seconds or None,
            recorders,
            report,
        )
    done = result["episodes"]
    succeeded = sum(e["success"] is True for e in done)
    ms = result["latency_ms"]
    out.answer(
        result,
        f"{succeeded} of {len(done)} succeeded, latency p50 {ms['p50']:.1f} ms, p99 {ms['p99']:.1f} ms",
    )
    return 0
