"""Say which episode of a dataset is the longest."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ulna.robot.commands.parsing import Output

EXAMPLE = "ulna longest runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ulna.datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    if not len(store):
        raise ValueError(f"{args.data} has no episodes: record some first")
    episode = max(store.episodes, key=lambda e: e.length)
    text = f"episode {episode.index} is the longest: {episode.length} ticks"
    out.answer({"episode": episode.index, "ticks": episode.length}, text)
    return 0
