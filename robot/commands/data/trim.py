"""Cut the ends off an episode; the whole one goes to the trash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..parsing import Output, unset

EXAMPLE = "ulna data trim runs/x/data --episode 3 --start 1.2 --end 8.5"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episode: int
    """Its number."""
    start: Annotated[float | None, unset("its beginning", "SECONDS")] = None
    """First moment to keep, seconds after the episode's first tick."""
    end: Annotated[float | None, unset("its end", "SECONDS")] = None
    """Last moment to keep."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.edit import trim
    from ....datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    before, now = trim(store, args.episode, args.start, args.end)
    name = store.episodes[args.episode].path.name
    text = (
        f"episode {args.episode}: {now} of {before} frames kept "
        f"(undo: ulna data restore {args.data} --episodes {name})"
    )
    out.answer({"episode": args.episode, "frames_before": before, "frames": now}, text)
    return 0
