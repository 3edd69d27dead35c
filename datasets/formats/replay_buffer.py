"""Imports replay buffers of Diffusion Policy and UMI: `data/<key>` `(N, ...)` and `meta/episode_ends`, zarr
v2 in a folder or a zip.

The layout is that of diffusion_policy/common/replay_buffer.py (repository real-stanford/diffusion_policy);
UMI's keys are those of real-stanford/universal_manipulation_interface. A zip is read where it is and never
unpacked."""

from __future__ import annotations

import math
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, STATE, Feature, Features, is_image
from ..store import EpisodeStore
from ..units import Restate, plain
from .foreign_files import is_litter
from .foreign_zarr import open_store, stored_bytes
from .importing import (
    ForeignEpisode,
    ImageOrder,
    Read,
    as_image,
    build,
    require_believable,
    require_control_hz,
)
from .naming import Kind, Naming, join_rows, joined, place

MOST_EPISODES = 1_000_000
POSE_ELEMENTS = {  # UMI, of each robot<i>_
    "eef_pos": (("x", "y", "z"), "m"),
    "eef_rot_axis_angle": (("rx", "ry", "rz"), "rad"),
    "gripper_width": (("width",), "m"),
}


def is_replay_buffer(path: Path) -> bool:
    """Whether a folder or file looks like one."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir() and (path / "data").is_dir()
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return _top(file.namelist()) is not None


def import_replay_buffer(
    src: str | Path,
    dst: str | Path,
    control_hz: float | None = None,
    task: str = "",
    naming: Naming | None = None,
    image_size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    image_order: ImageOrder = "auto",
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring the replay buffer `src` into a new store at `dst`. Raises StoreError.

    `action` and images keep their names, `state` is observation.state, all else observation.<key>. Of UMI,
    which stores no actions, observation.state is each gripper's position, rotation (axis-angle) and width,
    and the action of a row is the state of the next one. naming: of the arrays of `data/`."""
    src, dst = Path(src), Path(dst)
    store: Any = open_store(src)
    import zarr
    from imagecodecs.numcodecs import register_codecs

    register_codecs(verbose=False)
    try:
        top = _top_of(src)
        group: Any = zarr.open_group(store, mode="r", use_consolidated=False, path=top.rstrip("/") or None)
        if group["meta/episode_ends"].shape[0] > MOST_EPISODES:
            raise StoreError(f"{src}: it says it has {group['meta/episode_ends'].shape[0]} episodes")
        ends = np.asarray(group["meta/episode_ends"][:]).astype(np.int64).ravel()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of litter beside the arrays
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
    features, columns, notes = _columns(arrays, naming or Naming(), src, image_order == "bgr")
    if image_order != "auto":
        notes["image_order"] = f"{image_order}, as given"
    bounds = [(int(a), int(b)) for a, b in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True) if b > a]
    if not bounds:
        raise StoreError(f"{src} holds no episode with a row")
    files = {k: stored_bytes(src, f"{top}data/{k}") for k in sorted(arrays)}
    for key, array in arrays.items():
        if key not in notes["left_out"]:
            size = math.prod(array.shape) * array.dtype.itemsize
            require_believable(size, sum(files[key].values()), f"{src}: {key}")
    gap_notes: dict[int, list[str]] = {}
    # zarr may leave out chunks of zeros, so a missing chunk may be lost, or all zeros
    for key, array in sorted(arrays.items()):
        for i in _with_gaps(array, files[key], bounds):
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
    arrays: Mapping[str, Any], naming: Naming, src: Path, swapped: bool
) -> tuple[Features, dict[str, Rows], dict[str, Any]]:
    """(our features, functions that read their rows, notes for the provenance). swapped: images are BGR."""
    order = -1 if swapped else 1
    poses = [k for g in _grippers(arrays) for p in POSE_ELEMENTS if (k := g + p) in arrays]
    holds_action = ACTION in arrays or "actions" in arrays or ACTION in naming.renames.values()
    umi = bool(poses) and not holds_action
    known = {STATE: poses} if umi else {STATE: ["state"]} if STATE not in arrays else {}
    placement = place({k: _kind(a) for k, a in arrays.items()}, naming, str(src), known, not umi)
    features: Features = {}
    columns: dict[str, Rows] = {}
    for key, names in placement.parts.items():
        parts = [arrays[n] for n in names]
        if is_image(key):
            features[key] = Feature(tuple(parts[0].shape[1:]), "uint8")
            columns[key] = lambda a, b, _, array=parts[0], name=names[0]: as_image(
                np.asarray(array[a:b]), f"{src}: {name}"
            )[..., ::order]
            continue
        own = {n: _feature(n, a) for n, a in zip(names, parts, strict=True)}
        features[key] = feature = joined(own)
        columns[key] = lambda a, b, _, parts=parts, feature=feature: join_rows(
            [np.asarray(p[a:b]) for p in parts], feature
        )
    notes = placement.notes
    if umi and STATE in features:
        feature, parts = features[STATE], [arrays[n] for n in placement.parts[STATE]]
        features[ACTION] = feature
        columns[ACTION] = lambda a, b, end: _next_rows(parts, a, b, end, feature)
        notes["action"] = "the state of the next row: the buffer holds none"
    return features, columns, notes


def _grippers(arrays: Mapping[str, Any]) -> list[str]:
    return [
        k.removesuffix("eef_pos") for k in sorted(arrays) if k.startswith("robot") and k.endswith("eef_pos")
    ]


def _kind(array: Any) -> Kind:
    if array.ndim == 4 and array.shape[-1] == 3 and array.dtype.kind in "fiub":
        return "image"
    return "vector" if array.dtype.kind in "fiub" else "other"


def _feature(name: str, array: Any) -> Feature:
    shape, dtype = tuple(array.shape[1:]) or (1,), array.dtype.newbyteorder("=").name
    for part, (names, unit) in POSE_ELEMENTS.items():
        if name.startswith("robot") and name.endswith(f"_{part}") and shape == (len(names),):
            robot = name.removesuffix(part)
            return Feature(shape, dtype, tuple(robot + n for n in names), (unit,) * len(names))
    return Feature(shape, dtype)


def _next_rows(parts: list[Any], start: int, stop: int, end: int, feature: Feature) -> np.ndarray:
    """Rows [start + 1, stop + 1) of arrays side by side; the last row of an episode stands for the one
    behind it."""
    rows = join_rows([np.asarray(p[start + 1 : min(stop + 1, end)]) for p in parts], feature)
    last = join_rows([np.asarray(p[end - 1 : end]) for p in parts], feature)
    return rows if stop < end else np.concatenate([rows, last])


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


def _top_of(src: Path) -> str:
    if src.is_dir():
        return ""
    with zipfile.ZipFile(src) as file:
        return _top(file.namelist()) or ""


def _top(names: Iterable[str]) -> str | None:
    """The folder in a zip that holds the buffer, "" or like `buffer.zarr/`; None where none does."""
    tops = [
        n[: n.index("meta/episode_ends/")] for n in names if "meta/episode_ends/" in n and not is_litter(n)
    ]
    return min(tops, key=len, default=None)


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


def _abbreviate(ends: np.ndarray) -> str:
    text = ", ".join(map(str, ends[:6].tolist()))
    return text + (", …" if len(ends) > 6 else "")
