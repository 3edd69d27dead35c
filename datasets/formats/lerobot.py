"""Imports LeRobot datasets: format v2.1 (one parquet and one video per episode) and v3.0 (many episodes per
file).

Reads the files with pyarrow and PyAV; LeRobot itself is not imported. Every row keeps its recorded timestamp,
and has a video frame of its own, the one at its time; where that is impossible the import says so."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError, require_finite
from ..features import ACTION, IMAGES, REQUESTED, Feature, Features, is_image
from ..making import making
from ..recording.writer import EpisodeWriter
from ..store import EpisodeStore
from ..units import Restate, Restated, plain
from ..video import resize, still_frames, video_frames
from .lerobot_export import ATTRIBUTES, FLAGS, REQUEST, TIMES, UNITS


@dataclass(frozen=True)
class _EpisodeSource:
    """One episode. shared: its parquet file holds others too. length: rows it should have, where that is
    recorded. videos: the feature's name in LeRobot → file, and from when to when the episode lasts in it, in
    seconds."""

    index: int
    table: Path
    shared: bool
    length: int | None
    videos: dict[str, tuple[Path, float, float]]
    attrs: dict[str, Any] = field(default_factory=dict)  # from our own export


@dataclass(frozen=True)
class _Schema:
    """features: ours. lerobot_names: our key → name in LeRobot. videos: those names that are videos.
    left_out: names that are not imported. timed_names: the streams whose times our own export carries."""

    features: Features
    lerobot_names: dict[str, str]
    videos: tuple[str, ...]
    left_out: tuple[str, ...]
    timed_names: tuple[str, ...] = ()


def import_lerobot(
    src: str | Path,
    dst: str | Path,
    image_size: tuple[int, int] | None = None,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring the LeRobot folder `src` into a new store at `dst`, which appears whole or not at all.

    image_size: (height, width) to resize images to by area; as recorded by default. episodes: indices, all by
    default. Kept: the numeric observations, images, actions, tasks, success where it is recorded;
    t_capture_ns is the timestamp column (LeRobot writes frame_index / fps unless the recorder knew better).
    restate: what its vectors are to be called and measured in; `.pos` drops from names in any case. Features
    that are not kept, such as depth videos and rewards, are listed in the store's provenance. Raises
    StoreError."""
    src, dst = Path(src), Path(dst)
    info = _info(src)
    schema = _schema(info, image_size)
    sources = _sources(src, info, schema.videos)
    if episodes is not None:
        if unknown := sorted(set(episodes) - {s.index for s in sources}):
            raise StoreError(f"{src} has no episode {unknown[0]}; it has {len(sources)}")
        sources = [s for s in sources if s.index in set(episodes)]
    for source in sources:
        for path in (source.table, *(p for p, _, _ in source.videos.values())):
            if not path.is_file():
                raise StoreError(f"episode {source.index}: the file {path} is missing")
    tasks = _tasks(src, info)
    robot = str(info.get("robot_type") or "")
    restated = restate(schema.features, robot)
    provenance = {
        "imported_from": str(src),
        "format": f"lerobot {info['codebase_version']}",
        "renamed": {t: k for k, t in schema.lerobot_names.items() if t != k},
        "left_out": list(schema.left_out),
        **restated.notes,
    }
    with making(dst) as work:
        store = EpisodeStore.create(
            work, restated.features(schema.features), float(info["fps"]), robot, provenance
        )
        with EpisodeWriter(store) as writer:
            for index, source in enumerate(sources):
                _import_episode(source, schema, restated, tasks, image_size, float(info["fps"]), writer)
                progress(index + 1, len(sources))
    return EpisodeStore.open(dst)


