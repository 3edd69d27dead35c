"""Statistics of every feature of a dataset, by the names of its elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..parsing import Output, episode_list, unset, words

EXAMPLE = "ulna data stats runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    keys: Annotated[str, unset("all", "NAMES")] = ""
    """Only these features, with commas."""
    episodes: Annotated[str, unset("all")] = ""
    """Only these, like 0-9,12."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    import numpy as np

    from ....datasets.episode import StoreError
    from ....datasets.opened import open_dataset
    from ....datasets.stats import compute_stats

    store = open_dataset(args.data, recover=False)
    keys = words(args.keys) or list(store.features)
    if unknown := [k for k in keys if k not in store.features]:
        raise StoreError(f"{args.data} has no feature {unknown[0]}; it has {', '.join(store.features)}")
    episodes = store.choose(episode_list(args.episodes) if args.episodes else None)
    stats = compute_stats(store, keys, [e.index for e in episodes])
    lengths = np.array([e.length for e in episodes])
    spread = {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())}
    lines = [
        f"{len(episodes)} episodes of {spread['min']} to {spread['max']} frames, median {spread['median']:g}"
    ]
    for key, s in stats.items():
        f = store.features[key]
        lines += ["", f"{key}  ({s.count} rows{' sampled' if f.dtype == 'uint8' else ''})"]
        lines.append(f"  {'':24}{'min':>12}{'q01':>12}{'mean':>12}{'q99':>12}{'max':>12}{'std':>12}")
        channels = ("red", "green", "blue") if f.dtype == "uint8" and len(s.mean) == 3 else ()
        for j in range(len(s.mean)):
            name = (f.names or channels or [str(i) for i in range(len(s.mean))])[j]
            unit = f" {f.units[j]}" if j < len(f.units) else ""
            row = (s.min[j], s.q01[j], s.mean[j], s.q99[j], s.max[j], s.std[j])
            lines.append(f"  {(name + unit)[:24]:24}" + "".join(f"{v:12.4f}" for v in row))
    answer = {"frames_per_episode": spread, "stats": {k: s.to_json() for k, s in stats.items()}}
    out.answer(answer, "\n".join(lines))
    return 0
