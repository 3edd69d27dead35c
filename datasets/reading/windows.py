"""Windows for training: the observations up to a control tick and the actions around it, straight from the
store.

Legend: B batch, N ticks, T = n_obs_steps, H = horizon, A action dimensions.

The control ticks of an episode, the rows of `action`, are its time line. A stream with a row per tick is used
row by row; any other (a camera of its own rate) is aligned by time, see align.py. What a window can hold is
in spec.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..episode import Episode, StoreError, require_finite
from ..features import ACTION, REQUESTED, REWARD, Feature, depth_scale_m, is_depth, is_frames
from ..flags import INVALID
from ..store import EpisodeStore
from .align import align, interpolate, period_ns, row_per_tick
from .cache import AUTO_BYTES, Cache, Frames
from .extras import TARGET, Extras, Rows, window_ticks
from .spec import WindowSpec


class Windows:
    """One window per control tick of `episodes`; beyond an episode's edge its first or last row repeats.

    Ticks for which a stream has no row within the tolerance are left out, and counted in `left_out` by
    (episode, key). Actions that their device marked as invalid are masked. Vectors are kept in memory; images
    as `cache` says (see cache.py), so that memory stays bounded for datasets of any size. episode `(len,)`:
    the place in `episodes` of each window's episode; tick `(len,)`: the window's tick within it;
    flags `(len,)`: of the action of that tick."""

    def __init__(
        self,
        store: EpisodeStore,
        spec: WindowSpec,
        episodes: Sequence[int] | None = None,
        cache: Cache = "auto",
        cache_bytes: int = AUTO_BYTES,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.spec, self.features, self.control_hz = spec, store.features, store.control_hz
        streams = tuple(dict.fromkeys((*spec.keys, *spec.goal_keys, *spec.targets)))
        if unknown := [k for k in (*streams, ACTION) if k not in store.features]:
            raise StoreError(f"{store.path} has no feature {unknown[0]}; it has {', '.join(store.features)}")
        self._metres = {k: _scale_of(k, store.features[k]) for k in spec.targets if is_depth(k)}
        self.episodes = store.choose(episodes)
        for e in self.episodes:
            e.require_fit(store.features, (*streams, ACTION))
        lengths = np.array([e.length for e in self.episodes], np.int64)
        ends = np.cumsum(lengths)
        self._first = np.repeat(ends - lengths, lengths)  # per tick: its episode's first
        self._last = np.repeat(ends - 1, lengths)
        self.left_out: dict[tuple[int, str], int] = {}
        self._rows: dict[str, np.ndarray] = {}  # per tick the row of each stream, of all episodes end to end
        self._vectors: dict[str, np.ndarray] = {}
        usable = np.ones(len(self._first), bool)
        for key in streams:
            usable &= self._align(key)
        self._usable = usable
        self._vectors[ACTION] = self._actions()
        flags = [e.flags(ACTION) for e in self.episodes]
        marks = np.concatenate(flags) if flags else np.zeros(0, np.uint8)
        self._valid = marks & INVALID == 0
        self._current = np.flatnonzero(usable)
        self.flags = marks[self._current]
        self.episode = np.repeat(np.arange(len(lengths)), lengths)[self._current]
        self.tick = self._current - self._first[self._current]
        self._extras = Extras(spec, self.episodes, REWARD in store.features)
        images = [k for k in streams if is_frames(k)]
        room = cache_bytes
        self._images: dict[str, Frames] = {}
        for key in images:
            frames = Frames(self.episodes, key, store.features[key].shape, store.features[key].dtype)
            if cache == "disk":
                frames.keep_on_disk(cache_dir)
            elif cache == "ram" or (cache == "auto" and frames.nbytes <= room):
                frames.keep_in_memory()
                room -= frames.nbytes
            self._images[key] = frames

    @property
    def image_bytes(self) -> dict[str, int]:
        """How large the decoded images of each camera are, all episodes together."""
        return {key: frames.nbytes for key, frames in self._images.items()}

    @property
    def decoded_anew(self) -> tuple[str, ...]:
        """The cameras whose images no cache keeps."""
        return tuple(key for key, frames in self._images.items() if not frames.kept and frames.nbytes)

    def _actions(self) -> np.ndarray:
        key = REQUESTED if self.spec.actions == "requested" else ACTION
        if without := [e for e in self.episodes if key not in e.streams]:
            raise StoreError(
                f"episode {without[0].index} does not tell what was requested, only what was sent: leave out "
                "--actions requested"
            )
        for e in self.episodes:
            e.require_fit({**self.features, REQUESTED: self.features[ACTION]}, (key,))
            if e.rows(key) != e.length:
                raise StoreError(
                    f"episode {e.index} has {e.length} actions and tells what was requested for "
                    f"{e.rows(key)}: run `ulna data check`"
                )
        return _vectors(key, self.episodes, [e.read(key) for e in self.episodes])

    def __len__(self) -> int:
        return len(self._current)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The windows of `indices` `(B,)`: each key `(B, T, *shape)`, `action` `(B, H, A)` float32, `mask`
        `(B, H)` bool (True where the action is one that was recorded), `valid` `(B, H)` bool (False where its
        device doubted it, or that which stands for it beyond the episode's ends), `index` `(B,)`, and what
        else the spec asks for.

        index: the window's place among all, the same in every run over the same data, so that tables can be
        kept by it. rng: draws goals and prompts; None: `default_rng(0)`, the same draws in every call."""
        return self._batch(indices, rng, lambda _: True)

    def vectors(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`batch` without images: nothing is read from disk. With the same rng, the draws are the same."""
        return self._batch(indices, rng, lambda key: not is_frames(key))

    def row(self, key: str, ticks: np.ndarray) -> np.ndarray:
        """The row of the stream `key` that belongs to each of `ticks` `(...)`. Rows and ticks are counted
        over all episodes end to end."""
        return self._rows[key][ticks] if key in self._rows else ticks

    def frames(self, key: str, indices: np.ndarray) -> np.ndarray:
        """The image that the windows `indices` `(B,)` see now, `(B, H, W[, C])`."""
        return self._images[key][self.row(key, self._current[indices])]

    def values(self, key: str) -> np.ndarray:
        """The vector `key` at every control tick, `(N, *shape)`, float32 where it is a number with a
        fraction."""
        return self._vectors[key][self._rows[key]] if key in self._rows else self._vectors[key]

    @property
    def n_ticks(self) -> int:
        """Control ticks of all episodes, those that are left out among them."""
        return len(self._first)

    def observed_ticks(self, indices: np.ndarray) -> np.ndarray:
        """The ticks of the observations in the windows `indices` `(B,)`, counted over all episodes end to
        end: `(B, T)`, in chains `(B, K, T)`."""
        rows, links = self._rows_of(np.asarray(indices, np.int64)), self.spec.chain
        ticks = window_ticks(rows.current, rows.first, self.spec.n_obs_steps)
        return ticks if links == 1 else ticks.reshape(-1, links, ticks.shape[1])

    def observations(self, ticks: np.ndarray) -> dict[str, np.ndarray]:
        """What was observed at `ticks` `(...)`, as `observed_ticks` counts them: each key
        `(..., *shape)`."""
        return {key: self._read(key, ticks) for key in self.spec.keys}

    def shown(self, episodes: np.ndarray) -> dict[str, np.ndarray]:
        """The prompt that `episodes` `(P,)` make, by their places: `prompt.<key>` `(P, L, *shape)`,
        `prompt.action` and `prompt.mask`, for a spec with prompts."""
        return self._extras.shown(self._read, self.spec.keys, episodes)

    def left_out_sentence(self) -> str:
        """`left_out` as a sentence, "" when no tick was left out."""
        if not self.left_out:
            return ""
        total = len(self._first) - len(self)
        most_affected = max(self.left_out, key=lambda k: self.left_out[k])
        return (
            f"{total} of {len(self._first)} ticks are left out because a stream has nothing recent enough "
            "for "
            f"them, most of them ({self.left_out[most_affected]}) in episode {most_affected[0]} for "
            f"{most_affected[1]}"
        )

    def _batch(
        self, indices: np.ndarray, rng: np.random.Generator | None, wanted: Callable[[str], bool]
    ) -> dict[str, np.ndarray]:
        if not len(self):
            raise StoreError("there are no ticks to take windows from")
        indices = np.asarray(indices, np.int64)
        s, links = self.spec, self.spec.chain
        rows = self._rows_of(indices)
        current, first, last = rows.current, rows.first[:, None], rows.last[:, None]
        observed_ticks = window_ticks(current, rows.first, s.n_obs_steps)
        action_ticks = current[:, None] + np.arange(-s.n_past_actions, s.horizon - s.n_past_actions)
        keys = [k for k in s.keys if wanted(k)]
        goal_keys = [k for k in s.goal_keys or s.keys if wanted(k)]
        out = {key: self._read(key, observed_ticks) for key in keys}
        out |= {TARGET + key: self._target(key, observed_ticks) for key in s.targets if wanted(key)}
        rows_in_episode = np.clip(action_ticks, first, last)
        out[ACTION] = self._vectors[ACTION][rows_in_episode]
        out["valid"] = self._valid[rows_in_episode]
        out["mask"] = (action_ticks >= first) & (action_ticks <= last) & out["valid"]
        out["index"] = indices
        if links > 1:
            out["mask"] &= ((rows.tick <= rows.last) & self._usable[current])[:, None]
            out["index"] = np.maximum(np.searchsorted(self._current, current, side="right") - 1, 0)
        rng = np.random.default_rng(0) if rng is None else rng
        out |= self._extras.batch(self._read, keys, goal_keys, rows, rng)
        return out if links == 1 else {k: v.reshape(-1, links, *v.shape[1:]) for k, v in out.items()}

    def _rows_of(self, indices: np.ndarray) -> Rows:
        """Every link of the windows `indices`, in a row."""
        start, links = self._current[indices], self.spec.chain
        first = self._first[start]
        begin = first + (start - first) % self.spec.chain_stride
        ahead = self.spec.chain_stride * np.arange(links)
        return Rows(
            ((start if self.spec.chain_begin == "anywhere" else begin)[:, None] + ahead).reshape(-1),
            np.repeat(first, links),
            np.repeat(self._last[start], links),
            np.repeat(self.episode[indices], links),
        )

    def _read(self, key: str, ticks: np.ndarray) -> np.ndarray:
        """`key` at `ticks` `(...)`, `(..., *shape)`."""
        rows = self.row(key, ticks)
        return self._vectors[key][rows] if key in self._vectors else self._images[key][rows]

    def _target(self, key: str, ticks: np.ndarray) -> np.ndarray:
        value = self._read(key, ticks)
        return value * np.float32(self._metres[key]) if key in self._metres else value

    def _align(self, key: str) -> np.ndarray:
        """Fill `_rows` and, for vectors, `_vectors`. Which ticks `(N,)` bool have a row."""
        usable, rows, values, before = [], [], [], 0
        for e in self.episodes:
            ticks, (capture, receive) = e.times_ns(ACTION)[0], e.times_ns(key)
            count = e.rows(key)
            value = None if is_frames(key) else e.read(key)
            if count != len(capture):
                raise StoreError(
                    f"episode {e.index}: {key} has {count} rows but {len(capture)} times: run "
                    "`ulna data check`"
                )
            if row_per_tick(e.by_tick(key), ticks, capture, receive):
                stream_rows, within = np.arange(e.length), np.ones(e.length, bool)
            elif self.spec.align == "interpolate" and value is not None and value.dtype.kind == "f":
                require_finite(f"episode {e.index}", key, value)
                value, within = interpolate(ticks, capture, value, self._tolerance(ticks, capture, receive))
                stream_rows = np.arange(e.length)
            else:
                mode = "nearest" if self.spec.align == "interpolate" else self.spec.align
                stream_rows = align(ticks, capture, receive, self._tolerance(ticks, capture, receive), mode)
                within = stream_rows >= 0
            if missing := int((~within).sum()):
                self.left_out[e.index, key] = missing
            rows.append(_fill_gaps(stream_rows, within) + before)
            usable.append(within)
            if value is not None:
                values.append(value)
            before += count if value is None else len(value)
        every_row = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        if not np.array_equal(every_row, np.arange(len(every_row))):
            self._rows[key] = every_row
        if not is_frames(key):
            self._vectors[key] = _vectors(key, self.episodes, values)
        return np.concatenate(usable) if usable else np.zeros(0, bool)

    def _tolerance(self, ticks: np.ndarray, capture: np.ndarray, receive: np.ndarray) -> int:
        if self.spec.tolerance_s is not None:
            return round(self.spec.tolerance_s * 1e9)
        delay = int(np.median(receive - capture)) if len(capture) else 0
        return 2 * max(period_ns(ticks), period_ns(capture)) + delay


def _scale_of(key: str, feature: Feature) -> float:
    """Metres a step of depth. StoreError where nobody said."""
    scale = depth_scale_m(feature.units[0]) if feature.units else None
    if scale is None:
        said = f"is in {feature.units[0]!r}" if feature.units else "does not say its unit"
        raise StoreError(
            f"{key} {said}, and depth that is learned from is in mm, a multiple such as '0.1 mm', cm or m: "
            "record or import it anew"
        )
    return scale


def _fill_gaps(rows: np.ndarray, within: np.ndarray) -> np.ndarray:
    """`rows` `(N,)` where each that is not `within` the tolerance is replaced by the next one that is, or by
    the last such one. (Before an episode's beginning, too, the next row stands in.)"""
    if within.all() or not within.any():
        return np.maximum(rows, 0)
    places = np.flatnonzero(within)
    next_places = places[np.minimum(np.searchsorted(places, np.arange(len(rows))), len(places) - 1)]
    return rows[next_places]


def _vectors(key: str, episodes: Sequence[Episode], rows: Sequence[np.ndarray]) -> np.ndarray:
    narrowed = []
    for e, values in zip(episodes, rows, strict=True):
        with np.errstate(over="ignore"):  # a double may be beyond what float32 holds: it is infinite then
            narrowed.append(values.astype(np.float32) if values.dtype.kind == "f" else values)
        require_finite(f"episode {e.index}", key, narrowed[-1])
    return np.concatenate(narrowed) if narrowed else np.zeros((0, 1), np.float32)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows `(batch_size,)` int64 of batch `step`: a pure function, so that a run can resume at any step.

    Epochs are whole shuffles of `range(n)` laid end to end; a batch may straddle two.
    """
    if n < 1:
        raise ValueError("there are no ticks to draw batches from")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = positions // n, positions % n
    return np.concatenate([_shuffle(n, seed, int(e))[offsets[epochs == e]] for e in np.unique(epochs)])


@lru_cache(maxsize=4)
def _shuffle(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