def _import_episode(
    source: _EpisodeSource,
    schema: _Schema,
    restated: Restated,
    tasks: dict[int, str],
    image_size: tuple[int, int] | None,
    fps: float,
    writer: EpisodeWriter,
) -> None:
    place = f"episode {source.index} ({source.table.name})"
    table = _rows(source, schema, place)
    times = _vector(table, "timestamp", Feature((), "float64"), place)
    if len(times) == 0:
        raise StoreError(f"{place} has no rows")
    if source.length is not None and len(times) != source.length:
        raise StoreError(f"{place} has {len(times)} rows, but meta/ says {source.length}")
    if len(late := np.flatnonzero(np.diff(times) <= 0)):
        raise StoreError(f"{place}: the timestamp of row {late[0] + 1} is not after that of the row before")
    vectors: dict[str, np.ndarray] = {}
    images: dict[str, Generator[np.ndarray]] = {}
    for key, feature in schema.features.items():
        name = schema.lerobot_names[key]
        if name in schema.videos:
            path, start, stop = source.videos[name]
            images[key] = video_frames(path, start + times, stop, fps, place)
        elif is_image(key):
            images[key] = still_frames(table[name], place)
        else:
            vectors[key] = restated.values(key, _vector(table, name, feature, place))
    columns = set(table.column_names)
    wordings = []  # of its tasks, in order
    if "task_index" in columns:
        indices = _vector(table, "task_index", Feature((), "int64"), place)
        wordings = list(dict.fromkeys(tasks.get(i, "") for i in dict.fromkeys(indices.tolist())))
    success = bool(np.any(table["next.success"].to_numpy())) if "next.success" in columns else None
    times_ns = np.round(times * 1e9).astype(np.int64).tolist()
    # LeRobot does not record who acted: mostly people, but also scripts and policies
    extras = _ulna_columns(table, schema, restated, place) if TIMES in columns else None
    attrs = {k: v for k, v in source.attrs.items() if k not in ("success", "content", "edit", "dropped")}
    if len(wordings) > 1:
        others = ", ".join(map(repr, wordings[1:]))
        attrs["notes"] = [
            *(attrs.get("notes") or ()),
            f"the task changes within the episode, and only the first is kept, not {others}",
        ]
    writer.start(
        {"task": wordings[0] if wordings else "", "agent": "", **attrs, "source_episode": source.index}
    )
    try:
        for row, t_ns in enumerate(times_ns):
            values = {k: v[row] for k, v in vectors.items()}
            for key, frames in images.items():
                values[key] = resize(next(frames), image_size)
            if extras is None:
                writer.tick(values, dict.fromkeys(values, (t_ns, t_ns)))
            else:
                writer.tick({**values, **extras.extra(row)}, extras.times(row), extras.flags(row))
        writer.end({"success": source.attrs.get("success", success)})
    finally:
        writer.discard()
        for frames in images.values():
            frames.close()  # its video stays open otherwise


@dataclass(frozen=True)
class _UlnaColumns:
    """The columns that our own export adds to LeRobot's."""

    keys: list[str]
    times_ns: np.ndarray
    marks: np.ndarray
    requests: np.ndarray | None

    def times(self, row: int) -> dict[str, tuple[int, int]]:
        pairs = self.times_ns[row].reshape(-1, 2).tolist()
        times = {k: (int(c), int(r)) for k, (c, r) in zip(self.keys, pairs, strict=True)}
        return {**times, REQUESTED: times[ACTION]}

    def flags(self, row: int) -> dict[str, int]:
        return {k: int(m) for k, m in zip(self.keys, self.marks[row].tolist(), strict=True) if m}

    def extra(self, row: int) -> dict[str, np.ndarray]:
        return {} if self.requests is None else {REQUESTED: self.requests[row]}


def _ulna_columns(table: Any, schema: _Schema, restated: Restated, place: str) -> _UlnaColumns:
    keys_by_name = {name: key for key, name in schema.lerobot_names.items()}
    keys = [keys_by_name.get(k, k) for k in schema.timed_names]
    count = len(keys)
    requests = (
        _vector(table, REQUEST, schema.features[ACTION], place) if REQUEST in table.column_names else None
    )
    return _UlnaColumns(
        keys,
        _vector(table, TIMES, Feature((2 * count,), "int64"), place),
        _vector(table, FLAGS, Feature((count,), "int64"), place),
        None if requests is None else restated.values(REQUESTED, requests),
    )


