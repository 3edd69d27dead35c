"""Join datasets of equal features into a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..parsing import Output, pairs, unset

EXAMPLE = "ulna data merge runs/a/data runs/b/data --out runs/ab/data"


@dataclass
class Args:
    data: Annotated[tyro.conf.Positional[list[str]], unset("none; name at least two")]
    """Folders of the datasets, in the order of the result."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the new dataset."""
    same_twice: bool = False
    """Allow an episode that is in several of them."""
    rename: Annotated[str, unset("none", "OLD=NEW")] = ""
    """Call features of a dataset, or elements of its state and action, otherwise, with commas:
    observation.images.top=observation.images.front,joint1=shoulder_pan."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.merge import merge
    from ....datasets.store import EpisodeStore

    if len(args.data) < 2:
        raise ValueError("name at least two datasets to merge")
    renames = pairs("--rename", args.rename, "old=new")
    result = merge([EpisodeStore.open(d) for d in args.data], args.out, args.same_twice, renames)
    frames = sum(e.length for e in result.episodes)
    out.answer(
        {"out": args.out, "episodes": len(result), "frames": frames},
        f"{args.out}: {len(result)} episodes, {frames} frames",
    )
    return 0
