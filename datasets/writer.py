"""The recorder's writer: a subscriber of the episode loop that puts one episode at a time into a store.

Rows are checked when they arrive. Images go to disk by the shard, the rest when the episode ends; the finished episode
appears in the store by one rename, so a reader never sees half of one and a killed writer harms no finished one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .features import ACTION, Feature, is_image
from .store import REQUESTED, EpisodeStore, StoreError

FRAMES_PER_SHARD, SHARD_BYTES = 64, 16 << 20  # at most, before compression


class EpisodeWriter:
    """`start`, `tick` per control tick, then `end` or `discard`. Usable again for the next episode."""

    def __init__(self, store: EpisodeStore) -> None:
        self.store = store
        self._streams: dict[str, _Stream] = {}
        self._folder: Path | None = None
        self._meta: dict[str, Any] = {}
        self._rows = 0
        self._index = 0

    def start(self, meta: Mapping[str, Any]) -> None:
        """Begin an episode. meta: JSON values; `task` is the instruction in words."""
        if self._folder is not None:
            raise StoreError("an episode is being written already: end or discard it first")
        _require_json(meta)
        self._meta, self._streams, self._rows = dict(meta), {}, 0
        with self._disk():
            self._index = self._next_index()
        self._folder = self.store.path / "in-progress" / secrets.token_hex(6)
        with self._disk():
            import zarr

            self._folder.parent.mkdir(exist_ok=True)
            zarr.open_group(str(self._folder), mode="w-", zarr_format=3)

    def tick(self, values: Mapping[str, np.ndarray], times_ns: Mapping[str, tuple[int, int]]) -> None:
        """Append one row of every feature, with `action.requested` if given. Other keys are ignored.

        times_ns: key → (t_capture_ns, t_receive_ns). StoreError names the episode, frame and key that do not fit.
        """
        if self._folder is None:
            raise StoreError("no episode has been started")
        where = f"episode {self._index}, frame {self._rows}"
        checked = {}
        for key, feature in self.store.features.items():
            if key not in values:
                raise StoreError(f"{where}: no value for {key}")
            checked[key] = _check(values[key], feature, key, where)
        if REQUESTED in values:
            checked[REQUESTED] = _check(values[REQUESTED], self.store.features[ACTION], REQUESTED, where)
        if untimed := [k for k in checked if k not in times_ns]:
            raise StoreError(f"{where}: no times for {untimed[0]}")
        if self._rows == 0:
            self._streams = {k: _Stream(self._folder, k) for k in checked}
        elif set(checked) != set(self._streams):
            raise StoreError(f"{where}: its streams differ from those of the episode's first frame")
        with self._disk():
            for key, value in checked.items():
                self._streams[key].append(value, times_ns[key])
        self._rows += 1

    def end(self, meta: Mapping[str, Any]) -> None:
        """Finish the episode; `meta` (such as `success`) joins what `start` was given. Without rows: discarded."""
        if self._folder is None:
            raise StoreError("no episode has been started")
        if self._rows == 0:
            self.discard()
            return
        _require_json(meta)
        with self._disk():
            import zarr

            for stream in self._streams.values():
                stream.finish()
            group = zarr.open_group(str(self._folder), mode="r+")
            streams = {k: {"rows": self._rows} for k in self._streams}
            group.update_attributes({**self._meta, **meta, "length": self._rows, "streams": streams})
            name = f"{self._next_index():06d}-{self._folder.name}"
            os.rename(self._folder, self.store.path / "episodes" / name)
        self._folder = None
        self.store.refresh()

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _next_index(self) -> int:
        names = (p.name for p in (self.store.path / "episodes").iterdir())
        return max((int(n.split("-")[0]) + 1 for n in names if n.split("-")[0].isdigit()), default=0)

    @contextlib.contextmanager
    def _disk(self) -> Any:
        """A write that fails gives up the episode in progress, and only that."""
        try:
            yield
        except OSError as error:
            self.discard()
            raise StoreError(
                f"cannot write to {self.store.path}: {error.strerror or error}; the episode in progress is given up, "
                "finished episodes are intact"
            ) from error


def _check(value: np.ndarray, feature: Feature, key: str, where: str) -> np.ndarray:
    value = np.asarray(value)
    if value.shape != feature.shape:
        raise StoreError(f"{where}: {key} has shape {value.shape}, the store's feature has {feature.shape}")
    if value.dtype != feature.dtype:
        raise StoreError(f"{where}: {key} is {value.dtype}, the store's feature is {feature.dtype}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise StoreError(f"{where}: {key} holds a value that is not finite")
    return value


class _Stream:
    """The rows of one stream: images a shard at a time, vectors at the end."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.image = folder, key, is_image(key)
        self.rows: list[np.ndarray] = []
        self.times: list[tuple[int, int]] = []
        self.written = 0
        self.array: Any = None
        self.per_shard = 0

    def append(self, value: np.ndarray, times_ns: tuple[int, int]) -> None:
        self.per_shard = self.per_shard or max(1, min(FRAMES_PER_SHARD, SHARD_BYTES // max(1, value.nbytes)))
        self.rows.append(value.copy())
        self.times.append(times_ns)
        if self.image and len(self.rows) == self.per_shard:
            self._flush()

    def finish(self) -> None:
        if self.rows:
            self._flush()
        times = np.asarray(self.times, np.int64).reshape(-1, 2)
        for part, column in (("t_capture_ns", 0), ("t_receive_ns", 1)):
            self._create(part, times[:, column], times[:, column].shape, None)[:] = times[:, column]

    def _flush(self) -> None:
        block = np.stack(self.rows)
        if self.array is None:
            shape = block.shape[1:]
            chunks, shards = ((1, *shape), (self.per_shard, *shape)) if self.image else (block.shape, None)
            self.array = self._create("value", block, chunks, shards)
        if self.written:
            self.array.resize((self.written + len(block), *block.shape[1:]))
        self.array[self.written : self.written + len(block)] = block
        self.written += len(block)
        self.rows = []

    def _create(
        self, part: str, first: np.ndarray, chunks: tuple[int, ...], shards: tuple[int, ...] | None
    ) -> Any:
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        codec = BloscCodec(
            cname="zstd", clevel=1 if shards else 5, shuffle=_shuffle(first) if shards else "shuffle"
        )
        return zarr.create_array(
            str(self.folder),
            name=f"{self.key}/{part}",
            shape=first.shape,
            dtype=first.dtype,
            chunks=chunks,
            shards=shards,
            compressors=[codec, Crc32cCodec()],
            # zarr leaves out a chunk of zeros by default; then one that got lost could not be told from a black frame
            config={"write_empty_chunks": True},
        )


def _shuffle(frames: np.ndarray) -> Literal["noshuffle", "bitshuffle"]:
    """Noisy pixels compress better bit by bit (by 10 % at 96×96), smooth ones as they are (by 12 % at 640×480)."""
    from numcodecs.blosc import Blosc

    plain, bits = (len(Blosc("zstd", 1, s).encode(frames[0])) for s in (Blosc.NOSHUFFLE, Blosc.BITSHUFFLE))
    return "bitshuffle" if bits < plain else "noshuffle"


def _require_json(meta: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"what is noted about an episode must be JSON: {error}") from None
