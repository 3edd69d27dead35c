"""Random access to the frames of one image stream, past zarr.

zarr spends about 0.7 ms of Python on every chunk it fetches, twenty times what decoding a 96×96 frame takes. The layout
that our writer makes is plain enough to read directly: shard files that end in an index of their frames (zarr v3
specification, sharding codec 1.0). An array laid out in any other way goes through zarr.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NEVER_WRITTEN = 2**64 - 1  # in an index: the frame holds the fill value
BLOSC_HEADER = 16


class DamagedFrames(ValueError):
    """Frames cannot be read back; the message names the first, where one is known, and says why."""


class FrameReader:
    """`FrameReader(folder of a zarr array)`: `shape` `(T, H, W, C)`, `dtype`, `read(rows)`. Keeps no file open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / "zarr.json").read_text())
            self.shape = tuple(int(n) for n in meta["shape"])
            self.dtype = np.dtype(meta["data_type"])
            self._per_shard, self._checked = _plain_layout(meta)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFrames(f"its zarr.json cannot be read ({error!r})") from None
        self._indices: dict[int, np.ndarray] = {}
        self._zarr: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The frames of `rows` `(N,)` as `(N, H, W, C)`, written into a contiguous `out` where given.

        Raises IndexError beyond the stream, DamagedFrames where the bytes are not those that were written.
        """
        rows = np.asarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if not len(rows):
            return out
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a stream of {len(self)}")
        if self._per_shard == 0:
            return self._read_with_zarr(rows, out)
        shards, places = np.divmod(rows, self._per_shard)
        for shard in np.unique(shards).tolist():
            of_shard = np.flatnonzero(shards == shard)
            self._read_shard(shard, places[of_shard], of_shard, out)
        return out

    def _read_shard(self, shard: int, places: np.ndarray, to: np.ndarray, out: np.ndarray) -> None:
        row = shard * self._per_shard + int(places[0])
        try:
            file = os.open(self._path(shard), os.O_RDONLY)
            try:
                if shard not in self._indices:
                    self._indices[shard] = self._index(file)
                for place, i in zip(places.tolist(), to.tolist(), strict=True):
                    row = shard * self._per_shard + place
                    start, size = self._indices[shard][place].tolist()
                    if start == NEVER_WRITTEN:
                        out[i] = 0
                    else:
                        self._decode(os.pread(file, size, start), size, out[i])
            finally:
                os.close(file)
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DamagedFrames(f"frame {row} cannot be read: {reason}") from error

    def _path(self, shard: int) -> Path:
        return self.folder.joinpath("c", str(shard), *("0" for _ in self.shape[1:]))

    def _index(self, file: int) -> np.ndarray:
        """(start, size) in bytes of every frame of a shard `(per_shard, 2)` uint64, then its CRC-32C: the file's end."""
        size = self._per_shard * 16 + 4
        end = os.fstat(file).st_size
        if end < size:
            raise ValueError(f"its file has only {end} bytes")
        raw = _without_crc(os.pread(file, size, end - size))
        return np.frombuffer(raw, "<u8").reshape(self._per_shard, 2)

    def _decode(self, raw: bytes, size: int, frame: np.ndarray) -> None:
        from numcodecs.blosc import decompress

        if len(raw) != size:
            raise ValueError("its file is cut short")
        data = _without_crc(raw) if self._checked else memoryview(raw)
        # blosc trusts its header, so the header must agree with what we hold and what we want (bytes 4-7 and 12-15)
        if len(data) < BLOSC_HEADER or (
            int.from_bytes(data[4:8], "little"),
            int.from_bytes(data[12:16], "little"),
        ) != (frame.nbytes, len(data)):
            raise ValueError("its bytes are not a frame of this stream")
        decompress(data, frame)

    def _read_with_zarr(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self._zarr is None:
            import zarr

            self._zarr = zarr.open_array(str(self.folder), mode="r")
        for i, row in enumerate(rows.tolist()):
            try:
                out[i] = self._zarr[row]
            except Exception as error:  # zarr raises whatever its codecs raise on a damaged chunk
                raise DamagedFrames(f"frame {row} cannot be read: {error}") from error
        return out


def _without_crc(raw: bytes) -> memoryview:
    from google_crc32c import value

    if len(raw) < 4 or value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise ValueError("its checksum is wrong")
    return memoryview(raw)[:-4]


def _plain_layout(meta: Mapping[str, Any]) -> tuple[int, bool]:
    """(frames per shard, whether every frame carries a checksum); (0, False) when the array is not as ours are."""
    shape, codecs = meta["shape"], meta["codecs"]
    try:
        (shard,) = codecs
        inner = shard["configuration"]
        names = [c["name"] for c in inner["codecs"]]
        plain = (
            meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and meta["chunk_grid"]["name"] == "regular"
            and meta["chunk_grid"]["configuration"]["chunk_shape"][1:] == shape[1:]
            and shard["name"] == "sharding_indexed"
            and inner["chunk_shape"] == [1, *shape[1:]]
            and inner.get("index_location", "end") == "end"
            and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner["index_codecs"][0]["configuration"]["endian"] == "little"
            and names in (["bytes", "blosc"], ["bytes", "blosc", "crc32c"])
            and (meta["data_type"] == "uint8" or inner["codecs"][0]["configuration"]["endian"] == "little")
            and not meta["fill_value"]
            and not meta.get("storage_transformers")
        )
    except (KeyError, ValueError, TypeError):
        return 0, False
    if not plain:
        return 0, False
    return int(meta["chunk_grid"]["configuration"]["chunk_shape"][0]), names[-1] == "crc32c"
