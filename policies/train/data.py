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
    episodes: tuple[int, ...] | None = None
    """Numbers to use, where there is only one dataset; None: all."""
    mix: tuple[float, ...] = ()
    """Share of each dataset in a batch; empty: by their ticks."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Key in a dataset → key to call it."""
    weights: Weighting = "uniform"
    """How episodes count, see `datasets.reading.weights`."""
    alpha: float = ALPHA
    """Temperature of the weighting by return."""
    validate: float = 0.0
    """Share of the episodes to hold out."""
    interrupted: bool = False
    """Use episodes that were cut off, too."""
    align: Alignment = "seen"
    """Which row of a stream belongs to a control tick, see `WindowSpec`."""
    tolerance_s: float | None = None
    """How old that row may be, see `WindowSpec`."""
    workers: int = 0
    """Processes that read and decode; 0: a thread."""
    cache: Cache = "auto"
    """Where decoded frames are kept, see `datasets.reading.cache`."""
    cache_bytes: int = AUTO_BYTES
    """How much memory `auto` may take."""
    cache_dir: str | None = None
    """Folder of the cache on disk."""


@dataclass(frozen=True)
class TrainingData:
    features: Features
    windows: WindowSource
    """To train on, those of the datasets end to end."""
    validation_windows: WindowSource | None
    """Of the episodes that are held out; None where none are."""
    cumulative: np.ndarray | None
    """Cumulative weights of the windows; None where all count alike."""
    stores: list[EpisodeStore]
    episodes: list[list[int]]
    """Numbers of the episodes to train on, for each store."""
    identity: dict[str, Any]
    """What a resumed run must share."""
    notes: list[str]
    """Sentences that whoever trains should read."""

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
    """Open the datasets and choose the windows to train on.

    keys: the observations to use, all that the datasets share by default. spec_of: the window that the policy
    needs of those features. select: of the shared features and `keys`, those that a policy uses. StoreError
    or FeatureMismatch in one sentence (or a list of differences) where the datasets do not fit."""
    stores = [EpisodeStore.open(d) for d in data]
    if options.episodes is not None and len(stores) > 1:
        raise StoreError(
            "episodes can be chosen of one dataset, not of several: part them with `ulna data split`"
        )
    features = select(features_of(stores, options.rename, keys), keys)
    everything = {k for s in stores for k in rename(s.features, options.rename, str(s.path))}
    spec = spec_of(features)
    notes: list[str] = []
    if (missing := sorted(everything - set(features))) and len(stores) > 1 and keys is None:
        notes.append(f"not all datasets have {', '.join(missing)}: left out (--observe names what to use)")
    train: list[Windows] = []
    validation: list[Windows] = []
    episodes: list[list[int]] = []
    for store in stores:
        training, held_out = _episodes_to_use(store, options, notes), []
        if options.validate:
            usable = [store.episodes[i] for i in training]
            parts = split_by_episode(usable, [1 - options.validate, options.validate], seed=0)
            training, held_out = ([usable[j].index for j in part] for part in parts)
        store_keys = tuple(name_in(k, options.rename, store.features) for k in spec.keys)
        store_spec = replace(spec, keys=store_keys, align=options.align, tolerance_s=options.tolerance_s)
        room = options.cache_bytes // len(stores)
        train.append(Windows(store, store_spec, training, options.cache, room, options.cache_dir))
        if held_out:
            validation.append(Windows(store, store_spec, held_out, "none"))
        episodes.append(training)
    windows, validation_windows = (
        _window_source(p, features, options.rename) if p else None for p in (train, validation)
    )
    assert windows is not None
    if sentence := windows.left_out_sentence():
        notes.append(sentence)
    if not any(episodes):
        raise StoreError(
            "there is no episode to train on: those that were cut off are used with --interrupted"
        )
    all_episodes = [s.episodes[i] for s, numbers in zip(stores, episodes, strict=True) for i in numbers]
    # on one scale for all datasets
    joint_weights = episode_weights(all_episodes, options.weights, options.alpha)
    ends = np.cumsum([len(numbers) for numbers in episodes])[:-1]
    weights = [None] * len(stores) if joint_weights is None else np.split(joint_weights, ends)
    content = hashlib.sha256()
    for store, numbers in zip(stores, episodes, strict=True):
        for i in numbers:
            content.update(store.episodes[i].content.encode())
    choices = {
        k: v for k, v in asdict(options).items() if k not in ("workers", "cache", "cache_bytes", "cache_dir")
    }
    choices = {k: list(v) if isinstance(v, tuple) else v for k, v in choices.items()}
    weights_of_windows = window_weights(train, weights, options.mix or None)
    identity = {
        "data": content.hexdigest(),
        "frames": len(windows),
        "options": choices,
        "observation": list(spec.keys),
        # labels are no part of an episode's content, and may have changed
        "weighting": _digest(weights_of_windows),
    }
    return TrainingData(
        features,
        windows,
        validation_windows,
        None if weights_of_windows is None else np.cumsum(weights_of_windows),
        stores,
        episodes,
        identity,
        notes,
    )


def features_of(
    stores: Sequence[EpisodeStore], renames: Mapping[str, str], keys: Sequence[str] | None = None
) -> Features:
    """The features that several datasets have in common, renamed; of a single one all of them."""
    if unknown := [k for k in renames if not any(k in s.features for s in stores)]:
        raise StoreError(
            f"no dataset has a feature {unknown[0]} to rename; there is {', '.join(stores[0].features)}"
        )
    if len(stores) == 1 and not renames:
        return dict(stores[0].features)
    return common_features(stores, renames, keys)


def _digest(weights: np.ndarray | None) -> str:
    """Of the weights in single precision: in double, another machine's differ in the last bits. Empty for
    None."""
    return "" if weights is None else hashlib.sha256(weights.astype(np.float32).tobytes()).hexdigest()


def _window_source(parts: list[Windows], features: Features, renames: Mapping[str, str]) -> WindowSource:
    return parts[0] if len(parts) == 1 and not renames else Mixture(parts, features, renames)


def _episodes_to_use(store: EpisodeStore, options: DataOptions, notes: list[str]) -> list[int]:
    """Those that the options name, else all that were not cut off; a note says how many are left out."""
    if options.episodes is not None:
        return [e.index for e in store.choose(options.episodes)]
    cut = [e.index for e in store.episodes if e.interrupted]
    if cut and not options.interrupted:
        notes.append(
            f"{len(cut)} of {len(store)} episodes of {store.path} were cut off and are left out "
            "(--interrupted uses them)"
        )
        return [e.index for e in store.episodes if not e.interrupted]
    return list(range(len(store)))
