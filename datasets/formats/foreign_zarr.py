"""Zarr arrays of others, in a folder or a zip, opened with care. Before zarr sees one its description is
checked: objects, which it would unpickle, codecs that are not known and absurd sizes are refused. Before a
chunk is decoded, the size that it says it has is compared with the array's.

Sizes are where Zstandard (RFC 8878, 3.1.1.1), Blosc (its README_CHUNK_FORMAT), numcodecs' LZ4 and JPEG XL
(ISO 18181-1, SizeHeader) write them."""

from __future__ import annotations

import json
import math
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..video import still_picture
from .foreign_files import is_litter, json_object
from .importing import MOST_BYTES, require_believable

CODECS = {
    # not zlib, gzip, bz2, lzma: their chunks of some kilobytes could become gigabytes; these state their size
    *("blosc", "zstd", "lz4", "delta", "shuffle", "crc32", "crc32c", "adler32"),
    *("bytes", "transpose", "sharding_indexed", "fixedscaleoffset", "astype", "packbits"),
    *(f"imagecodecs_{n}" for n in ("jpegxl", "jpeg2k", "jpeg", "jpegls", "jpegxr", "png", "webp", "delta")),
}
CHECKSUMS = {"crc32", "crc32c", "adler32"}
MOST_META_BYTES = 1 << 20
MOST_FILES = 5_000_000
WIDEST = 16  # bytes of an element, whatever the filters make of it


@dataclass(frozen=True)
class Described:
    """An array by its description. codec: what its chunks are compressed with, "" for none. most: bytes that
    a chunk may have, unfolded. shard: how many chunks lie in a file, 0 where each has its own. index: of the
    bytes of a shard that say where they lie."""

    codec: str
    most: int
    shard: int
    index: slice


