"""Imports replay buffers of Diffusion Policy and UMI: `data/<key>` `(N, ...)` and `meta/episode_ends`, zarr
v2 in a folder or a zip.

The layout is that of diffusion_policy/common/replay_buffer.py (repository real-stanford/diffusion_policy);
UMI's keys are those of real-stanford/universal_manipulation_interface. A zip is read where it is and never
unpacked. Before zarr opens an array its description is checked: objects, which zarr would unpickle, codecs
that are not known and absurd sizes are refused."""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, STATE, Feature, Features
from ..store import EpisodeStore
from ..units import Restate, plain
from .importing import MOST_BYTES, ForeignEpisode, Read, as_image, build, key_for, require_control_hz

CODECS = {
    # not zlib, gzip, bz2, lzma: their chunks of some kilobytes could become gigabytes; these state their size
    *("blosc", "zstd", "lz4", "delta", "shuffle", "crc32", "crc32c", "adler32"),
    *("bytes", "transpose", "sharding_indexed", "fixedscaleoffset", "astype", "packbits"),
    *(f"imagecodecs_{n}" for n in ("jpegxl", "jpeg2k", "jpeg", "jpegls", "jpegxr", "png", "webp", "delta")),
}
MOST_EPISODES = 1_000_000
POSE = ("eef_pos", "eef_rot_axis_angle", "gripper_width")  # UMI, of each robot<i>_
POSE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "width")
POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "m")


def is_replay_buffer(path: Path) -> bool:
    """Whether a folder or file looks like one."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir() and (path / "data").is_dir()
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(n.startswith("meta/episode_ends/") for n in file.namelist())


def import_replay_buffer(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    renames: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring the replay buffer `src` into a new store at `dst`. Raises StoreError.

    `action` and images keep their names, `state` is observation.state, all else observation.<key>. Of UMI,
    which stores no actions, observation.state is each gripper's position, rotation (axis-angle) and width,
    and the action of a row is the state of the next one. renames: key in the buffer → key here."""
    src, dst, renames = Path(src), Path(dst), dict(renames or {})
    _require_safe(src)
    import zarr
    from imagecodecs.numcodecs import register_codecs
    from zarr.storage import ZipStore

    register_codecs(verbose=False)
    store: Any = ZipStore(src, read_only=True) if src.is_file() else str(src)
    try:
        group: Any = zarr.open_group(store, mode="r", use_consolidated=False)
        if group["meta/episode_ends"].shape[0] > MOST_EPISODES:
            raise StoreError(f"{src}: it says it has {group['meta/episode_ends'].shape[0]} episodes")
        ends = np.asarray(group["meta/episode_ends"][:]).astype(np.int64).ravel()
        arrays = {k: a for k, a in group["data"].arrays()}
    except StoreError:
        raise
    except Exception as error:  # zarr raises whatever its codecs raise
        raise StoreError(f"{src} cannot be read as a replay buffer: {error}") from error
    if not arrays or not len(ends):
        raise StoreError(f"{src} holds no data" if not arrays else f"{src} holds no episode")
    rows = min(a.shape[0] for a in arrays.values())
    if (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > rows:
        raise StoreError(
            f"{src}: its episode_ends must grow up to the {rows} rows of its data; they are "
            f"{_abbreviate(ends)}"
        )
    features, columns, notes = _columns(arrays, renames, src)
    bounds = [(int(a), int(b)) for a, b in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True) if b > a]
    if not bounds:
        raise StoreError(f"{src} holds no episode with a row")
    gap_notes: dict[int, list[str]] = {}
    # zarr may leave out chunks of zeros, so a missing chunk may be lost, or all zeros
    for key, array in sorted(arrays.items()):
        for i in _with_gaps(array, _file_names(src, f"data/{key}"), bounds):
            gap_notes.setdefault(i, []).append(
                f"chunks of {key} are not in the source and read as {array.fill_value}"
            )
    if empty := len(ends) - len(bounds):
        notes["empty_episodes_left_out"] = empty

    def episodes() -> Iterator[ForeignEpisode]:
        for i, (start, stop) in enumerate(bounds):
            yield ForeignEpisode(
                stop - start,
                {k: _span(read, start, stop, src, k) for k, read in columns.items()},
                {"task": task, "agent": "", **({"notes": gap_notes[i]} if i in gap_notes else {})},
            )

    provenance = {"imported_from": str(src), "format": "diffusion policy replay buffer", **notes}
    try:
        return build(
            dst,
            features,
            require_control_hz(control_hz, None, src),
            "",
            provenance,
            episodes(),
            image_size,
            progress,
            len(bounds),
            restate,
        )
    finally:
        if src.is_file():
            store.close()


