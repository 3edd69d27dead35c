"""Windows for training: what the policy saw up to now and the actions around it, straight from the store.

Legend: B batch, T = n_obs_steps, H = horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .features import ACTION, is_image
from .store import Episode, EpisodeStore, StoreError


@dataclass(frozen=True)
class WindowSpec:
    """Observations t-n_obs_steps+1 … t of `keys`; actions t-n_past_actions … t-n_past_actions+horizon-1."""

    n_obs_steps: int
    horizon: int
    n_past_actions: int = 0
    keys: tuple[str, ...] = ()


class Windows:
    """One window per frame of the chosen episodes; beyond an episode's edge its first or last row repeats.

    Vectors are held in memory. Images are too, decoded, while all of them fit in `cache_bytes`; else each frame is read
    when asked for, so memory stays bounded whatever the size of the dataset.
    """

    def __init__(
        self,
        store: EpisodeStore,
        spec: WindowSpec,
        episodes: Sequence[int] | None = None,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.spec = spec
        chosen = list(range(len(store))) if episodes is None else list(episodes)
        if bad := [i for i in chosen if not 0 <= i < len(store)]:
            raise StoreError(f"{store.path} has episodes 0 to {len(store) - 1}, not {bad[0]}")
        self.episodes = [store.episodes[i] for i in chosen]
        lengths = np.array([e.length for e in self.episodes], np.int64)
        self._ends = np.cumsum(lengths)
        self._first = np.repeat(self._ends - lengths, lengths)  # per frame: its episode's first row
        self._last = np.repeat(self._ends - 1, lengths)
        self._vectors: dict[str, np.ndarray] = {}
        self._images: dict[str, _Frames] = {}
        if unknown := [k for k in (*spec.keys, ACTION) if k not in store.features]:
            raise StoreError(f"{store.path} has no feature {unknown[0]}; it has {', '.join(store.features)}")
        image_bytes = sum(
            e.length * int(np.prod(store.features[k].shape))
            for k in spec.keys
            if is_image(k)
            for e in self.episodes
        )
        for key in (*spec.keys, ACTION):
            for e in self.episodes:
                if (rows := e.rows(key)) != e.length:
                    raise StoreError(
                        f"episode {e.index}: {key} has {rows} rows and the episode {e.length} frames; streams of different "
                        "rates cannot be windowed yet"
                    )
            if is_image(key):
                feature = store.features[key]
                hold = image_bytes <= cache_bytes
                self._images[key] = _Frames(
                    self.episodes, key, feature.shape, feature.dtype, self._ends, hold
                )
            else:
                self._vectors[key] = self._read(key)

    def _read(self, key: str) -> np.ndarray:
        rows = [np.asarray(e.read(key)) for e in self.episodes]
        for e, values in zip(self.episodes, rows, strict=True):
            if (
                values.dtype.kind == "f"
                and not (ok := np.isfinite(values).reshape(len(values), -1).all(1)).all()
            ):
                raise StoreError(
                    f"episode {e.index}: {key} is not finite in frame {int(np.flatnonzero(~ok)[0])}"
                )
        joined = np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)
        return joined.astype(np.float32) if joined.dtype.kind == "f" else joined

    def __len__(self) -> int:
        return len(self._first)

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The windows of `indices` `(B,)`: each key `(B, T, *shape)`, `action` `(B, H, A)` float32, `mask` `(B, H)`
        bool (True where the action is one that was recorded), `index` `(B,)`."""
        return self._batch(indices, self.spec.keys)

    def vectors(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`batch` without images: nothing is read from disk."""
        return self._batch(indices, tuple(k for k in self.spec.keys if not is_image(k)))

    def _batch(self, indices: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        now = np.asarray(indices, np.int64)
        if not len(self):
            raise StoreError("there are no frames to take windows from")
        first, last = self._first[now, None], self._last[now, None]
        s = self.spec
        seen = np.maximum(now[:, None] + np.arange(1 - s.n_obs_steps, 1), first)
        wanted = now[:, None] + np.arange(-s.n_past_actions, s.horizon - s.n_past_actions)
        out = {k: self._vectors[k][seen] if k in self._vectors else self._images[k][seen] for k in keys}
        out[ACTION] = self._vectors[ACTION][np.clip(wanted, first, last)]
        out["mask"] = (wanted >= first) & (wanted <= last)
        out["index"] = now
        return out


class _Frames:
    """Random access to the frames of one camera over all episodes, by row."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        key: str,
        shape: tuple[int, ...],
        dtype: str,
        ends: np.ndarray,
        hold: bool,
    ) -> None:
        self.episodes, self.key, self.shape, self.dtype, self.ends = episodes, key, shape, dtype, ends
        self.held: np.ndarray | None = None
        if hold:
            self.held = self._read(np.arange(ends[-1] if len(ends) else 0))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.held is not None:
            return self.held[rows]
        unique, where = np.unique(rows, return_inverse=True)
        return self._read(unique)[where.reshape(rows.shape)]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Ascending `rows`."""
        frames = np.empty((len(rows), *self.shape), self.dtype)
        which, starts = np.unique(np.searchsorted(self.ends, rows, side="right"), return_index=True)
        for i, start, stop in zip(which.tolist(), starts, [*starts[1:], len(rows)], strict=True):
            episode = self.episodes[i]
            begin = self.ends[i] - episode.length
            episode.read_frames(self.key, rows[start:stop] - begin, frames[start:stop])
        return frames


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows `(batch_size,)` int64 of batch `step`: a pure function, so that a run can resume at any step.

    Epochs are whole shuffles of `range(n)` laid end to end; a batch may straddle two.
    """
    if n < 1:
        raise ValueError("there are no frames to draw batches from")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = positions // n, positions % n
    return np.concatenate([_shuffle(n, seed, int(e))[offsets[epochs == e]] for e in np.unique(epochs)])


@lru_cache(maxsize=4)
def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
