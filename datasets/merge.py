"""Merging datasets and splitting one: whole episodes are copied, byte for byte, into new stores."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import inside
from .edit import write_attrs
from .episode import Episode, StoreError, store_of
from .features import (
    IMAGES,
    POSITION,
    STATE_THEM,
    FeatureMismatch,
    Features,
    bare,
    is_frames,
    is_image,
    rename,
)
from .features import differences as feature_differences
from .layout import EPISODES, require_new
from .making import making
from .store import EpisodeStore
from .units import plain, require_alike, unstated_keys


def merge(
    sources: Sequence[EpisodeStore],
    out: str | Path,
    same_twice: bool = False,
    renames: Mapping[str, str] | None = None,
) -> EpisodeStore:
    """A new store `out` with all episodes of `sources`, in order. They must agree in features, rate and
    storage, else FeatureMismatch lists every difference. An episode that comes twice raises StoreError,
    unless `same_twice`.

    renames: a feature of a store, or an element of its state or action, → what it is called in the result.
    LeRobot's `.pos` is dropped from names in any case."""
    renames = dict(renames or {})
    known = {
        n
        for s in sources
        for n in (*s.features, *(n for f in s.features.values() for n in (*f.names, *bare(f.names))))
    }
    if unknown := [n for n in renames if n not in known]:
        raise StoreError(
            f"no dataset has a feature or element {unknown[0]} to rename; there is "
            f"{', '.join(sources[0].features)}"
        )
    schemas = [_renamed(s, renames) for s in sources]
    for other, schema in zip(sources[1:], schemas[1:], strict=True):
        require_mergeable(sources[0], other, schemas[0], schema)
    episodes = [e for s in sources for e in s.episodes]
    originals: dict[str, Episode] = {}
    for e in episodes:
        twin = originals.setdefault(e.content, e)
        if twin is not e and not same_twice:
            raise StoreError(
                f"{e.path} is the same episode as {twin.path}: leave one out, or allow it with --same-twice"
            )
    about: dict[str, Any] = {"merged_from": [str(s.path) for s in sources]}
    for key in unstated_keys(schemas[0]):
        require_alike(key, {str(s.path): _rows(s, key) for s in sources})
        about["units"] = "not stated by any, and taken to be the same"
    if renames:
        about["renamed"] = renames
    return copy_episodes(
        sources[0], episodes, out, about, schemas[0], lambda e, folder: _rename_streams(e, folder, renames)
    )


def _rows(store: EpisodeStore, key: str) -> np.ndarray:
    parts = [e.read(key) for e in store.episodes if key in e.streams]
    return np.concatenate(parts) if parts else np.zeros((0, 1))


def require_mergeable(a: EpisodeStore, b: EpisodeStore, features_a: Features, features_b: Features) -> None:
    """FeatureMismatch that lists every difference of two stores whose features are called so."""
    names = str(a.path), str(b.path)
    lines = [
        *feature_differences(features_b, features_a, names[1], names[0]),
        *feature_differences(features_a, features_b, names[0], names[1]),
    ]
    differences = list({line.split(":")[0]: line for line in reversed(lines)}.values())[::-1]
    differences.sort(key=lambda line: line == STATE_THEM)
    if a.control_hz != b.control_hz:
        differences.append(f"  control_hz: {names[1]} has {b.control_hz:g}; {names[0]} has {a.control_hz:g}")
    keys_a, keys_b = (dict(zip(s.features, f, strict=True)) for s, f in ((a, features_a), (b, features_b)))
    if {keys_a[k]: v for k, v in a.storage.items()} != {keys_b[k]: v for k, v in b.storage.items()}:
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
    template: EpisodeStore,
    episodes: Sequence[Episode],
    out: str | Path,
    provenance: Mapping[str, Any],
    features: Features | None = None,
    change: Callable[[Episode, Path], Mapping[str, Any]] = lambda episode, folder: {},
) -> EpisodeStore:
    """A new store `out` like `template`, built beside it and put in its place by one rename.

    features: of the new store, the template's by default, in its order. change(episode, folder): changes the
    copy in `folder` to fit them; the attributes that are then other ones."""
    out, features = Path(out), template.features if features is None else features
    renames = dict(zip(template.features, features, strict=True))
    with making(out) as work:
        EpisodeStore.create(
            work,
            features,
            template.control_hz,
            template.robot,
            {**template.provenance, **provenance},
            {renames[k]: settings for k, settings in template.storage.items()},
        )
        for i, e in enumerate(episodes):
            _require_whole(e)
            target = work / EPISODES / f"{i:06d}-{e.path.name.split('-', 1)[-1]}"
            if target.exists():
                target = target.with_name(f"{i:06d}-{secrets.token_hex(6)}")
            shutil.copytree(e.path, target)
            attrs = {"source_episode": f"{e.path.parent.parent.name}/{e.path.name}"}
            write_attrs(target, {**attrs, **change(e, target)})
    return EpisodeStore.open(out)


def _renamed(store: EpisodeStore, renames: Mapping[str, str]) -> Features:
    features = rename(store.features, renames, str(store.path))
    result = {}
    for key, f in plain(features).features(features).items():
        names = [_called(old, n, renames) for n, old in zip(f.names, features[key].names, strict=True)]
        if twice := [n for n in names if names.count(n) > 1]:
            raise FeatureMismatch(f"{store.path}: two elements of {key} would be called {twice[0]}")
        result[key] = replace(f, names=tuple(names))
    return result


def _called(name: str, short: str, renames: Mapping[str, str]) -> str:
    """What the element `name` is called, which is `short` without its `.pos`."""
    return renames.get(short, renames.get(name, short))


def _rename_streams(e: Episode, folder: Path, renames: Mapping[str, str]) -> dict[str, Any]:
    """Rename the streams of the copy in `folder`; the attributes that name streams, cameras or joints."""
    moves = {old: new for old, new in renames.items() if old in e.streams}
    for old in moves:
        (folder / old).rename(folder / f".{old}")  # first aside: two may swap their names
    for old, new in moves.items():
        (folder / f".{old}").rename(folder / new)
    cameras = {
        old.removeprefix(IMAGES): new.removeprefix(IMAGES) for old, new in renames.items() if is_image(old)
    }
    joints = {n: _called(n, n.removesuffix(POSITION), renames) for n in e.attrs.get("limits") or ()}
    tables = {"streams": renames, "dropped": renames, "cameras": cameras, "limits": joints}
    return {
        name: {table.get(k, k): v for k, v in e.attrs[name].items()}
        for name, table in tables.items()
        if isinstance(e.attrs.get(name), dict)
    }


def _require_whole(e: Episode) -> None:
    """Raise StoreError unless every array can be read, every checksum is right, and nothing lies in the
    episode's folder but folders and files of its own, which are copied as they are."""
    e.require_readable()
    try:
        inside.require_own(store_of(e.path), e.path)
    except OSError as error:
        raise StoreError(
            f"episode {e.path.name} cannot be copied: {error.strerror} ({error.filename})"
        ) from None
    for key in e.streams:
        e.times_ns(key)
        e.flags(key)
        if is_frames(key):
            e.verify_frames(key)
        else:
            e.read(key)
