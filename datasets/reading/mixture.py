"""Several datasets as one: features are matched by key, and the elements of vectors by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..episode import StoreError
from ..features import (
    ACTION,
    STATE_THEM,
    Feature,
    FeatureMismatch,
    Features,
    bare,
    is_depth,
    is_frames,
    moves_an_arm,
    rename,
    units_of,
)
from ..store import EpisodeStore
from .extras import PLAIN, PREFIXES
from .spec import WindowSpec
from .windows import Windows

SILENT = "an unknown unit"


class Mixture:
    """Windows of several datasets laid end to end, in the features `features`. Same interface as `Windows`:
    `index` counts through all parts. Goals and prompts come from the dataset of their window. Raises
    StoreError where the parts were not made for the same kind of window."""

    def __init__(self, parts: Sequence[Windows], features: Features, renames: Mapping[str, str]) -> None:
        self.parts, self.features = list(parts), features
        free = {"keys": (), "goal_keys": (), "targets": (), "align": "seen", "tolerance_s": None}
        if len({replace(p.spec, **free) for p in parts}) > 1:
            raise StoreError(
                "the windows of a mixture must hold the same: give all parts one WindowSpec, in which only "
                "keys, goal_keys, targets, align and tolerance_s may differ"
            )
        self._ends = np.cumsum([len(p) for p in parts])
        self._tick_ends = np.cumsum([p.n_ticks for p in parts])
        self._order = [
            {
                k: _order(p.features[name_in(k, renames, p.features)], f)
                for k, f in features.items()
                if not is_frames(k)
            }
            for p in parts
        ]
        self._names = [{k: name_in(k, renames, p.features) for k in features} for p in parts]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        return self._batch(indices, rng, images=True)

    def vectors(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        return self._batch(indices, rng, images=False)

    def values(self, key: str) -> np.ndarray:
        """The vector `key` at every control tick of all parts, `(N, *shape)`."""
        parts = []
        for part, names, orders in zip(self.parts, self._names, self._order, strict=True):
            value = part.values(names[key])
            parts.append(value if orders[key] is None else value[..., orders[key]])
        return np.concatenate(parts)

    @property
    def n_ticks(self) -> int:
        return int(self._tick_ends[-1]) if len(self._tick_ends) else 0

    def observed_ticks(self, indices: np.ndarray) -> np.ndarray:
        """`(B, T)` or `(B, K, T)`, counted through all parts."""
        indices = np.asarray(indices, np.int64)
        which = np.searchsorted(self._ends, indices, side="right")
        ticks: dict[int, np.ndarray] = {}
        for p in np.unique(which).tolist():
            places = np.flatnonzero(which == p)
            rows = self.parts[p].observed_ticks(indices[places] - (int(self._ends[p - 1]) if p else 0))
            ticks |= zip(places.tolist(), rows + (int(self._tick_ends[p - 1]) if p else 0), strict=True)
        return np.stack([ticks[i] for i in range(len(indices))])

    def observations(self, ticks: np.ndarray) -> dict[str, np.ndarray]:
        """What was observed at `ticks` `(...)`, in our words: each key `(..., *shape)`."""
        which = np.searchsorted(self._tick_ends, ticks, side="right")
        out: dict[str, np.ndarray] = {}
        for p in np.unique(which).tolist():
            places = which == p
            start = int(self._tick_ends[p - 1]) if p else 0
            for key, value in self._in_our_words(
                p, self.parts[p].observations(ticks[places] - start)
            ).items():
                out.setdefault(key, np.empty((*ticks.shape, *value.shape[1:]), value.dtype))[places] = value
        return out

    def left_out_sentence(self) -> str:
        return "; ".join(s for p in self.parts if (s := p.left_out_sentence()))

    def _batch(
        self, indices: np.ndarray, rng: np.random.Generator | None, images: bool
    ) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        rng = np.random.default_rng(0) if rng is None else rng
        which = np.searchsorted(self._ends, indices, side="right")
        values: dict[str, list[np.ndarray]] = {}
        places: list[np.ndarray] = []
        for p in np.unique(which).tolist():
            places.append(np.flatnonzero(which == p))
            start = int(self._ends[p - 1]) if p else 0
            read = self.parts[p].batch if images else self.parts[p].vectors
            batch = read(indices[places[-1]] - start, rng)
            for key, value in self._in_our_words(p, batch).items():
                values.setdefault(key, []).append(value)
            values.setdefault("index", []).append(batch["index"] + start)
        out = {"index": indices}
        for key, of_parts in values.items():
            dtype = np.result_type(*(v.dtype for v in of_parts))  # the longest of the tasks
            out[key] = np.empty((len(indices), *of_parts[0].shape[1:]), dtype)
            for place, value in zip(places, of_parts, strict=True):
                out[key][place] = value
        return out

    def _in_our_words(self, p: int, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`batch` of part p under our keys, vectors in our order of elements."""
        out = {}
        for prefix in ("", *PREFIXES):
            for key, name in self._names[p].items():
                if (value := batch.get(prefix + name)) is not None:
                    order = self._order[p].get(key)
                    out[prefix + key] = value if order is None else value[..., order]
        return {**out, **{k: batch[k] for k in ("valid", "mask", *PLAIN) if k in batch}}


