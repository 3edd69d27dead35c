"""Make a dataset of policies, which a generator of policies learns from (make_an_agent, g_pt)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..parsing import Output

EXAMPLE = "ulna data zoo runs/zoo --out runs/zoo-data"


@dataclass
class Args:
    folder: tyro.conf.Positional[str]
    """Holds a folder for each training: a checkpoint, or several that it passed, each in a folder. All of one
    small recipe, features and statistics."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Where the dataset goes: an episode for each training."""
    told: Literal["behaviour", "metric"] = "behaviour"
    """What a policy is to be made of: a trajectory, of those that each was trained on (make_an_agent), or
    another policy of the same training, its success and the one that is wanted, by `ulna evaluate`
    (g_pt)."""
    ticks: int = 16
    """How many ticks of a trajectory are told, taken evenly."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....policies.zoo import make_zoo

    result = make_zoo(
        args.folder,
        args.out,
        args.told,
        args.ticks,
        lambda sentence: print(f"ulna: {sentence}", file=sys.stderr),
    )
    out.answer(
        result,
        f"{result['out']}: {result['policies']} policies of {result['weights']} weights from "
        f"{result['runs']} trainings, {result['examples']} examples",
    )
    return 0
