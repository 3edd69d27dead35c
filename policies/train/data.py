"""What a policy is trained on: one dataset or several, which episodes, how they count, what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.episode import StoreError
from ...datasets.features import ACTION, Features, rename, state_keys
from ...datasets.reading.align import Alignment
from ...datasets.reading.cache import AUTO_BYTES, Cache
from ...datasets.reading.loader import WindowSource
from ...datasets.reading.mixture import Mixture, common_features, name_in, window_weights
from ...datasets.reading.weights import ALPHA, Weighting, episode_weights, weighted_indices
from ...datasets.reading.windows import Windows, WindowSpec, batch_indices
from ...datasets.split import split_by_episode
from ...datasets.stats import Stats, vector_stats
from ...datasets.store import EpisodeStore


@dataclass(frozen=True)
class DataOptions:
    """episodes: numbers to use, of the only dataset. mix: shares of several datasets, by their frames when
    empty. rename: key in a dataset → key to call it. weights, alpha: see `datasets.reading.weights`.
    validate: share of episodes held out. interrupted: use episodes that were cut off, too. align,
    tolerance_s: see `WindowSpec`. workers, cache, cache_bytes, cache_dir: how frames are read."""

    episodes: tuple[int, ...] | None = None
    mix: tuple[float, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    weights: Weighting = "uniform"
    alpha: float = ALPHA
    validate: float = 0.0
    interrupted: bool = False
    align: Alignment = "seen"
    tolerance_s: float | None = None
    workers: int = 0
    cache: Cache = "auto"
    cache_bytes: int = AUTO_BYTES
    cache_dir: str | None = None


@dataclass(frozen=True)
class TrainingData:
    """windows: to train on, of the parts end to end. held_out: to validate on. identity: what a resumed run
    must share. said: sentences that whoever trains should read."""

    features: Features
    windows: WindowSource
    held_out: WindowSource | None
    cumulative: np.ndarray | None  # of the weights of the windows
    stores: list[EpisodeStore]
    episodes: list[list[int]]
    identity: dict[str, Any]
    said: list[str]

    def indices(self, batch_size: int, seed: int, step: int) -> np.ndarray:
        """The windows `(batch_size,)` of batch `step`."""
        if self.cumulative is None:
            return batch_indices(len(self.windows), batch_size, seed, step)
        return weighted_indices(self.cumulative, batch_size, seed, step)

    def stats(self) -> dict[str, Stats]:
        """Of the vectors, over all episodes that are trained on, however they count."""
        keys = [k for k in self.features if k in state_keys(self.features) or k == ACTION]
        values = {k: self.windows.values(k) for k in keys}
        return {k: vector_stats(v.reshape(len(v), -1).astype(np.float64)) for k, v in values.items()}


def open_data(
    data: Sequence[str | Path],
    keys: Sequence[str] | None,
    spec_of: Callable[[Features], WindowSpec],
    options: DataOptions,
    select: Callable[[Features, Sequence[str] | None], Features],
) -> TrainingData:
    """StoreError or FeatureMismatch in one sentence (or a list of differences) where the datasets do not
    fit."""
    stores = [EpisodeStore.open(d) for d in data]
    if options.episodes is not None and len(stores) > 1:
        raise StoreError(
            "episodes can be chosen of one dataset, not of several: part them with `ulna data split`"
        )
    features = select(features_of(stores, options.rename, keys), keys)
    everything = {k for s in stores for k in rename(s.features, options.rename, str(s.path))}
    spec = spec_of(features)
    said: list[str] = []
    if (missing := sorted(everything - set(features))) and len(stores) > 1 and keys is None:
        said.append(f"not all datasets have {', '.join(missing)}: left out (--observe names what to use)")
    train: list[Windows] = []
    held: list[Windows] = []
    chosen: list[list[int]] = []
    for store in stores:
        use = (
            _whole(store, options, said)
            if options.episodes is None
            else [e.index for e in store.choose(options.episodes)]
        )
        keep, out = use, []
        if options.validate:
            parts = split_by_episode(
                [store.episodes[i] for i in use], [1 - options.validate, options.validate], seed=0
            )
            keep, out = ([use[j] for j in part] for part in parts)
        named = tuple(name_in(k, options.rename, store.features) for k in spec.keys)
        mine = replace(spec, keys=named, align=options.align, tolerance_s=options.tolerance_s)
        room = options.cache_bytes // len(stores)
        train.append(Windows(store, mine, keep, options.cache, room, options.cache_dir))
        if out:
            held.append(Windows(store, mine, out, "none"))
        chosen.append(keep)
    windows, held_out = (_joined(p, features, options.rename) if p else None for p in (train, held))
    assert windows is not None
    if sentence := windows.left_out_sentence():
        said.append(sentence)
    if not any(chosen):
        raise StoreError(
            "there is no episode to train on: those that were cut off are used with --interrupted"
        )
    together = [s.episodes[i] for s, numbers in zip(stores, chosen, strict=True) for i in numbers]
    weighed = episode_weights(together, options.weights, options.alpha)  # on one scale for all datasets
    ends = np.cumsum([len(numbers) for numbers in chosen])[:-1]
    weights = [None] * len(stores) if weighed is None else np.split(weighed, ends)
    content = hashlib.sha256()
    for store, numbers in zip(stores, chosen, strict=True):
        for i in numbers:
            content.update(store.episodes[i].content.encode())
    how = {
        k: v for k, v in asdict(options).items() if k not in ("workers", "cache", "cache_bytes", "cache_dir")
    }
    how = {k: list(v) if isinstance(v, tuple) else v for k, v in how.items()}
    of_windows = window_weights(train, weights, options.mix or None)
    identity = {
        "data": content.hexdigest(),
        "frames": len(windows),
        "options": how,
        "observation": list(spec.keys),
        "weighting": _digest(of_windows),  # labels are no part of an episode's content, and may have changed
    }
    return TrainingData(
        features,
        windows,
        held_out,
        None if of_windows is None else np.cumsum(of_windows),
        stores,
        chosen,
        identity,
        said,
    )


def features_of(
    stores: Sequence[EpisodeStore], renames: Mapping[str, str], keys: Sequence[str] | None = None
) -> Features:
    """What several datasets have in common; of one all it has."""
    if unknown := [k for k in renames if not any(k in s.features for s in stores)]:
        raise StoreError(
            f"no dataset has a feature {unknown[0]} to rename; there is {', '.join(stores[0].features)}"
        )
    if len(stores) == 1 and not renames:
        return dict(stores[0].features)
    return common_features(stores, renames, keys)


def _digest(weights: np.ndarray | None) -> str:
    """Of weights in single precision: what another machine makes of the same labels differs in the last
    bits."""
    return "" if weights is None else hashlib.sha256(weights.astype(np.float32).tobytes()).hexdigest()


def _joined(parts: list[Windows], features: Features, renames: Mapping[str, str]) -> WindowSource:
    return parts[0] if len(parts) == 1 and not renames else Mixture(parts, features, renames)


def _whole(store: EpisodeStore, options: DataOptions, said: list[str]) -> list[int]:
    cut = [e.index for e in store.episodes if e.interrupted]
    if cut and not options.interrupted:
        said.append(
            f"{len(cut)} of {len(store)} episodes of {store.path} were cut off and are left out (--interrupted uses them)"
        )
        return [e.index for e in store.episodes if not e.interrupted]
    return list(range(len(store)))
