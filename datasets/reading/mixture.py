"""Several datasets as one: features are matched by key, and the elements of vectors by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..episode import StoreError
from ..features import ACTION, Feature, FeatureMismatch, Features, is_frames, rename
from ..store import EpisodeStore
from .windows import Windows


class Mixture:
    """Windows of several datasets laid end to end, in the features `features`. Same interface as `Windows`.

    shares: how much of every batch comes from each part, by its number of windows when None (see
    `window_weights`)."""

    def __init__(self, parts: Sequence[Windows], features: Features, renames: Mapping[str, str]) -> None:
        self.parts, self.features = list(parts), features
        self._ends = np.cumsum([len(p) for p in parts])
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

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._batch(indices, "batch")

    def vectors(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._batch(indices, "vectors")

    def values(self, key: str) -> np.ndarray:
        """The vector `key` at every control tick of all parts, `(N, *shape)`."""
        found = []
        for part, names, orders in zip(self.parts, self._names, self._order, strict=True):
            value = part.values(names[key])
            found.append(value if orders[key] is None else value[..., orders[key]])
        return np.concatenate(found)

    def left_out_says(self) -> str:
        return "; ".join(s for p in self.parts if (s := p.left_out_says()))

    def _batch(self, indices: np.ndarray, method: str) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        which = np.searchsorted(self._ends, indices, side="right")
        out: dict[str, np.ndarray] = {}
        for p in np.unique(which).tolist():
            mine = np.flatnonzero(which == p)
            start = int(self._ends[p - 1]) if p else 0
            got = getattr(self.parts[p], method)(indices[mine] - start)
            renamed = {k: got[theirs] for k, theirs in self._names[p].items() if theirs in got}
            for key, value in {**renamed, "mask": got["mask"]}.items():
                order = self._order[p].get(key)
                value = value if order is None else value[..., order]
                if key not in out:
                    out[key] = np.empty((len(indices), *value.shape[1:]), value.dtype)
                out[key][mine] = value
        out["index"] = indices
        return out


def common_features(
    stores: Sequence[EpisodeStore], renames: Mapping[str, str], keys: Sequence[str] | None
) -> Features:
    """The features that all `stores` have, as the first has them. FeatureMismatch shows what differs; a key
    of `keys` that one lacks is refused. renames: key of a store → key to call it."""
    named = [rename(s.features, renames, str(s.path)) for s in stores]
    first = named[0]
    wanted = [k for k in first if all(k in f for f in named)] if keys is None else [*keys, ACTION]
    wrong = []
    for store, features in zip(stores, named, strict=True):
        for key in wanted:
            if key not in features:
                wrong.append(f"  {key}: {store.path} has none; it has {', '.join(features)}")
            elif key in first and (problem := _differs(features[key], first[key])):
                wrong.append(f"  {key}: {store.path} {problem} in {stores[0].path}")
        if store.control_hz != stores[0].control_hz:
            wrong.append(
                f"  control_hz: {store.path} has {store.control_hz:g}, {stores[0].path} has {stores[0].control_hz:g}"
            )
    if wrong:
        raise FeatureMismatch("the datasets cannot be mixed:\n" + "\n".join(wrong))
    return {k: first[k] for k in wanted}


def window_weights(
    parts: Sequence[Windows], per_episode: Sequence[np.ndarray | None], shares: Sequence[float] | None
) -> np.ndarray | None:
    """The weight `(len,)` of every window of `parts` end to end, None where all are equal. per_episode: of
    each part the weights of its episodes. shares: of each part in the whole; by their windows where None."""
    if shares is None and all(w is None for w in per_episode):
        return None
    if shares is not None and (len(shares) != len(parts) or not all(0 < s < np.inf for s in shares)):
        raise StoreError(f"a mix of {len(parts)} datasets needs as many positive shares, not {list(shares)}")
    found = []
    for i, part in enumerate(parts):
        weights = per_episode[i]
        w = np.ones(len(part)) if weights is None else weights[part.episode].astype(np.float64)
        if shares is not None and w.sum() <= 0:
            raise StoreError("a dataset of the mix has no window that can be drawn")
        found.append(w if shares is None else w / w.sum() * shares[i])
    return np.concatenate(found)


def name_in(key: str, renames: Mapping[str, str], features: Features) -> str:
    """What a store calls the feature `key`."""
    return next((old for old, new in renames.items() if new == key and old in features), key)


def _order(theirs: Feature, ours: Feature) -> list[int] | None:
    if theirs.names == ours.names or not ours.names or not theirs.names:
        return None
    return [theirs.names.index(n) for n in ours.names]


def _differs(theirs: Feature, ours: Feature) -> str:
    if theirs.dtype != ours.dtype:
        return f"has {theirs.dtype}, it is {ours.dtype}"
    if not (theirs.names and ours.names):
        return "" if theirs.shape == ours.shape else f"has the shape {theirs.shape}, it has {ours.shape}"
    if missing := [n for n in ours.names if n not in theirs.names]:
        return f"has no {missing[0]} among {', '.join(theirs.names)}, which it has"
    if extra := [n for n in theirs.names if n not in ours.names]:
        return f"has {extra[0]}, which is not among {', '.join(ours.names)}"
    units = dict(zip(theirs.names, theirs.units, strict=False))
    for name, unit in zip(ours.names, ours.units, strict=False):
        if units.get(name, unit) != unit:
            return f"has {name} in {units[name]}, it is in {unit}"
    return ""
