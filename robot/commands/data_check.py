"""Find what is wrong with a dataset: gaps, frozen or black frames, misaligned cameras, static or odd episodes, and more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import tyro

from .parsing import Output, episode_list, progress

EXAMPLE = "ulna data check runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: str = ""
    """Only these, like 0-9,12."""
    severity: Literal["info", "warning", "severe"] = "info"
    """Show what is at least this."""
    fast: bool = False
    """Look at every tenth frame only; finds no repeated frames and no lag."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    """Exit code 1 when anything is severe."""
    from ...datasets.check import check
    from ...datasets.findings import SEVERITIES, by_episode
    from ...datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    with progress("checking") as bar:
        shown = bar.add_task("", total=None, note="")
        found = check(
            store,
            episode_list(args.episodes) if args.episodes else None,
            args.fast,
            lambda done, total: bar.update(shown, completed=done, total=total),
        )
    counts = {s: sum(f.severity == s for f in found) for s in SEVERITIES}
    listed = [f for f in found if SEVERITIES.index(f.severity) >= SEVERITIES.index(args.severity)]
    lines = []
    for i, mine in by_episode(listed):
        lines.append(f"episode {i}  {mine[0].name}" if i >= 0 else "the dataset")
        for f in mine:
            at = (
                ""
                if f.start_s is None
                else f"{f.start_s:8.2f} s"
                if f.start_s == f.end_s
                else f"{f.start_s:8.2f} to {f.end_s:.2f} s"
            )
            lines.append(
                f"  {f.severity:8} {f.check:12} {at:22} {f.stream + ': ' if f.stream else ''}{f.message}"
            )
    episodes = len({f.episode for f in found if f.severity != "info"})
    said = ", ".join(f"{counts[s]} {s}" for s in reversed(SEVERITIES))
    lines.append(
        f"{args.data}: {said}, in {episodes} of {len(store)} episodes"
        if found
        else f"{args.data}: nothing found"
    )
    out.answer({"findings": [asdict(f) for f in found], "counts": counts}, "\n".join(lines))
    return 1 if counts["severe"] else 0
