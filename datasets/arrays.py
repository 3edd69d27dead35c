"""Reads zarr v3 arrays of a folder that may come from anyone, without zarr.

No link is followed, sizes are compared with what the array says before memory is taken for them, and a codec
can give no more bytes than its chunk has. The layouts are those that zarr-python writes for numbers and
pictures: a regular grid of chunks, in shards or not, compressed with blosc, zstd or gzip, and JPEG (zarr v3
specification; sharding codec 1.0)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from . import inside
from .codec import decode_jpeg, decompress_blosc, without_crc
from .sizes import ITEM_BYTES, MOST_BYTES, MOST_ROWS, dtype_of, require_row, shape_of

NEVER_WRITTEN = 2**64 - 1  # in the index of a shard: the chunk holds the fill value
# what is stored may grow to as many bytes, or by as much; a stream that never changes shrinks further
FREE_BYTES, MOST_RATIO = 64 << 20, 4096
MOST_FILES = 1 << 20  # of one array, and chunks of one file
CODECS = ("bytes", "blosc", "zstd", "gzip", "crc32c", "imagecodecs_delta", "imagecodecs_jpeg")


@dataclass(frozen=True)
class Layout:
    """How an array is stored, of its zarr.json `meta`. shard: shape of what one file holds. chunk: of what is
    coded as one. codecs: of a chunk, in the order of writing. index_codecs: of a shard's index, None where
    there are no shards. Raises ValueError, KeyError or TypeError where it is none that is read here."""

    meta: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.meta.get("node_type") != "array" or self.meta.get("zarr_format") != 3:
            raise ValueError("it is no array of zarr v3")
        require_row(self.shape[1:], self.dtype.name)
        if self.shape and self.shape[0] > MOST_ROWS:
            raise ValueError(f"{self.shape[0]} rows are more than {MOST_ROWS}")
        for shape in (self.shard, self.chunk):
            if len(shape) != len(self.shape) or not all(shape):
                raise ValueError(f"chunks of {shape} do not cut up an array of {self.shape}")
        if any(outer % inner for outer, inner in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"chunks of {self.chunk} do not fill shards of {self.shard}")
        if (size := prod(self.chunk) * self.dtype.itemsize) > MOST_BYTES:
            raise ValueError(f"a chunk would take {size} bytes, more than {MOST_BYTES}")
        if (count := prod(self.per_shard)) > MOST_FILES:
            raise ValueError(f"{count} chunks a shard are more than {MOST_FILES}")
        for codec in self.codecs:
            if codec["name"] not in CODECS:
                raise ValueError(f"its codec {str(codec['name'])[:40]!r} is none of {', '.join(CODECS)}")
        if self.meta.get("storage_transformers"):
            raise ValueError("its storage transformers are not known here")

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.meta["shape"])

    @cached_property
    def dtype(self) -> np.dtype:
        return np.dtype(dtype_of(self.meta["data_type"]))

    @cached_property
    def shard(self) -> tuple[int, ...]:
        grid = self.meta["chunk_grid"]
        if grid["name"] != "regular":
            raise ValueError(f"its grid {str(grid['name'])[:40]!r} is not regular")
        return shape_of(grid["configuration"]["chunk_shape"])

    @cached_property
    def _sharding(self) -> Mapping[str, Any] | None:
        first = self.meta["codecs"][0]
        if first["name"] != "sharding_indexed":
            return None
        if len(self.meta["codecs"]) != 1:
            raise ValueError("its shards are coded as a whole")
        return first["configuration"]

    @cached_property
    def chunk(self) -> tuple[int, ...]:
        return self.shard if self._sharding is None else shape_of(self._sharding["chunk_shape"])

    @cached_property
    def codecs(self) -> tuple[Mapping[str, Any], ...]:
        return tuple((self.meta if self._sharding is None else self._sharding)["codecs"])

    @cached_property
    def index_codecs(self) -> tuple[str, ...] | None:
        if self._sharding is None:
            return None
        if self._sharding.get("index_location", "end") != "end":
            raise ValueError("the index of its shards is not at their end")
        names = tuple(c["name"] for c in self._sharding["index_codecs"])
        if names not in (("bytes",), ("bytes", "crc32c")):
            raise ValueError("the index of its shards is coded in another way")
        return names

    @cached_property
    def per_shard(self) -> tuple[int, ...]:
        return tuple(n // m for n, m in zip(self.shard, self.chunk, strict=True))

    @cached_property
    def fill(self) -> Any:
        value = self.meta.get("fill_value", 0)
        if isinstance(value, str):  # zarr writes what JSON has no number for in words
            value = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}[value]
        return np.asarray(value, self.dtype)

    def name(self, place: Sequence[int]) -> str:
        """The file of the shard `place`, below the array's folder."""
        encoding = self.meta["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
        if encoding["name"] != "default" or separator not in ("/", "."):
            raise ValueError("its chunks are named in another way")
        return separator.join(["c", *map(str, place)])


class ArrayReader:
    """The array in `folder`, which lies in the folder `root`. Raises OSError or ValueError where its
    zarr.json cannot be read."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        try:
            self.layout = Layout(inside.read_json(root, folder / "zarr.json"))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"its zarr.json is incomplete ({error!r})") from None
        self.shape, self.dtype = self.layout.shape, self.layout.dtype

    def read(self, start: int, stop: int, require_all: bool = False) -> np.ndarray:
        """Rows `[start, stop)` of the first axis. require_all: a chunk without a file is an error, and not
        rows of the fill value. Raises OSError or ValueError."""
        layout = self.layout
        shape = (stop - start, *self.shape[1:])
        if (size := prod(shape) * self.dtype.itemsize) > MOST_BYTES:
            raise ValueError(f"it would take {size} bytes, more than {MOST_BYTES}")
        out = np.zeros(shape, self.dtype)  # takes memory when it is written to, not before
        if layout.fill != 0:
            out[...] = layout.fill
        if not out.size:
            return out
        if (
            self.shape[0] > 1
            and prod(-(-n // m) for n, m in zip(self.shape, layout.shard, strict=True)) > MOST_FILES
        ):
            raise ValueError(f"it lies in more than {MOST_FILES} files")
        shards = [range(start // layout.shard[0], -(-stop // layout.shard[0]))]
        shards += [range(-(-n // m)) for n, m in zip(self.shape[1:], layout.shard[1:], strict=True)]
        for place in itertools.product(*shards):
            try:
                self._read_shard(place, start, out)
            except FileNotFoundError:
                if require_all:
                    name = f"{self.folder.name}/{layout.name(place)}"
                    raise FileNotFoundError(2, f"its file {name} is missing") from None
        return out

    def _read_shard(self, place: Sequence[int], start: int, out: np.ndarray) -> None:
        layout = self.layout
        file = inside.open_file(self.root, self.folder / layout.name(place))
        try:
            size = os.fstat(file).st_size
            if layout.index_codecs is None:
                spans = np.array([[0, size]], "<u8")
            else:
                spans = _index(file, size, prod(layout.per_shard), "crc32c" in layout.index_codecs)
            for number, inner in enumerate(np.ndindex(*layout.per_shard)):
                begin = [
                    p * s + i * c for p, s, i, c in zip(place, layout.shard, inner, layout.chunk, strict=True)
                ]
                begin[0] -= start
                target, source = [], []
                for at, length, room in zip(begin, layout.chunk, out.shape, strict=True):
                    low, high = max(at, 0), min(at + length, room)
                    target.append(slice(low, max(low, high)))
                    source.append(slice(low - at, max(low, high) - at))
                first, count = map(int, spans[number])
                if first == NEVER_WRITTEN or any(t.start >= t.stop for t in target):
                    continue
                if first + count > size:
                    raise ValueError("its file is cut short")
                out[tuple(target)] = self._decode(os.pread(file, count, first))[tuple(source)]
        finally:
            os.close(file)

    def _decode(self, data: bytes) -> np.ndarray:
        """A chunk of the bytes that it is stored as."""
        shape, dtype = self.layout.chunk, self.dtype
        size = prod(shape) * dtype.itemsize
        if size > max(FREE_BYTES, MOST_RATIO * len(data)):
            raise ValueError(f"its {len(data)} bytes would become {size}, which no recording does")
        value: Any = data
        for codec in reversed(self.layout.codecs):
            name, options = codec["name"], codec.get("configuration") or {}
            if name == "crc32c":
                value = without_crc(value)
            elif name == "blosc":
                value = decompress_blosc(value, size)
            elif name in ("zstd", "gzip"):
                value = _decompress(name, value, size)
            elif name == "bytes":
                big = ITEM_BYTES[dtype.name] > 1 and options.get("endian") == "big"
                value = np.frombuffer(value, dtype.newbyteorder(">") if big else dtype)
            elif name == "imagecodecs_jpeg":
                value = decode_jpeg(memoryview(value), size)
            else:
                import imagecodecs

                axis, dist = options.get("axis", -1), options.get("dist", 1)
                value = imagecodecs.delta_decode(np.reshape(value, shape), axis=axis, dist=dist)
        return np.asarray(value).reshape(shape)


def _index(file: int, size: int, chunks: int, has_crc: bool) -> np.ndarray:
    """(start, size) in bytes of every chunk of a shard, from the end of its file, `(chunks, 2)` uint64."""
    length = 16 * chunks + 4 * has_crc
    if size < length:
        raise ValueError(f"its file has only {size} bytes")
    raw: Any = os.pread(file, length, size - length)
    return np.frombuffer(without_crc(raw) if has_crc else raw, "<u8").reshape(chunks, 2)


def _decompress(name: str, data: Any, size: int) -> bytes:
    if name == "gzip":
        import zlib

        value = zlib.decompressobj(wbits=31).decompress(data, size + 1)
    else:
        import imagecodecs

        value = bytes(imagecodecs.zstd_decode(bytes(data), out=size + 1))
    if len(value) != size:
        raise ValueError("its bytes are not a chunk of this array")
    return value
