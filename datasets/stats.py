"""Per-feature statistics, computed an episode at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .episode import Episode, StoreError, require_finite
from .features import is_depth, is_image
from .store import EpisodeStore

IMAGE_FRAMES_PER_EPISODE = 16
MEMORY_BYTES = 256 << 20  # of a vector's rows; above it quantiles come from a histogram
BINS = 1 << 16
QUANTILES = (0.01, 0.99)
ARRAYS = ("min", "max", "mean", "std", "q01", "q99")


@dataclass(frozen=True)
class Stats:
    """Statistics of one feature. Each array is `(D,)` float64, in the feature's unit; for images `(C,)` in
    0..255, for depth `(1,)` in stored steps. q01, q99: quantiles. count: rows. resolution: the smallest
    difference that means something; None in checkpoints from before it was known, whose normalisers are those
    that they were trained with (`datasets.normalise`)."""

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    count: int
    resolution: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        names = ARRAYS if self.resolution is None else (*ARRAYS, "resolution")
        return {**{k: getattr(self, k).tolist() for k in names}, "count": self.count}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Stats:
        names = [*ARRAYS, *(["resolution"] if "resolution" in d else [])]
        return Stats(**{k: np.asarray(d[k], np.float64) for k in names}, count=int(d["count"]))


def compute_stats(
    store: EpisodeStore, keys: Sequence[str], episodes: Sequence[int] | None = None
) -> dict[str, Stats]:
    """Statistics of `keys` over `episodes` (all by default), each stream with the rows that it has.

    Vectors: exact while their rows fit into MEMORY_BYTES as float64; beyond, q01 and q99 are exact to the
    range / BINS and the rest to rounding, and memory stays within MEMORY_BYTES. Images and depth: every pixel
    of up to 16 evenly spaced frames an episode, in a histogram; depth without the pixels that have no reading
    (0). Raises StoreError that names the episode and row of a value that is not finite."""
    selection = store.choose(episodes)
    if not selection:
        raise StoreError(f"{store.path} has no episode to take statistics from")
    result = {}
    for key in keys:
        if is_depth(key):
            result[key] = _depth_stats(selection, key)
        elif is_image(key):
            result[key] = _image_stats(selection, key, store.features[key].shape[-1])
        else:
            rows = sum(e.rows(key) for e in selection)
            if not rows:
                raise StoreError(f"{store.path}: {key} has no rows to take statistics from")
            width = int(np.prod(store.features[key].shape))
            few = rows * width * 8 <= MEMORY_BYTES
            parts = (_vector(e, key) for e in selection)
            result[key] = (
                vector_stats(np.concatenate(list(parts))) if few else _stats_in_passes(selection, key)
            )
    return result


def _vector(e: Episode, key: str) -> np.ndarray:
    values = np.asarray(e.read(key), np.float64).reshape(e.rows(key), -1)
    require_finite(f"episode {e.index}", key, values)
    return values


def _stats_in_passes(episodes: Sequence[Episode], key: str) -> Stats:
    """Read the episodes twice: for the range and mean, then for deviations and a histogram within the
    range."""
    count, low, high, total = 0, None, None, np.zeros(1)
    for e in episodes:
        x = _vector(e, key)
        if not len(x):
            continue
        low = x.min(0) if low is None else np.minimum(low, x.min(0))
        high = x.max(0) if high is None else np.maximum(high, x.max(0))
        count, total = count + len(x), total + x.sum(0)
    assert low is not None
    assert high is not None
    mean, width = total / count, np.where(high > low, high - low, 1.0)
    squares = np.zeros(len(low))
    histogram = np.zeros((len(low), BINS), np.int64)
    for e in episodes:
        x = _vector(e, key)
        squares += ((x - mean) ** 2).sum(0)
        bins = np.minimum(((x - low) / width * BINS).astype(np.int64), BINS - 1)
        for column in range(len(low)):
            histogram[column] += np.bincount(bins[:, column], minlength=BINS)
    cumulative = histogram.cumsum(1)

    def at(q: float) -> np.ndarray:
        """Interpolate between the two rows around the quantile, each taken as the middle of its bin."""
        place = q * (count - 1)
        below, above = ((cumulative <= rank).sum(1) for rank in (np.floor(place), np.ceil(place)))
        share = place - np.floor(place)
        return np.clip(low + (below * (1 - share) + above * share + 0.5) / BINS * width, low, high)

    return Stats(low, high, mean, np.sqrt(squares / count), at(0.01), at(0.99), count)


def vector_stats(x: np.ndarray) -> Stats:
    """Over the first axis of `(N, ...)` float64."""
    return Stats(**of_rows(x), count=len(x))


def of_rows(x: np.ndarray, quantiles: Sequence[float] = QUANTILES) -> dict[str, np.ndarray]:
    """min, max, mean, std and `quantiles` (q01, …) over the first axis of `(N, ...)` float64."""
    values = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    return {**values, **_quantile_items(quantiles, np.quantile(x, quantiles, axis=0))}


def _image_stats(episodes: Sequence[Episode], key: str, channels: int) -> Stats:
    histogram = np.zeros((channels, 256), np.int64)
    frames = 0
    for frame in _some_frames(episodes, key):
        pixels = frame.reshape(-1, channels)
        for c in range(channels):
            histogram[c] += np.bincount(pixels[:, c], minlength=256)
        frames += 1
    if not frames:
        raise StoreError("there is no frame to take statistics from")
    return Stats(**of_histogram(histogram), count=frames)


def _depth_stats(episodes: Sequence[Episode], key: str) -> Stats:
    histogram = np.zeros((1, 1 << 16), np.int64)
    frames = 0
    for frame in _some_frames(episodes, key):
        histogram[0] += np.bincount(frame.reshape(-1), minlength=1 << 16)
        frames += 1
    histogram[0, 0] = 0
    if not histogram.any():
        raise StoreError(f"{key} holds no reading in any of the {frames} frames looked at")
    return Stats(**of_histogram(histogram), count=frames)


def _some_frames(episodes: Sequence[Episode], key: str) -> Iterator[np.ndarray]:
    for e in episodes:
        count = e.rows(key)
        for row in (
            np.unique(np.linspace(0, count - 1, IMAGE_FRAMES_PER_EPISODE).round().astype(int))
            if count
            else ()
        ):
            yield e.read_frames(key, [row])[0]


def of_histogram(histogram: np.ndarray, quantiles: Sequence[float] = QUANTILES) -> dict[str, np.ndarray]:
    """As `of_rows`, `(C,)` each, of a histogram: the counts `(C, L)` of the levels 0 … L-1."""
    levels = np.arange(float(histogram.shape[1]))
    total = histogram.sum(1, keepdims=True)
    mean = (histogram * levels).sum(1) / total[:, 0]
    std = np.sqrt((histogram * (levels - mean[:, None]) ** 2).sum(1) / total[:, 0])
    cumulative = histogram.cumsum(1) / total
    occurs = histogram > 0
    low, high = occurs.argmax(1), histogram.shape[1] - 1 - occurs[:, ::-1].argmax(1)
    values = {"min": low.astype(np.float64), "max": high.astype(np.float64), "mean": mean, "std": std}
    return {
        **values,
        **_quantile_items(quantiles, [(cumulative < q).sum(1).astype(np.float64) for q in quantiles]),
    }


def _quantile_items(quantiles: Sequence[float], values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"q{round(q * 100):02d}": v for q, v in zip(quantiles, values, strict=True)}