def open_store(src: Path) -> Any:
    """The zarr store of the folder or zip `src`, read-only; that of a zip must be closed. Raises StoreError
    where it would be unsafe to open it, and later where a chunk would be unsafe to decode."""
    from zarr.storage import LocalStore, ZipStore

    arrays = _described(src)
    for name, array in arrays.items():
        if array.shard:
            _require_shards_fit(src, name, array)

    def require_fit(key: str, data: Any) -> Any:
        if data is not None:
            _require_fit(arrays, key, bytes(data.as_numpy_array()[:4096]), len(data), src)
        return data

    class CheckedFolder(LocalStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            data = await super().get(key, prototype, byte_range)
            return data if byte_range is not None else require_fit(key, data)

        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
            data = super().get_sync(key, prototype=prototype, byte_range=byte_range)
            return data if byte_range is not None else require_fit(key, data)

    class CheckedZip(ZipStore):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            data = await super().get(key, prototype, byte_range)
            return data if byte_range is not None else require_fit(key, data)

    return CheckedZip(src, read_only=True) if src.is_file() else CheckedFolder(src, read_only=True)


def stored_bytes(src: Path, folder: str) -> dict[str, int]:
    """The files under `folder`, relative to it, with their sizes as they are stored."""
    if src.is_dir():
        files = ((p, p.lstat()) for p in (src / folder).rglob("*"))
        return {
            p.relative_to(src / folder).as_posix(): s.st_size for p, s in files if stat.S_ISREG(s.st_mode)
        }
    with zipfile.ZipFile(src) as file:
        return {
            i.filename.removeprefix(f"{folder}/"): i.compress_size
            for i in file.infolist()
            if i.filename.startswith(f"{folder}/")
        }


def _described(src: Path) -> dict[str, Described]:
    """Path of each array → its description. Raises StoreError if it would be unsafe to open `src`."""
    if not src.exists():
        raise StoreError(f"there is no replay buffer at {src}")
    try:
        return {name: d for name, meta in _descriptions(src) if (d := _array(meta, f"{src}: {name}"))}
    except StoreError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{src} cannot be read as a replay buffer: {reason}") from None
    except (RecursionError, OverflowError):
        raise StoreError(f"{src} cannot be read as a replay buffer: its descriptions are absurd") from None


def _array(meta: Mapping[str, Any], what: str) -> Described | None:
    if "shape" not in meta:
        return None
    kind = str(meta.get("dtype") or meta.get("data_type"))
    names = [str(c.get("id") or c.get("name")) for c in _all_codecs(meta)]
    if "O" in kind or "object" in kind or "pickle" in names:
        raise StoreError(f"{what} holds Python objects, which could run anything when they are read: refused")
    if odd := set(names) - CODECS:
        raise StoreError(f"{what} is stored with {min(odd)}, which is not read here")
    chunks = meta["chunks"] if "chunks" in meta else meta["chunk_grid"]["configuration"]["chunk_shape"]
    if (
        any(n < 0 for n in (*chunks, *meta["shape"]))
        or math.prod(chunks) * 8 > MOST_BYTES
        or math.prod(meta["shape"]) > 1 << 42
    ):
        raise StoreError(
            f"{what} has a shape of {meta['shape']} in chunks of {chunks}, which is no robot's data"
        )
    last = meta.get("compressor") or next(
        (c for c in reversed(meta.get("codecs") or meta.get("filters") or []) if _name(c) not in CHECKSUMS),
        {},
    )
    if _name(last) != "sharding_indexed":
        return Described(_name(last), WIDEST * math.prod(chunks) + 4096, 0, slice(0))
    inside = last["configuration"]
    index_codecs = [_name(c) for c in inside.get("index_codecs", [])]
    if "sharding_indexed" in names[names.index("sharding_indexed") + 1 :] or index_codecs[:1] != ["bytes"]:
        raise StoreError(f"{what} has shards of a kind that is not read here")
    count = math.prod(-(-a // b) for a, b in zip(chunks, inside["chunk_shape"], strict=True))
    size = 16 * count + 4 * (len(index_codecs) - 1)
    codecs = [c for c in inside["codecs"] if _name(c) not in CHECKSUMS]
    index = slice(0, size) if inside.get("index_location") == "start" else slice(-size, None)
    most = WIDEST * math.prod(inside["chunk_shape"]) + 4096
    return Described(_name(codecs[-1]) if codecs else "", most, count, index)


def _name(codec: Mapping[str, Any]) -> str:
    return str(codec.get("id") or codec.get("name") or "")


def _all_codecs(meta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    codecs = [meta.get("compressor"), *(meta.get("filters") or [])]
    for codec in meta.get("codecs") or []:
        codecs.append(codec)
        codecs += (codec.get("configuration") or {}).get("codecs", [])
    return [c for c in codecs if c]


def _descriptions(src: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(array, its .zarray or zarr.json) of every array."""
    if src.is_dir():
        for path in src.rglob("*"):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise StoreError(
                    f"{src}: {path.relative_to(src)} is a link, which could lead out of the folder: refused"
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StoreError(f"{src}: {path.relative_to(src)} is no regular file: refused")
            if path.name in (".zarray", "zarr.json"):
                if path.stat().st_size > MOST_META_BYTES:
                    raise StoreError(f"{path} is too long for the description of an array: refused")
                yield path.parent.relative_to(src).as_posix(), json_object(path)
        return
    with zipfile.ZipFile(src) as file:
        infos = file.infolist()
        if len(infos) > MOST_FILES:
            raise StoreError(f"{src} holds {len(infos)} files: refused")
        # overlapping files unfold to more than there is, too
        require_believable(sum(i.file_size for i in infos), src.stat().st_size, str(src))
        for info in infos:
            is_description = info.filename.endswith((".zarray", "zarr.json"))
            if info.file_size > (MOST_META_BYTES if is_description else MOST_BYTES):
                raise StoreError(f"{src}: {info.filename} would unpack to {info.file_size} bytes: refused")
            if is_description and not is_litter(info.filename):
                yield info.filename.rpartition("/")[0], json.loads(file.read(info).decode("utf-8-sig"))


def _require_fit(arrays: Mapping[str, Described], key: str, head: bytes, length: int, src: Path) -> None:
    """Raise StoreError where the chunk `key`, of `length` bytes that begin with `head`, says that it is
    larger than the array's chunks are."""
    name = key
    while name and name not in arrays:
        name = name.rpartition("/")[0]
    array = arrays.get(name)
    if array is None or array.shard or key.endswith((".zarray", ".zattrs", ".zgroup", "zarr.json")):
        return
    _require_size(f"{src}: the chunk {key}", array, head, length)


def _require_shards_fit(src: Path, name: str, array: Described) -> None:
    """The same for the chunks in each file of an array with shards."""
    for key in stored_bytes(src, name):
        if key.endswith("zarr.json") or is_litter(key):
            continue
        if src.is_dir():
            data = np.memmap(src / name / key, np.uint8, "r") if (src / name / key).stat().st_size else b""
        else:
            with zipfile.ZipFile(src) as file:
                data = file.read(f"{name}/{key}")
        index = bytes(data[array.index])[: 16 * array.shard]
        places = np.frombuffer(index[: len(index) // 16 * 16], "<u8").reshape(-1, 2)
        for start, length in places.tolist():
            if start < len(data):  # elsewhere, or nowhere, where it is all zeros: zarr says so
                head = bytes(data[start : start + min(length, 4096)])
                _require_size(f"{src}: a chunk in {name}/{key}", array, head, length)


def _require_size(what: str, array: Described, head: bytes, length: int) -> None:
    if (stated := _stated_size(head, array.codec)) is None:
        raise StoreError(f"{what} does not say how large it is: refused")
    size = length if array.codec in ("", "bytes") else stated
    if size > array.most:
        raise StoreError(
            f"{what} would unfold to {size} bytes, more than the {array.most} of its array: refused"
        )


def _stated_size(head: bytes, codec: str) -> int | None:
    """Bytes that a chunk says it unfolds to; 0 where its codec has no such thing, or it is damaged, which the
    codec says best. None: it may say so, and does not."""
    if codec == "blosc":
        return int.from_bytes(head[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(head[:4], "little")
    if codec == "zstd":
        return _zstd_size(head)
    if codec == "imagecodecs_jpegxl":
        height, width = _jpegxl_size(head)
        return 3 * height * width
    if codec in ("imagecodecs_jpeg", "imagecodecs_png", "imagecodecs_webp", "imagecodecs_jpeg2k"):
        try:
            picture = still_picture(head, "")
        except StoreError as error:
            return None if "pixels" in str(error) else 0  # a bomb; or else damaged
        return 3 * picture.height * picture.width
    return 0


def _zstd_size(head: bytes) -> int | None:
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 5:
        return 0
    kind, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    width = (1 if single else 0, 2, 4, 8)[kind]
    at = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    if not width:
        return None
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _jpegxl_size(head: bytes) -> tuple[int, int]:
    """(height, width); (0, 0) where there is no JPEG XL."""
    at = head.find(b"\xff\x0a", 0, 2)
    if at < 0 and head[4:8] == b"JXL ":  # in a container of boxes
        at = head.find(b"\xff\x0a", 8)
    if at < 0:
        return 0, 0
    bits = int.from_bytes(head[at + 2 : at + 14].ljust(12, b"\0"), "little")

    def take(n: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << n) - 1), bits >> n
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return height, side()
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * over // under
