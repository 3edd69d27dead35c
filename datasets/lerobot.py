"""LeRobot datasets in: format v2.1 (one parquet and one video per episode) and v3.0 (many episodes per file).

Reads the files with pyarrow and PyAV; LeRobot itself is not imported. Every row keeps its recorded timestamp, and every
row has the video frame of that time, so rows equal frames or the import says where they do not.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .features import ACTION, Feature, Features, is_image
from .store import EpisodeStore, StoreError
from .writer import EpisodeWriter


@dataclass(frozen=True)
class _Source:
    """One episode: its rows in a parquet file, and for each video key a file and where in it the episode begins."""

    index: int
    table: Path
    rows: tuple[int, int] | None  # None: the whole file
    videos: dict[str, tuple[Path, float]]


def import_lerobot(
    src: str | Path,
    dst: str | Path,
    image_size: tuple[int, int] | None = None,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EpisodeStore:
    """Bring the LeRobot folder `src` into a new store at `dst`, which appears whole or not at all.

    image_size: (height, width) to resize images to by area; as recorded by default. episodes: indices, all by default.
    Kept: state and other vector observations, images, actions, tasks, success where it is recorded; t_capture_ns is the
    timestamp column (LeRobot writes frame_index / fps unless the recorder knew better). Raises StoreError.
    """
    src, dst = Path(src), Path(dst)
    info = _info(src)
    features, videos = _features(info, image_size)
    sources = _sources(src, info, videos)
    if episodes is not None:
        if unknown := sorted(set(episodes) - {s.index for s in sources}):
            raise StoreError(f"{src} has no episode {unknown[0]}; it has {len(sources)}")
        sources = [s for s in sources if s.index in set(episodes)]
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise StoreError(f"{dst} exists and is not empty: choose another folder, or remove it")
    tasks = _tasks(src, info)
    making = dst.parent / f".{dst.name}.importing-{secrets.token_hex(4)}"
    try:
        provenance = {"imported_from": str(src), "format": f"lerobot {info['codebase_version']}"}
        store = EpisodeStore.create(
            making, features, float(info["fps"]), str(info.get("robot_type") or ""), provenance
        )
        writer = EpisodeWriter(store)
        for done, source in enumerate(sources):
            _import_episode(source, features, videos, tasks, image_size, float(info["fps"]), writer)
            progress(done + 1, len(sources))
        if dst.exists():
            dst.rmdir()
        os.rename(making, dst)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return EpisodeStore.open(dst)


def _import_episode(
    source: _Source,
    features: Features,
    videos: Sequence[str],
    tasks: dict[int, str],
    image_size: tuple[int, int] | None,
    fps: float,
    writer: EpisodeWriter,
) -> None:
    where = f"episode {source.index} ({source.table.name})"
    table = _read_table(source)
    columns = set(table.column_names)
    if missing := [k for k in (*features, "timestamp") if k not in columns and k not in videos]:
        raise StoreError(f"{where} has no column {missing[0]}")
    times = np.asarray(table["timestamp"].to_numpy(), np.float64).ravel()
    if len(times) == 0:
        raise StoreError(f"{where} has no rows")
    vectors = {}
    for key, feature in features.items():
        if not is_image(key):
            values = np.stack([np.asarray(v) for v in table[key].to_numpy(zero_copy_only=False)])
            vectors[key] = values.reshape(len(times), *feature.shape).astype(feature.dtype, copy=False)
            if feature.dtype.startswith("float") and not np.isfinite(vectors[key]).all():
                bad = ~np.isfinite(vectors[key]).reshape(len(times), -1).all(1)
                raise StoreError(f"{where}: {key} is not finite in frame {int(np.flatnonzero(bad)[0])}")
    images: dict[str, Iterator[np.ndarray]] = {}
    for key in features:
        if key in videos:
            path, start = source.videos[key]
            images[key] = _video_frames(path, start + times, fps, where)
        elif is_image(key):
            images[key] = _still_frames(table[key], where)
    task = tasks.get(int(table["task_index"][0].as_py()), "") if "task_index" in columns else ""
    writer.start({"task": task, "agent": "human", "source_episode": source.index})
    try:
        for row, t in enumerate(times):
            t_ns = round(float(t) * 1e9)
            values = {k: v[row] for k, v in vectors.items()}
            for key, frames in images.items():
                values[key] = _resize(next(frames), image_size)
            writer.tick(values, dict.fromkeys(features, (t_ns, t_ns)))
        success = bool(np.any(table["next.success"].to_numpy())) if "next.success" in columns else None
        writer.end({"success": success})
    finally:
        writer.discard()


def _info(src: Path) -> dict[str, Any]:
    if not src.is_dir():
        raise StoreError(f"there is no folder {src}")
    try:
        info = json.loads((src / "meta" / "info.json").read_text())
        version, _ = info["codebase_version"], float(info["fps"])
        info["features"][ACTION]
    except FileNotFoundError:
        what = "is empty" if not any(src.iterdir()) else "is not a LeRobot dataset: it has no meta/info.json"
        raise StoreError(f"{src} {what}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{src / 'meta' / 'info.json'} cannot be used: {error!r}") from None
    if version not in ("v2.1", "v3.0"):
        raise StoreError(
            f"{src} has LeRobot format {version}; v2.1 and v3.0 can be read: convert it with LeRobot's own converter first"
        )
    return info


def _features(info: dict[str, Any], image_size: tuple[int, int] | None) -> tuple[Features, list[str]]:
    """Ours, and which of them are videos."""
    features: Features = {}
    videos = []
    for key, f in info["features"].items():
        if not (key.startswith("observation.") or key == ACTION) or f["dtype"] == "string":
            continue
        shape = tuple(int(n) for n in f["shape"])
        if f["dtype"] in ("video", "image"):
            height, width = shape[1:] if shape[0] == 3 and shape[-1] != 3 else shape[:2]
            key_ours = key if is_image(key) else f"observation.images.{key.rsplit('.', 1)[-1]}"
            if key_ours != key:
                raise StoreError(f"the image feature {key} is not under observation.images.: rename it first")
            features[key] = Feature((*(image_size or (height, width)), 3), "uint8")
            if f["dtype"] == "video":
                videos.append(key)
        elif len(shape) == 1:
            names = tuple(_flat(f.get("names")))
            features[key] = Feature(shape, f["dtype"], names if len(names) == shape[0] else ())
    return features, videos


def _flat(names: Any) -> list[str]:
    """LeRobot has had names as a list, a list in a list, and a dict of lists."""
    if isinstance(names, dict):
        return [n for v in names.values() for n in _flat(v)]
    if isinstance(names, list):
        return [n for v in names for n in _flat(v)]
    return [] if names is None else [str(names)]


def _sources(src: Path, info: dict[str, Any], videos: Sequence[str]) -> list[_Source]:
    if info["codebase_version"] == "v2.1":
        found = []
        for i in range(int(info["total_episodes"])):
            at = {"episode_chunk": i // int(info.get("chunks_size", 1000)), "episode_index": i}
            paths = {k: (src / info["video_path"].format(video_key=k, **at), 0.0) for k in videos}
            found.append(_Source(i, src / info["data_path"].format(**at), None, paths))
    else:
        found = []
        tables = sorted((src / "meta" / "episodes").glob("**/*.parquet"))
        for e in [row for path in tables for row in _parquet(path).to_pylist()]:
            at = {"chunk_index": e["data/chunk_index"], "file_index": e["data/file_index"]}
            paths = {}
            for k in videos:
                part = {f: e[f"videos/{k}/{f}"] for f in ("chunk_index", "file_index")}
                path = src / info["video_path"].format(video_key=k, **part)
                paths[k] = (path, float(e[f"videos/{k}/from_timestamp"]))
            rows = int(e["dataset_from_index"]), int(e["dataset_to_index"])
            found.append(_Source(int(e["episode_index"]), src / info["data_path"].format(**at), rows, paths))
        found.sort(key=lambda s: s.index)
    if not found:
        raise StoreError(f"{src} holds no episode")
    for source in found:
        for path in (source.table, *(p for p, _ in source.videos.values())):
            if not path.is_file():
                raise StoreError(f"episode {source.index}: the file {path} is missing")
    return found


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


def _read_table(source: _Source) -> Any:
    table = _parquet(source.table)
    if source.rows is None:
        return table
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["episode_index"], source.index))  # type: ignore[attr-defined]


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is not a readable parquet file ({reason}): copy it again") from None


def _video_frames(path: Path, times_s: np.ndarray, fps: float, where: str) -> Iterator[np.ndarray]:
    """The frame `(H, W, 3)` uint8 RGB shown at each of the ascending `times_s` of the file's own time line."""
    import av
    from av.error import FFmpegError

    half = 0.5 / fps
    row = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if (
                times_s[0] > 1.0 and stream.time_base is not None
            ):  # many episodes share the file: start near ours
                container.seek(int((times_s[0] - 0.5) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                while (
                    row < len(times_s) and frame.time is not None and abs(frame.time - times_s[row]) <= half
                ):
                    row += 1
                    yield frame.to_ndarray(format="rgb24")
                if row == len(times_s):
                    return
    except FFmpegError as error:
        raise StoreError(f"{where}: the video {path} cannot be decoded ({error.strerror})") from None
    except IndexError:
        raise StoreError(f"{where}: {path} holds no video") from None
    raise StoreError(
        f"{where}: the video {path} has no frame for row {row} at {times_s[row]:.3f} s; it has fewer frames than the "
        f"{len(times_s)} rows"
    )


def _still_frames(column: Any, where: str) -> Iterator[np.ndarray]:
    import cv2

    for row, value in enumerate(column):
        d = value.as_py()
        data = d.get("bytes") if isinstance(d, dict) else d
        image = (
            cv2.imdecode(np.frombuffer(io.BytesIO(data or b"").getvalue(), np.uint8), cv2.IMREAD_COLOR)
            if data
            else None
        )
        if image is None:
            raise StoreError(f"{where}: the image of row {row} cannot be decoded")
        yield image[..., ::-1]


def _resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or image.shape[:2] == size:
        return image
    import cv2

    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