def _info(src: Path) -> dict[str, Any]:
    if not src.is_dir():
        raise StoreError(f"there is no folder {src}")
    path = src / "meta" / "info.json"
    try:
        info = json.loads(path.read_text())
        version, fps, features = info["codebase_version"], float(info["fps"]), dict(info["features"])
    except FileNotFoundError:
        what = "is empty" if not any(src.iterdir()) else "is not a LeRobot dataset: it has no meta/info.json"
        raise StoreError(f"{src} {what}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be used: {error!r}") from None
    if version not in ("v2.1", "v3.0"):
        raise StoreError(
            f"{src} has LeRobot format {version}; v2.1 and v3.0 can be read: convert it with LeRobot's own "
            "converter first"
        )
    if ACTION not in features:
        raise StoreError(f"{src} has no feature {ACTION!r}; it has {', '.join(features) or 'none'}")
    if not 0 < fps < math.inf:
        raise StoreError(f"{path} cannot be used: fps is {fps}")
    return info


BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.success")
ULNA_COLUMNS = (TIMES, FLAGS, REQUEST)  # of our own export


def _schema(info: dict[str, Any], image_size: tuple[int, int] | None) -> _Schema:
    features: Features = {}
    lerobot_names: dict[str, str] = {}
    left_out = []
    try:
        for name, f in info["features"].items():
            key, feature = _feature(name, f, image_size)
            if feature is not None and key in features:
                raise StoreError(
                    f"the features {lerobot_names[key]} and {name} would both be {key}: rename one"
                )
            if feature is not None:
                features[key], lerobot_names[key] = feature, name
            elif name not in (*BOOKKEEPING, *ULNA_COLUMNS):
                left_out.append(name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"a feature in meta/info.json cannot be understood: {error!r}") from None
    videos = tuple(t for t in lerobot_names.values() if info["features"][t]["dtype"] == "video")
    timed_names = _flat((info["features"].get(FLAGS) or {}).get("names"))
    return _Schema(features, lerobot_names, videos, tuple(left_out), tuple(timed_names))


def _feature(name: str, f: dict[str, Any], image_size: tuple[int, int] | None) -> tuple[str, Feature | None]:
    """(our key, our feature). The feature is None for what a store cannot hold: text, rewards, depth as
    video."""
    if not (name.startswith("observation.") or name == ACTION):
        return name, None
    shape, names = tuple(int(n) for n in f["shape"]), _flat(f.get("names"))
    if f["dtype"] in ("video", "image"):
        video_info = {**(f.get("video_info") or {}), **(f.get("info") or {})}
        if video_info.get("is_depth_map") or video_info.get("video.is_depth_map"):
            return name, None
        channels_first = names[0].startswith("channel") if names else shape[0] == 3 and shape[-1] != 3
        height, width = shape[1:] if channels_first else shape[:2]
        key = name if is_image(name) else IMAGES + name.rsplit(".", 1)[-1]
        return key, Feature((*(image_size or (height, width)), 3), "uint8")
    try:
        numeric = np.dtype(f["dtype"]).kind in "fiub"
    except TypeError:
        numeric = False
    if not numeric or is_image(name):
        return name, None
    size, units = math.prod(shape), tuple(map(str, (f.get("info") or {}).get(UNITS) or ()))
    return name, Feature(
        shape, f["dtype"], tuple(names) if len(names) == size else (), units if len(units) == size else ()
    )


def _flat(names: Any) -> list[str]:
    """Names as a list; LeRobot has had them as a list, nested lists, a dict of lists, and a dict of
    positions."""
    if isinstance(names, dict):
        if names and all(isinstance(v, int) for v in names.values()):
            return sorted(names, key=lambda n: names[n])
        return [n for v in names.values() for n in _flat(v)]
    if isinstance(names, list):
        return [n for v in names for n in _flat(v)]
    return [] if names is None else [str(names)]


def _sources(src: Path, info: dict[str, Any], videos: Sequence[str]) -> list[_EpisodeSource]:
    reader = _sources_v21 if info["codebase_version"] == "v2.1" else _sources_v30
    try:
        sources = sorted(reader(src, info, videos), key=lambda s: s.index)
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the list of episodes in {src / 'meta'} cannot be used: {error!r}") from None
    if not sources:
        raise StoreError(f"{src} holds no episode")
    return sources


