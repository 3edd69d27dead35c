"""Move episodes to the trash of a dataset; `ulna data restore` brings them back."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ..parsing import Output, episode_list

EXAMPLE = "ulna data delete runs/x/data --episodes 3,7-9"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: str
    """Which, like 3,7-9."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.edit import delete
    from ....datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    names = [p.name.rpartition(".")[0] for p in delete(store, episode_list(args.episodes))]
    text = (
        f"moved to the trash: {', '.join(names)}; {len(store)} episodes are left "
        f"(undo: ulna data restore {args.data} --episodes {','.join(names)})"
    )
    out.answer({"deleted": names, "episodes": len(store)}, text)
    return 0
