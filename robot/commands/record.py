"""Record demonstrations into a dataset."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from .bar import progress
from .choices import agents, robots, tasks_or_words
from .parsing import Output, page_options, size_of, unset, words

EXAMPLE = "ulna record --robot sim:so101 --task lift --agent expert --episodes 100 --out runs/x/data"
CHOICES = {"robot": robots, "task": tasks_or_words, "agent": agents}


@dataclass
class Args:
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the dataset; one with the same features is continued."""
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file."""
    task: Annotated[str, unset("lift in simulation; must be given for a real robot")] = ""
    """Of a simulated robot: its scene. Of a real one: what is to be done, in words; or several such tasks,
    with semicolons between, of which the one with the fewest episodes is next."""
    agent: str = "expert"
    """Who acts; expert, which knows the scene, and hold, which does nothing, in simulation only."""
    episodes: int = 10
    """How many to record."""
    cameras: Annotated[str, unset("none of a simulated robot's, all of a real one's", "NAMES")] = ""
    """Cameras to record, with commas: front,wrist."""
    seed: int = 0
    """Seed of the first episode; the next ones count on. Evaluation starts at 1000."""
    noise: float = 0.004
    """Disturbance of the expert's fingertips, metres: what it corrects is what a policy learns to correct."""
    mode: Annotated[str, unset("the expert's own choice")] = ""
    """The expert's way of doing it, where a task has several."""
    max_seconds: Annotated[float, unset("the scene's own, 60 s where it has none")] = 0.0
    """Longest episode, seconds."""
    reset_seconds: float = 5.0
    """Where no twin resets the scene and no keyboard is there: time between episodes to put things back."""
    only_successes: bool = False
    """Throw failed episodes away."""
    realtime: bool = False
    """Run a simulated robot no faster than a real one; always so where a person moves it."""
    codec: Literal["lossless", "jpeg"] = "lossless"
    """How images are kept: every pixel as it came (a third of its size), or JPEG (a tenth)."""
    jpeg_quality: int = 95
    """Of --codec jpeg, 1 to 100."""
    image_size: Annotated[str, unset("as the cameras give them", "WxH")] = ""
    """Shrink images while recording: 320x240."""
    durability: Literal["process", "power"] = "process"
    """What a recording outlives: a killed process, or a power cut too (at most half a second is lost; needs a
    disk that keeps up)."""
    phone: bool = False
    """With --agent browser: let a phone in the same network open the page (HTTPS, by a QR code)."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ..config import load_robot
    from ..keys import HELP, Keys
    from ..onlooker import onlooker_for
    from ..people import agent_for, people
    from ..record import dropped_message, record

    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, not {args.episodes}")
    size, options = size_of(args.image_size), page_options(args.agent, args.phone)
    storage = {"codec": "jpeg", "quality": args.jpeg_quality} if args.codec == "jpeg" else None
    by_hand = args.agent in people()
    rig = load_robot(args.robot, args.task or "lift", words(args.cameras), realtime=args.realtime or by_hand)
    with (
        # before the robot: it gets no torque where there is nobody to move it
        agent_for(args.agent, args.robot, rig, args.noise, args.mode or None, **options) as agent,
        onlooker_for(agent, rig) if by_hand else contextlib.nullcontext() as onlooker,
        rig,
        progress("recording", args.episodes) as bar,
        contextlib.ExitStack() as stack,
    ):
        # the keyboard as teleoperator reads the terminal itself, episode keys and all
        keys = None if args.agent == "keyboard" else stack.enter_context(Keys())
        if keys is not None and keys.is_terminal and rig.realtime:
            bar.print(HELP)

        def report(count: int, successes: int, frames: int) -> None:
            bar.update(count, note=f"{successes} succeeded, {frames} frames")

        result = record(
            rig,
            agent,
            args.out,
            args.episodes,
            args.seed,
            args.only_successes,
            report,
            keys=keys,
            storage=storage,
            image_size=size,
            durability=args.durability,
            task=args.task if rig.sim is None else "",
            max_seconds=args.max_seconds or None,
            reset_seconds=args.reset_seconds,
            say=bar.print,
            onlooker=onlooker,
        )
    text = f"{result.out}: {result.episodes} episodes, {result.successes} succeeded, {result.frames} frames"
    text += dropped_message(result.dropped)
    out.answer({**asdict(result), "out": str(result.out)}, text)
    return 0
