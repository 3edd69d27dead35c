"""Record demonstrations into a dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from .parsing import Output, progress

EXAMPLE = "ulna record --robot sim:so101 --task lift --agent expert --episodes 100 --out runs/x/data"


@dataclass
class Args:
    out: str
    """Folder of the dataset; one with the same features is continued."""
    robot: str = "sim:so101"
    """sim:so101, sim:panda, or a robot's TOML file."""
    task: str = "lift"
    """reach, lift or push_t."""
    agent: str = "expert"
    """Who acts: expert, or hold (does nothing)."""
    episodes: int = 10
    """How many."""
    cameras: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    """Cameras to record, with commas: front,wrist. None by default: state only."""
    seed: int = 0
    """Seed of the first episode; the next ones count on. Evaluation starts at 1000."""
    noise: float = 0.004
    """Disturbance of the expert's fingertips, metres: what it corrects is what a policy learns to correct."""
    mode: str = ""
    """The expert's way of doing it, where a task has several."""
    only_successes: bool = False
    """Throw failed episodes away."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ..config import load_robot
    from ..record import make_agent, record

    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    cameras = [c.strip() for c in args.cameras.split(",") if c.strip()]
    with (
        load_robot(args.robot, args.task, cameras, realtime=args.realtime) as rig,
        progress("recording") as bar,
    ):
        agent = make_agent(args.agent, rig, args.noise, args.mode or None)
        shown = bar.add_task("", total=args.episodes, note="")

        def report(done: int, successes: int, frames: int) -> None:
            bar.update(shown, completed=done, note=f"{successes} succeeded, {frames} frames")

        result = record(rig, agent, args.out, args.episodes, args.seed, args.only_successes, report)
    text = f"{result.out}: {result.episodes} episodes, {result.successes} succeeded, {result.frames} frames"
    out.answer({**asdict(result), "out": str(result.out)}, text)
    return 0
