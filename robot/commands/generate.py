"""Make a policy of what it is to do, or of another and how well it is to do: a generator draws its
weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .parsing import Output, unset

EXAMPLE = "ulna generate runs/gen runs/zoo/a --shown runs/new/data --out runs/new/policy"


@dataclass
class Args:
    generator: tyro.conf.Positional[str]
    """A checkpoint of make_an_agent or g_pt, trained on a dataset of `ulna data zoo`."""
    like: tyro.conf.Positional[str]
    """A checkpoint of that zoo: the result has its recipe, features and statistics. g_pt begins from its
    weights."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Where the result goes."""
    shown: Annotated[str, unset("none", "DATA")] = ""
    """A dataset that shows what the policy is to do, for make_an_agent."""
    episode: int = 0
    """Which of its episodes is shown."""
    metric: Annotated[float | None, unset("none", "FLOAT")] = None
    """The success rate that is wanted, 0 to 1, for g_pt; that of LIKE is its last `ulna evaluate`'s."""
    seed: int = 0
    """Another draw."""
    overwrite: bool = False
    """Replace what --out holds."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...policies.generate import generate

    result = generate(
        args.generator,
        args.like,
        args.out,
        args.shown,
        args.episode,
        args.metric,
        args.seed,
        args.overwrite,
    )
    out.answer(
        result,
        f"{result['checkpoint']}: {result['weights']} weights drawn by {result['by'][:8]}, "
        f"{result['content_hash'][:8]}",
    )
    return 0