def _sources_v21(src: Path, info: dict[str, Any], videos: Sequence[str]) -> Iterator[_EpisodeSource]:
    path = src / "meta" / "episodes.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    lengths = {int(e["episode_index"]): int(e["length"]) for e in map(json.loads, filter(None, lines))}
    for i in sorted(lengths) or range(int(info["total_episodes"])):
        at = {"episode_chunk": i // int(info.get("chunks_size", 1000)), "episode_index": i}
        paths = {k: (src / info["video_path"].format(video_key=k, **at), 0.0, math.inf) for k in videos}
        yield _EpisodeSource(i, src / info["data_path"].format(**at), False, lengths.get(i), paths)


def _sources_v30(src: Path, info: dict[str, Any], videos: Sequence[str]) -> Iterator[_EpisodeSource]:
    for table in sorted((src / "meta" / "episodes").glob("**/*.parquet")):
        names = [n for n in _columns(table) if not n.startswith("stats/")]
        for e in _parquet(table, names).to_pylist():
            paths = {}
            for k in videos:
                path = src / info["video_path"].format(
                    video_key=k,
                    chunk_index=e[f"videos/{k}/chunk_index"],
                    file_index=e[f"videos/{k}/file_index"],
                )
                span = float(e[f"videos/{k}/from_timestamp"]), float(e[f"videos/{k}/to_timestamp"])
                paths[k] = (path, *span)
            at = {"chunk_index": e["data/chunk_index"], "file_index": e["data/file_index"]}
            data = src / info["data_path"].format(**at)
            attrs = json.loads(e.get(ATTRIBUTES) or "{}")
            yield _EpisodeSource(int(e["episode_index"]), data, True, int(e["length"]), paths, attrs)


def _tasks(src: Path, info: dict[str, Any]) -> dict[int, str]:
    try:
        if info["codebase_version"] == "v2.1":
            lines = (src / "meta" / "tasks.jsonl").read_text().splitlines()
            return {int(d["task_index"]): str(d["task"]) for d in map(json.loads, filter(None, lines))}
        rows = _parquet(src / "meta" / "tasks.parquet").to_pylist()
        # pandas keeps the task, which is the index, in a column of this name
        return {int(d["task_index"]): str(d.get("task", d.get("__index_level_0__", ""))) for d in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"the tasks of {src} cannot be read: {error!r}") from None


def _rows(source: _EpisodeSource, schema: _Schema, place: str) -> Any:
    """The episode's rows, of the columns that are used."""
    available = _columns(source.table)
    names = [t for t in schema.lerobot_names.values() if t not in schema.videos]
    if missing := [k for k in (*names, "timestamp") if k not in available]:
        raise StoreError(f"{place} has no column {missing[0]}")
    columns = [c for c in available if c in (*names, *BOOKKEEPING, *ULNA_COLUMNS)]
    return _parquet(source.table, columns, source.index if source.shared else None)


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.read_schema(path).names


def _parquet(path: Path, columns: Sequence[str] | None = None, episode: int | None = None) -> Any:
    """The table in `path`, or only its rows of one episode."""
    import pyarrow.parquet as pq

    only = None if episode is None else [("episode_index", "==", episode)]
    with _readable(path):
        return pq.read_table(path, columns=None if columns is None else list(columns), filters=only)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is not a readable parquet file ({reason}): copy it again") from None


def _vector(table: Any, name: str, feature: Feature, place: str) -> np.ndarray:
    """A column as `(T, *shape)` in the feature's dtype. Raises StoreError if the conversion is not exact;
    only floats may be rounded to the declared dtype."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = table[name].combine_chunks()
    while not pa.types.is_primitive(array.type):
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            if len(pc.unique(pc.list_value_length(array))) > 1:  # type: ignore[attr-defined]
                raise StoreError(f"{place}: the rows of {name} differ in length, or some are missing")
            array = array.flatten()
        elif pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            raise StoreError(f"{place}: {name} holds {array.type}, not numbers")
    if array.null_count or len(array) != len(table) * math.prod(feature.shape):
        raise StoreError(f"{place}: {name} has not {math.prod(feature.shape)} numbers in every row")
    values = array.to_numpy(zero_copy_only=False).reshape(len(table), *feature.shape)
    with np.errstate(all="ignore"):
        cast = values.astype(feature.dtype, copy=False)
        exact = np.array_equal(cast.astype(values.dtype), values)
    if not exact and not values.dtype.kind == cast.dtype.kind == "f":
        raise StoreError(
            f"{place}: {name} holds {array.type}, which is not the {feature.dtype} of meta/info.json"
        )
    require_finite(place, name, cast)
    return cast
