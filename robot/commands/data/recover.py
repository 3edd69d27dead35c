"""Bring back episodes whose recording was cut off, and say which. Every command that adds to a dataset, edits
it or trains on it brings them back, too; `info`, `check`, `stats` and `view` only look."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ..parsing import Output

EXAMPLE = "ulna data recover runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data, recover=False)
    paths = store.recover(wait=True)
    remains = store.interrupted_folders()
    lines = [f"recovered {p.name}: {e.length} frames" for p in paths for e in store.episodes if e.path == p]
    lines += [f"{p} could not be recovered" for p in remains]
    answer = {"recovered": [p.name for p in paths], "left": [p.name for p in remains]}
    out.answer(answer, "\n".join(lines) or "nothing was cut off")
    return 1 if remains else 0
