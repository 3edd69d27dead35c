"""Random access to the frames of one image stream, without zarr.

zarr spends about 0.7 ms of Python on every chunk it fetches, twenty times what decoding a 96×96 frame takes.
The layout that our writer makes is plain enough to read directly: shard files that end in an index of their
frames (zarr v3 specification, sharding codec 1.0). An array with another layout is read by arrays.py."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import inside
from .arrays import NEVER_WRITTEN, ArrayReader
from .codec import CRC, Kind, decode, from_zarr, to_zarr, with_crc, without_crc

FRAMES_PER_SHARD = 64


class DamagedFrames(ValueError):
    """Frames cannot be read; the message names the first, where it is known, and says why."""


class FrameReader:
    """`FrameReader(folder of a zarr array)`: `shape` `(T, H, W, C)`, `dtype`, `read(rows)`. Keeps no file
    open. root: the folder out of which nothing is followed, by default the array's own."""

    kind: Kind

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder, self.root = folder, root or folder
        try:
            self._array = ArrayReader(self.root, folder)
            self.shape, self.dtype = self._array.shape, self._array.dtype
            if not self.shape:
                raise ValueError("it has no rows")
            self._per_shard, self.kind, self._has_crc = _plain_layout(self._array.layout.meta)
            self.quality = quality_of(self._array.layout.meta)
        except (OSError, ValueError) as error:
            raise DamagedFrames(f"its zarr.json cannot be read: {_why(error)}") from None
        self._indices: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The frames of `rows` `(N,)` as `(N, H, W, C)`, written into a contiguous `out` where given.

        Raises IndexError beyond the stream, DamagedFrames where bytes are missing or
        a checksum is wrong.
        """
        if len(self.shape) not in (3, 4) or not all(self.shape[1:]):
            raise DamagedFrames(f"an array of {self.shape} holds no pictures")
        rows = np.asarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return out
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a stream of {len(self)}")
        if self._per_shard == 0:
            return self._read_foreign(rows, out)
        shards, places = np.divmod(rows, self._per_shard)
        for shard in np.unique(shards).tolist():
            of_shard = np.flatnonzero(shards == shard)
            self._read_shard(shard, places[of_shard], of_shard, out)
        return out

    def read_encoded(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """The stored bytes of `rows` `(N,)`, checksum included, so that frames can be copied without coding
        them again. Raises DamagedFrames where a checksum is wrong, or where the layout is not that of
        `array_json`."""
        if self._per_shard != FRAMES_PER_SHARD or not self._has_crc:
            raise DamagedFrames("its frames are not stored as this version stores them")
        frames = []
        for row in np.asarray(rows, np.int64).tolist():
            shard, place = divmod(row, self._per_shard)
            try:
                file = inside.open_file(self.root, self._path(shard))
                try:
                    if shard not in self._indices:
                        self._indices[shard] = self._index(file)
                    start, size = self._indices[shard][place].tolist()
                    frames.append(self._stored(file, size, start))
                    without_crc(frames[-1])
                finally:
                    os.close(file)
            except (OSError, ValueError, OverflowError) as error:
                raise DamagedFrames(f"frame {row} cannot be read: {_why(error)}") from error
        return frames

    def verify(self) -> None:
        """Raise DamagedFrames where a frame's checksum is wrong. Frames are decoded only if the layout is not
        that of `array_json`."""
        as_stored = self._per_shard == FRAMES_PER_SHARD and self._has_crc
        for row in range(len(self)):
            self.read_encoded([row]) if as_stored else self.read([row])

    def _read_shard(self, shard: int, places: np.ndarray, targets: np.ndarray, out: np.ndarray) -> None:
        row = shard * self._per_shard + int(places[0])
        try:
            file = inside.open_file(self.root, self._path(shard))
            try:
                if shard not in self._indices:
                    self._indices[shard] = self._index(file)
                for place, i in zip(places.tolist(), targets.tolist(), strict=True):
                    row = shard * self._per_shard + place
                    start, size = self._indices[shard][place].tolist()
                    if start == NEVER_WRITTEN:
                        out[i] = 0
                    else:
                        decode(self._stored(file, size, start), self.kind, self._has_crc, out[i])
            finally:
                os.close(file)
        except (OSError, ValueError, RuntimeError, OverflowError) as error:
            raise DamagedFrames(f"frame {row} cannot be read: {_why(error)}") from error

    def _path(self, shard: int) -> Path:
        return shard_path(self.folder, shard, len(self.shape) - 1)

    def _index(self, file: int) -> np.ndarray:
        """(start, size) in bytes of every frame of a shard, `(per_shard, 2)` uint64, from the end of its
        file."""
        size = self._per_shard * 16 + 4
        end = os.fstat(file).st_size
        if end < size:
            raise ValueError(f"its file has only {end} bytes")
        raw = without_crc(os.pread(file, size, end - size))
        return np.frombuffer(raw, "<u8").reshape(self._per_shard, 2)

    def _stored(self, file: int, size: int, start: int) -> bytes:
        """The bytes of one frame. ValueError: they are not all there, or more than any frame has."""
        if size > self._most_bytes:
            raise ValueError(f"it would have {size} bytes")
        raw = os.pread(file, size, start)
        if len(raw) != size:
            raise ValueError("its file is cut short")
        return raw

    @property
    def _most_bytes(self) -> int:
        return 4096 + 2 * math.prod(self.shape[1:]) * self.dtype.itemsize

    def _read_foreign(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        for i, row in enumerate(rows.tolist()):
            try:
                out[i] = self._array.read(row, row + 1, require_all=True)[0]
            except Exception as error:  # codecs raise all kinds on damaged bytes
                raise DamagedFrames(f"frame {row} cannot be read: {_why(error)}") from error
        return out


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _plain_layout(meta: Mapping[str, Any]) -> tuple[int, Kind, bool]:
    """(frames per shard, codec, whether every frame has a checksum); (0, …) when the array does not have our
    layout."""
    shape, codecs = meta["shape"], meta["codecs"]
    foreign: tuple[int, Kind, bool] = (0, "blosc", False)
    try:
        (shard,) = codecs
        inner = shard["configuration"]
        codec = from_zarr(inner["codecs"], meta["data_type"])
        plain = (
            meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and meta["chunk_grid"]["name"] == "regular"
            and meta["chunk_grid"]["configuration"]["chunk_shape"][1:] == shape[1:]
            and shard["name"] == "sharding_indexed"
            and inner["chunk_shape"] == [1, *shape[1:]]
            and inner.get("index_location", "end") == "end"
            and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner["index_codecs"][0]["configuration"]["endian"] == "little"
            and not meta["fill_value"]
            and not meta.get("storage_transformers")
        )
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return foreign
    if not plain or codec is None:
        return foreign
    kind, has_crc = codec
    return int(meta["chunk_grid"]["configuration"]["chunk_shape"][0]), kind, has_crc


def quality_of(meta: Mapping[str, Any]) -> int:
    """The JPEG quality of an array's frames, where they are JPEG."""
    try:
        return int(meta["codecs"][0]["configuration"]["codecs"][0]["configuration"]["level"])
    except (KeyError, TypeError, IndexError):
        return 95


def shard_path(folder: Path, shard: int, dims: int) -> Path:
    """The file of one shard of an array whose frames have `dims` dimensions."""
    return folder.joinpath("c", str(shard), *("0" for _ in range(dims)))


def shard_index(places: Sequence[tuple[int, int]]) -> bytes:
    """The index at the end of a shard: `places` (start, size) of its frames, in order; those that it lacks
    are marked NEVER_WRITTEN."""
    index = np.full((FRAMES_PER_SHARD, 2), NEVER_WRITTEN, "<u8")
    index[: len(places)] = np.array(places, "<u8").reshape(-1, 2)
    return with_crc(index.tobytes())


def array_json(rows: int, shape: Sequence[int], dtype: str, kind: Kind, quality: int) -> str:
    """The zarr.json of a stream of `rows` frames of `shape`, which `FrameReader` and every zarr v3 reader
    can read."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {
        "chunk_shape": [1, *shape],
        "codecs": to_zarr(kind, dtype, quality),
        "index_codecs": [little, CRC],
        "index_location": "end",
    }
    array = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *shape],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [FRAMES_PER_SHARD, *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": shard}],
        "attributes": {},
        "storage_transformers": [],
    }
    return json.dumps(array, indent=1)
