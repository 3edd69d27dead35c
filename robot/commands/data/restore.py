"""Take episodes out of the trash of a dataset, or empty it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from ..parsing import Output, unset, words

EXAMPLE = "ulna data restore runs/x/data --list"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: Annotated[str, unset("all that were deleted")] = ""
    """Names or numbers as --list shows them, with commas. One that was trimmed comes back only by name or
    number, and its trimmed version then lies in the trash."""
    list: bool = False
    """Only show what is in the trash."""
    empty: bool = False
    """Remove what is in the trash, for good."""
    yes: bool = False
    """Empty it without asking."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.edit import empty_trash, restore, trash
    from ....datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    contents = trash(store)
    if args.list:
        lines = [
            f"{t.path.name if t.replaced else t.name}  {'replaced' if t.replaced else 'deleted'} "
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(t.deleted_s))}"
            for t in contents
        ]
        entries = [
            {
                "name": t.name,
                "version": t.path.name,
                "deleted_s": round(t.deleted_s, 3),
                "replaced": t.replaced,
            }
            for t in contents
        ]
        out.answer({"trash": entries}, "\n".join(lines) or "the trash is empty")
        return 0
    if args.empty:
        if not args.yes and not _sure(len(contents), args.data):
            raise ValueError("nothing was removed: say --yes to empty the trash")
        count = empty_trash(store)
        out.answer({"removed": count}, f"removed {count} episodes for good")
        return 0
    back = restore(store, words(args.episodes) or None)
    out.answer({"restored": back, "episodes": len(store)}, f"restored: {', '.join(back) or 'nothing'}")
    return 0


def _sure(count: int, data: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"remove {count} episodes of {data} for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
