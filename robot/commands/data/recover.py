"""Bring back what was being recorded when it was cut off. Every command does so that opens a dataset; this
one says what."""

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
    back = store.recover(wait=True)
    left = store.interrupted_folders()
    lines = [f"recovered {p.name}: {e.length} frames" for p in back for e in store.episodes if e.path == p]
    lines += [f"{p} could not be recovered" for p in left]
    answer = {"recovered": [p.name for p in back], "left": [p.name for p in left]}
    out.answer(answer, "\n".join(lines) or "nothing was cut off")
    return 1 if left else 0