# rows [start, stop) of the buffer, of an episode that ends before the third number
Rows = Callable[[int, int, int], np.ndarray]


def _columns(
    arrays: Mapping[str, Any], renames: Mapping[str, str], src: Path
) -> tuple[Features, dict[str, Rows], dict[str, Any]]:
    """(our features, functions that read their rows, notes for the provenance)."""
    if unknown := [k for k in renames if k not in arrays]:
        raise StoreError(f"{src} has no array {unknown[0]}; it has {', '.join(arrays)}")
    features: Features = {}
    columns: dict[str, Rows] = {}
    notes: dict[str, Any] = {"renamed": {}}
    grippers = [
        k.removesuffix(POSE[0]) for k in sorted(arrays) if k.startswith("robot") and k.endswith(POSE[0])
    ]
    umi = ACTION not in arrays and "actions" not in arrays and grippers
    pose_keys: set[str] = set()
    if umi:
        parts = [arrays[g + p] for g in grippers for p in POSE if g + p in arrays]
        pose_keys = {g + p for g in grippers for p in POSE}
        width = sum(math.prod(a.shape[1:]) for a in parts)
        names = tuple(g + n for g in grippers for n in POSE_NAMES)
        has_poses = width == len(names)
        features[STATE] = features[ACTION] = Feature(
            (width,), "float32", names if has_poses else (), POSE_UNITS * len(grippers) if has_poses else ()
        )
        columns[STATE] = lambda a, b, _: _concatenate(parts, a, b)
        columns[ACTION] = lambda a, b, end: _concatenate(parts, np.minimum(np.arange(a + 1, b + 1), end - 1))
        notes["action"] = "the state of the next row: the buffer holds none"
    for key, array in arrays.items():
        if key in pose_keys:
            continue
        image = array.ndim == 4 and array.shape[-1] == 3
        name = key_for(key, renames, image)
        if name in features:
            raise StoreError(f"{src}: two arrays would be called {name}: rename one with --map")
        if image:
            features[name] = Feature(tuple(array.shape[1:]), "uint8")
            columns[name] = lambda a, b, _, array=array, key=key: as_image(
                np.asarray(array[a:b]), f"{src}: {key}"
            )
        elif array.dtype.kind in "fiub":
            shape = tuple(array.shape[1:]) or (1,)
            features[name] = Feature(shape, array.dtype.newbyteorder("=").name)
            columns[name] = lambda a, b, _, array=array, shape=shape: np.asarray(array[a:b]).reshape(
                -1, *shape
            )
        else:
            raise StoreError(f"{src}: {key} holds {array.dtype}, not numbers")
        notes["renamed"][key] = name
    if ACTION not in features:
        raise StoreError(
            f"{src} has no array action; it has {', '.join(arrays)}: name it with --map KEY=action"
        )
    return features, columns, notes


def _concatenate(parts: list[Any], start: int | np.ndarray, stop: int | None = None) -> np.ndarray:
    """Rows of several arrays side by side, float32."""
    if stop is None:
        rows = np.asarray(start)
        low = int(rows.min())
        blocks = [np.asarray(a[low : int(rows.max()) + 1])[rows - low] for a in parts]
    else:
        blocks = [np.asarray(a[start:stop]) for a in parts]
    with np.errstate(over="ignore"):  # the writer refuses what is then not finite
        return np.concatenate([f.reshape(len(f), -1) for f in blocks], 1).astype(np.float32)


def _span(read: Rows, start: int, stop: int, src: Path, key: str) -> Read:
    def rows(a: int, b: int) -> np.ndarray:
        try:
            return read(start + a, start + b, stop)
        except StoreError:
            raise
        except Exception as error:  # zarr raises whatever its codecs raise
            raise StoreError(
                f"{src}: rows {start + a} to {start + b} of {key} cannot be read: {error}"
            ) from error

    return rows


