"""Shared by all imports: builds a new store that appears whole or not at all, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, Feature, Features, is_image
from ..making import making
from ..recording.writer import EpisodeWriter
from ..store import EpisodeStore
from ..units import Restate, plain
from ..video import resize

PIECE = 32  # rows read at once
MOST_BYTES = 1 << 30  # of one chunk of a foreign file
MOST_ROW_BYTES, PIECE_BYTES = 1 << 27, 1 << 26
Read = Callable[[int, int], np.ndarray]  # rows [start, stop) of an episode


@dataclass(frozen=True)
class ForeignEpisode:
    """One episode to import. columns: key → function that reads its rows. meta: the episode's attributes."""

    length: int
    columns: dict[str, Read]
    meta: dict[str, Any]


def build(
    dst: Path,
    features: Features,
    control_hz: float,
    robot: str,
    provenance: Mapping[str, Any],
    episodes: Iterable[ForeignEpisode],
    image_size: tuple[int, int] | None,
    progress: Callable[[int, int], None],
    total: int,
    restate: Restate = plain,
) -> EpisodeStore:
    """A store of `episodes` whose source has no times: row i is at i / control_hz, and the store says so.
    restate: what its vectors are to be called and measured in."""
    if image_size is not None:
        features = {
            k: Feature((*image_size, *f.shape[2:]), f.dtype) if is_image(k) else f
            for k, f in features.items()
        }
    row = max(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in features.values())
    piece = max(1, min(PIECE, PIECE_BYTES // max(1, row)))
    restated = restate(features, robot)
    about = {**provenance, **restated.notes, "times": "row / fps"}
    with making(dst) as work:
        store = EpisodeStore.create(work, restated.features(features), control_hz, robot, about)
        with EpisodeWriter(store) as writer:
            for index, e in enumerate(episodes):
                writer.start(e.meta)
                for start in range(0, e.length, piece):
                    stop = min(start + piece, e.length)
                    rows = {
                        k: restated.values(k, _convert(read(start, stop), features[k], k, index, image_size))
                        for k, read in e.columns.items()
                    }
                    for i in range(stop - start):
                        at = round((start + i) * 1e9 / control_hz)
                        writer.tick({k: v[i] for k, v in rows.items()}, dict.fromkeys(rows, (at, at)))
                writer.end({})
                progress(index + 1, total)
    return EpisodeStore.open(dst)


def key_for(key: str, renames: Mapping[str, str], images: bool) -> str:
    """The key of a foreign array here: as `renames` says, else under `observation.`. images: it holds
    images."""
    if key in renames:
        return renames[key]
    if key in ("action", "actions"):
        return ACTION
    if images:
        return f"observation.images.{key}"
    return key if key.startswith("observation.") else f"observation.{key}"


def as_image(rows: np.ndarray, what: str) -> np.ndarray:
    """`rows` as `(N, H, W, 3)` uint8. Raises StoreError unless all values are whole numbers in 0..255."""
    if rows.dtype == np.uint8:
        return rows
    whole = rows.astype(np.uint8, copy=False) if rows.size and rows.min() >= 0 and rows.max() <= 255 else None
    if whole is None or not np.array_equal(whole.astype(rows.dtype), rows):
        raise StoreError(
            f"{what} holds {rows.dtype} that are no whole numbers from 0 to 255: convert them to uint8"
        )
    return whole


def require_control_hz(given: float | None, stored: float | None, source: Path) -> float:
    """The rate `given` by the user, else the one `stored` in the source. Raises StoreError."""
    control_hz = stored if given is None else given
    if control_hz is None:
        raise StoreError(f"{source} does not say how many rows a second has: give --fps")
    if not 0 < control_hz < float("inf"):
        raise StoreError(f"fps must be a positive number, not {control_hz}")
    return control_hz


def _convert(
    rows: np.ndarray, feature: Feature, key: str, episode: int, image_size: tuple[int, int] | None
) -> np.ndarray:
    if feature.dtype == "uint8" and is_image(key):
        rows = as_image(rows, f"episode {episode}: {key}")
        return np.stack([resize(r, image_size) for r in rows]) if image_size else rows
    with np.errstate(over="ignore"):  # the writer refuses what is then not finite
        return rows.astype(feature.dtype, copy=False)
