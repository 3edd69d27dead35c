"""Learn from recorded episodes what they did where, so that what they never did can be told. A robot's file
asks the guard before each command ([safety.guard]), a server among chunks (--steer Supported), and a director
while an episode runs (--director Supported)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .errors import UsageError
from .parsing import Output, unset, words

EXAMPLE = "ulna guard --data runs/x/data --out runs/x/guard --observe observation.state"


@dataclass
class Args:
    data: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the dataset; episodes that failed or broke off are left out."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the guard."""
    observe: Annotated[str, unset("every vector", "NAMES")] = ""
    """What it sees, with commas; a robot's file takes a guard of observation.state alone."""
    quantile: float = 0.05
    """Share of the pairs of state and action of held-out episodes that is not supported."""
    neighbours: int = 4
    """How many pairs of the data must be near one that is supported."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    if not 0 < args.quantile < 1 or args.neighbours < 1:
        raise UsageError("--quantile lies between 0 and 1, and --neighbours is at least 1")
    from ...policies.learn.support import learn_support

    answer = learn_support(args.data, args.out, words(args.observe) or None, args.quantile, args.neighbours)
    text = (
        f"{args.out}: {answer['pairs']} pairs of {answer['episodes']} episodes; what is further from them "
        f"than {answer['radius']:.3g} is not supported, as {args.quantile:.0%} of "
        f"{answer['held_out_pairs']} pairs of {answer['held_out_episodes']} held-out episodes are not"
    )
    out.answer(answer, text)
    return 0