def common_features(
    stores: Sequence[EpisodeStore], renames: Mapping[str, str], keys: Sequence[str] | None
) -> Features:
    """The features that all `stores` have, as the first has them. Raises FeatureMismatch that
    lists every difference, and every key of `keys` that a store lacks. renames: a store's key → our key."""
    schemas = [rename(s.features, renames, str(s.path)) for s in stores]
    first = schemas[0]
    shared = [k for k in first if all(k in f for f in schemas)] if keys is None else [*keys, ACTION]
    differences = []
    for store, features in zip(stores, schemas, strict=True):
        for key in shared:
            if key not in features:
                differences.append(f"  {key}: {store.path} has none; it has {', '.join(features)}")
            elif is_depth(key):
                continue  # no policy sees it, and what is learned from it is in metres
            elif key in first and (problem := _difference(key, features[key], first[key])):
                differences.append(f"  {key}: {store.path} {problem} in {stores[0].path}")
        if store.control_hz != stores[0].control_hz:
            differences.append(
                f"  control_hz: {store.path} has {store.control_hz:g}, {stores[0].path} has "
                f"{stores[0].control_hz:g}"
            )
    if differences:
        silent = any(word in d for word in (" state its ", " states its ", SILENT) for d in differences)
        lines = [*differences, STATE_THEM] if silent else differences
        raise FeatureMismatch("the datasets cannot be mixed:\n" + "\n".join(lines))
    return {k: first[k] for k in shared}


def window_weights(
    parts: Sequence[Windows],
    per_episode: Sequence[np.ndarray | None],
    shares: Sequence[float] | None,
    per_window: Sequence[np.ndarray] | None = None,
) -> np.ndarray | None:
    """The weight `(len,)` of every window of `parts` end to end, None where all are equal. per_episode: the
    weights of the episodes of each part. shares: of each part in the whole; by their windows where None.
    per_window: weights of the windows of each part, in the place of their episodes'."""
    if shares is None and per_window is None and all(w is None for w in per_episode):
        return None
    if shares is not None and (len(shares) != len(parts) or not all(0 < s < np.inf for s in shares)):
        raise StoreError(f"a mix of {len(parts)} datasets needs as many positive shares, not {list(shares)}")
    result = []
    for i, part in enumerate(parts):
        weights = per_episode[i]
        w = np.ones(len(part)) if weights is None else weights[part.episode].astype(np.float64)
        w = w if per_window is None else per_window[i]
        if shares is not None and w.sum() <= 0:
            raise StoreError("a dataset of the mix has no window that can be drawn")
        result.append(w if shares is None else w / w.sum() * shares[i])
    return np.concatenate(result)


def spec_in(spec: WindowSpec, renames: Mapping[str, str], features: Features) -> WindowSpec:
    """`spec` under the keys that a store of these `features` has for ours."""
    keys, goal_keys, targets = (
        tuple(name_in(k, renames, features) for k in names)
        for names in (spec.keys, spec.goal_keys, spec.targets)
    )
    return replace(spec, keys=keys, goal_keys=goal_keys, targets=targets)


def name_in(key: str, renames: Mapping[str, str], features: Features) -> str:
    """The key that a store has for our feature `key`."""
    return next((old for old, new in renames.items() if new == key and old in features), key)


def _order(source: Feature, target: Feature) -> list[int] | None:
    names, order = bare(source.names), bare(target.names)
    return [names.index(n) for n in order] if names and order and names != order else None


def _difference(key: str, source: Feature, target: Feature) -> str:
    """How a feature of one dataset differs from the first's, in words; "" where it does not, but for the
    order of its elements. What moves an arm must be stated by all or by none, see `require_same`."""
    if source.dtype != target.dtype:
        return f"has {source.dtype}, it is {target.dtype}"
    strict, own_names, names = moves_an_arm(key), bare(source.names), bare(target.names)
    if strict and bool(own_names) != bool(names):
        return _silent("names", bool(own_names))
    if own_names and names:
        if missing := [n for n in names if n not in own_names]:
            return f"has no {missing[0]} among {', '.join(own_names)}, which it has"
        if extra := [n for n in own_names if n not in names]:
            return f"has {extra[0]}, which is not among {', '.join(names)}"
    elif source.shape != target.shape:
        return f"has the shape {source.shape}, it has {target.shape}"
    own, other = units_of(source), units_of(target)
    if bool(own) != bool(other):
        return _silent("units", bool(own)) if strict else ""
    if not (own_names and names):
        return "" if own == other else f"is in {', '.join(own)}, it is in {', '.join(other)}"
    units = dict(zip(own_names, own, strict=False))
    for name, unit in zip(names, other, strict=False):
        if (mine := units[name]) != unit and (strict or (mine and unit)):
            return f"has {name} in {mine or SILENT}, it is in {unit or SILENT}"
    return ""


def _silent(what: str, source_says: bool) -> str:
    return f"{'states' if source_says else 'does not state'} its {what}, unlike what is"
