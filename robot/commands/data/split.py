"""Part a dataset by episodes into new ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..parsing import Output, episode_list, unset

if TYPE_CHECKING:
    from ....datasets.store import EpisodeStore

EXAMPLE = "ulna data split runs/x/data --out runs/x --parts train=0.9 val=0.1"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset; it stays as it is."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder that the new datasets are made in."""
    parts: Annotated[list[str], unset("none; by --by", "NAME=SHARE")] = field(default_factory=list)
    """name=share, which sum to 1, or name=episodes like val=3,7-9."""
    by: Annotated[Literal["", "success", "task"], unset("none; by --parts", "success|task")] = ""
    """One dataset for each outcome, or for each task, instead."""
    seed: int = 0
    """Another draw of the shares. An episode's part does not depend on the others."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.merge import split
    from ....datasets.store import EpisodeStore

    store = EpisodeStore.open(args.data)
    parts = _by(store, args.by) if args.by else _parts(store, args.parts, args.seed)
    stores = split(store, {Path(args.out) / name: episodes for name, episodes in parts.items()})
    answer = {str(path): len(s) for path, s in stores.items()}
    out.answer({"parts": answer}, "\n".join(f"{path}: {n} episodes" for path, n in answer.items()))
    return 0


def _by(store: EpisodeStore, what: str) -> dict[str, list[int]]:
    names = {True: "success", False: "failure", None: "unknown"}
    groups: dict[str, list[int]] = {}
    for e in store.episodes:
        label = names[e.attrs.get("success")] if what == "success" else _folder(e.task)
        groups.setdefault(label, []).append(e.index)
    return groups


def _folder(task: str) -> str:
    """A folder's name for a task: its words; where there are none, or they are too long or hold other signs,
    what fits of them and six digits of their hash."""
    plain = "".join(c if c.isalnum() or c in " -_" else "_" for c in task).strip()[:60]
    digits = hashlib.sha256(task.encode()).hexdigest()[:6]
    return plain if plain and plain == task else f"{plain or 'task'}-{digits}"


def _parts(store: EpisodeStore, texts: list[str], seed: int) -> dict[str, list[int]]:
    from ....datasets.split import split_by_episode

    pairs = [p.partition("=") for p in texts]
    if not pairs or any(not name or not sep or "/" in name for name, sep, _ in pairs):
        raise ValueError("--parts are name=share or name=episodes: --parts train=0.9 val=0.1")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"--parts names a part twice: {' '.join(texts)}")
    if all("." in value for _, _, value in pairs):
        try:
            shares = [float(value) for _, _, value in pairs]
        except ValueError:
            raise ValueError(f"--parts has a share that is no number: {' '.join(texts)}") from None
        groups = split_by_episode(store.episodes, shares, seed)
        return {name: part for (name, _, _), part in zip(pairs, groups, strict=True)}
    return {name: [e.index for e in store.choose(episode_list(value))] for name, _, value in pairs}
