"""Merging datasets and splitting one: whole episodes are copied, byte for byte, into new stores."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .edit import write_attrs
from .episode import Episode, StoreError
from .features import FeatureMismatch, is_frames
from .features import differences as feature_differences
from .layout import EPISODES, require_new
from .making import making
from .store import EpisodeStore


def merge(sources: Sequence[EpisodeStore], out: str | Path, same_twice: bool = False) -> EpisodeStore:
    """A new store `out` with all episodes of `sources`, in order. They must agree in features, rate and
    storage, else FeatureMismatch lists every difference. An episode that comes twice raises StoreError,
    unless `same_twice`."""
    first = sources[0]
    for other in sources[1:]:
        require_mergeable(first, other)
    episodes = [e for s in sources for e in s.episodes]
    originals: dict[str, Episode] = {}
    for e in episodes:
        twin = originals.setdefault(e.content, e)
        if twin is not e and not same_twice:
            raise StoreError(
                f"{e.path} is the same episode as {twin.path}: leave one out, or allow it with --same-twice"
            )
    return copy_episodes(first, episodes, out, {"merged_from": [str(s.path) for s in sources]})


def require_mergeable(a: EpisodeStore, b: EpisodeStore) -> None:
    names = str(a.path), str(b.path)
    lines = [
        *feature_differences(b.features, a.features, names[1], names[0]),
        *feature_differences(a.features, b.features, names[0], names[1]),
    ]
    differences = list({line.split(":")[0]: line for line in reversed(lines)}.values())[::-1]
    if a.control_hz != b.control_hz:
        differences.append(f"  control_hz: {names[1]} has {b.control_hz:g}; {names[0]} has {a.control_hz:g}")
    if a.storage != b.storage:
        differences.append(
            f"  storage: {names[1]} has {b.storage or 'lossless'}; {names[0]} has {a.storage or 'lossless'}"
        )
    if differences:
        raise FeatureMismatch(f"{names[0]} and {names[1]} cannot be merged:\n" + "\n".join(differences))


def split(source: EpisodeStore, parts: Mapping[str | Path, Sequence[int]]) -> dict[str | Path, EpisodeStore]:
    """A new store for each folder of `parts`, with those episodes. All are made, or none; a kill may
    leave the first ones, each of them whole."""
    for path in parts:
        require_new(Path(path))
    every_number = [i for numbers in parts.values() for i in numbers]
    if twice := [i for i in every_number if every_number.count(i) > 1]:
        raise StoreError(f"episode {twice[0]} would be in two parts: name each episode once")
    stores: dict[str | Path, EpisodeStore] = {}
    try:
        for path, numbers in parts.items():
            stores[path] = copy_episodes(
                source, source.choose(numbers), path, {"split_from": str(source.path)}
            )
    except BaseException:
        for store in stores.values():
            shutil.rmtree(store.path, ignore_errors=True)
        raise
    return stores


def copy_episodes(
    template: EpisodeStore, episodes: Sequence[Episode], out: str | Path, provenance: Mapping[str, Any]
) -> EpisodeStore:
    """A new store `out` like `like`, built beside it and put in its place by one rename."""
    out = Path(out)
    with making(out) as work:
        EpisodeStore.create(
            work,
            template.features,
            template.control_hz,
            template.robot,
            {**template.provenance, **provenance},
            template.storage,
        )
        for i, e in enumerate(episodes):
            _require_whole(e)
            target = work / EPISODES / f"{i:06d}-{e.path.name.split('-', 1)[-1]}"
            if target.exists():
                target = target.with_name(f"{i:06d}-{secrets.token_hex(6)}")
            shutil.copytree(e.path, target)
            write_attrs(target, {"source_episode": f"{e.path.parent.parent.name}/{e.path.name}"})
    return EpisodeStore.open(out)


def _require_whole(e: Episode) -> None:
    """Raise StoreError unless every array can be read and every checksum is right."""
    e.require_readable()
    for key in e.streams:
        e.times_ns(key)
        e.flags(key)
        if is_frames(key):
            e.verify_frames(key)
        else:
            e.read(key)
