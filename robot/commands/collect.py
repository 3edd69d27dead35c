"""Improve a policy by corrections, in rounds: it acts, a person takes over where it goes wrong, and the next
policy begins from this one and learns what the person did. What is finished is kept: the same command goes
on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .choices import robots, takers, tasks_or_words
from .errors import UsageError
from .parsing import Output, require_device, unset

if TYPE_CHECKING:
    from ..collect import Round

EXAMPLE = (
    "ulna collect runs/x/flow --robot my-so101.toml --task 'lift it' --takeover leader --out runs/x/better"
)
CHOICES = {"robot": robots, "task": tasks_or_words, "takeover": takers}


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """The policy to begin with."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the rounds: attempts in corrections-1, the policy that learned from them in round-1, and so
    on."""
    robot: str = "sim:so101"
    """A simulated one, or a robot's TOML file."""
    task: Annotated[str, unset("lift in simulation, none else")] = ""
    """Of a simulated robot: its scene. Of a real one: the instruction, in words."""
    takeover: str = "leader"
    """By what the person takes over; expert: a script, in simulation."""
    rounds: int = 3
    """How many."""
    episodes: int = 10
    """Attempts a round."""
    data: Annotated[list[str] | None, unset("as the checkpoint says", "FOLDER")] = None
    """What the policy was trained on; it learns from that and from all corrections."""
    weights: Literal["iwr", "sirius", "hg-dagger"] = "iwr"
    """How ticks count, see `ulna train`."""
    steps: int = 1000
    """Of training, a round."""
    max_seconds: Annotated[float, unset("the scene's own, 60 s where it has none")] = 0.0
    """Longest attempt, seconds."""
    reset_seconds: float = 5.0
    """Where no twin resets the scene and no keyboard is there: time between attempts to put things back."""
    unvalidated: Annotated[str, unset("a real robot's policy must have passed", "REASON")] = ""
    """Let policies without a passing validation move a real robot; the reason is stored with each attempt."""
    device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:N")] = "cpu"
    """Where policies run and learn."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ..collect import collect
    from .deploy import Args as DeployArgs
    from .deploy import deployed

    if min(args.rounds, args.episodes, args.steps) < 1:
        raise UsageError("--rounds, --episodes and --steps are at least 1")
    require_device(args.device)

    def record(url: str, folder: Path, attempts: int, seed: int, size: tuple[int, int] | None) -> None:
        deployed(
            DeployArgs(
                robot=args.robot,
                server=url,
                task=args.task,
                episodes=attempts,
                seed=seed,
                max_seconds=args.max_seconds,
                reset_seconds=args.reset_seconds,
                out=str(folder),
                image_size=f"{size[1]}x{size[0]}" if size else "",
                takeover=args.takeover,
                unvalidated=args.unvalidated,
            )
        )

    rounds = collect(
        args.checkpoint,
        args.out,
        args.rounds,
        args.episodes,
        record,
        data=args.data or (),
        weights=args.weights,
        steps=args.steps,
        device=args.device,
        report=lambda done: print(_line(done), file=sys.stderr),
    )
    last = next((r.learned for r in reversed(rounds) if r.learned), args.checkpoint)
    text = "\n".join([*map(_line, rounds), f"the last policy is {last}: measure it with `ulna evaluate`"])
    out.answer({"rounds": [r.to_json() for r in rounds], "checkpoint": last}, text)
    return 0


def _line(r: Round) -> str:
    low, high = r.wilson_95
    learned = f"learned into {r.learned}" if r.learned else "nobody took over: there is nothing to learn"
    interval = f"95 % interval {100 * low:.0f} to {100 * high:.0f} %"
    return (
        f"{r.policy}: {r.alone} of {r.attempts} succeeded alone ({interval}), a person took over in "
        f"{r.taken_over} ({100 * r.person_share:.0f} % of the ticks); {learned}"
    )