def _file_names(src: Path, folder: str) -> list[str]:
    """The files under `folder`, relative to it."""
    if src.is_dir():
        return [p.relative_to(src / folder).as_posix() for p in (src / folder).rglob("*") if p.is_file()]
    with zipfile.ZipFile(src) as file:
        return [n.removeprefix(f"{folder}/") for n in file.namelist() if n.startswith(f"{folder}/")]


def _with_gaps(array: Any, files: Iterable[str], bounds: Sequence[tuple[int, int]]) -> list[int]:
    """The indices of `bounds` (first row, row behind the last) of which a chunk (or shard) is missing among
    `files`."""
    size = [max(1, n) for n in array.shards or array.chunks]
    counts = [-(-n // c) for n, c in zip(array.shape, size, strict=True)]
    keys = {
        tuple(map(int, re.findall(r"\d+", n))) for n in files if re.fullmatch(r"(c[./])?\d+([./]\d+)*", n)
    }
    chunk_places = [k[0] for k in keys if len(k) == len(counts) and all(map(operator.lt, k, counts))]
    first, side = np.sort(np.array(chunk_places, np.int64)), math.prod(counts[1:])
    indices = []
    for i, (start, stop) in enumerate(bounds):
        low, high = start // size[0], (stop - 1) // size[0] + 1
        a, b = np.searchsorted(first, [low, high])
        if b - a < (high - low) * side:
            indices.append(i)
    return indices


def _require_safe(src: Path) -> None:
    """Raise StoreError if it would be unsafe to open `src` with zarr."""
    if not src.exists():
        raise StoreError(f"there is no replay buffer at {src}")
    try:
        for name, text in _descriptions(src):
            meta = json.loads(text)
            if "shape" not in meta:
                continue
            kind = str(meta.get("dtype") or meta.get("data_type"))
            codecs = {c.get("id") or c.get("name") for c in _all_codecs(meta) if c}
            if "O" in kind or "object" in kind or "pickle" in codecs:
                raise StoreError(
                    f"{src}: {name} holds Python objects, which could run anything when they are read: "
                    "refused"
                )
            if odd := codecs - CODECS:
                raise StoreError(f"{src}: {name} is stored with {min(map(str, odd))}, which is not read here")
            chunks = (
                meta["chunks"] if "chunks" in meta else meta["chunk_grid"]["configuration"]["chunk_shape"]
            )
            if math.prod(chunks) * 8 > MOST_BYTES or math.prod(meta["shape"]) > 1 << 42:
                raise StoreError(
                    f"{src}: {name} has a shape of {meta['shape']} in chunks of {chunks}, which is no "
                    "robot's "
                    "data"
                )
    except StoreError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{src} cannot be read as a replay buffer: {reason}") from None


def _all_codecs(meta: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    codecs = [meta.get("compressor"), *(meta.get("filters") or [])]
    for codec in meta.get("codecs") or []:
        codecs.append(codec)
        codecs += (codec.get("configuration") or {}).get("codecs", [])
    return [c for c in codecs if c]


def _descriptions(src: Path) -> Iterator[tuple[str, str]]:
    """(array, its .zarray or zarr.json) of every array."""
    if src.is_dir():
        if links := [p for p in src.rglob("*") if p.is_symlink()]:
            raise StoreError(
                f"{src}: {links[0].relative_to(src)} is a link, which could lead out of the folder: refused"
            )
        for path in (*src.rglob(".zarray"), *src.rglob("zarr.json")):
            yield str(path.parent.relative_to(src)), path.read_text()
        return
    with zipfile.ZipFile(src) as file:
        for info in file.infolist():
            if info.file_size > MOST_BYTES:
                raise StoreError(f"{src}: {info.filename} would unpack to {info.file_size} bytes: refused")
            if info.filename.endswith((".zarray", "zarr.json")):
                yield info.filename, file.read(info).decode()


def _abbreviate(ends: np.ndarray) -> str:
    text = ", ".join(map(str, ends[:6].tolist()))
    return text + (", …" if len(ends) > 6 else "")
