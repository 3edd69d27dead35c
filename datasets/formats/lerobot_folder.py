"""What stands in the `meta/` of a LeRobot folder, of format v2.0 and v2.1 (one parquet and one video an
episode) or v3.0 (many episodes a file). Nothing in it is believed: paths stay inside the folder, counts are
bounded by the files that are there.

GR00T's `meta/modality.json` (repository NVIDIA/Isaac-GR00T, "data preparation") names slices of state and
action, the videos, and the columns that say the task."""

from __future__ import annotations

import itertools
import json
import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..episode import StoreError
from ..features import ACTION, STATE
from .foreign_files import Root, json_object, json_objects, whole, without_litter
from .lerobot_export import ATTRIBUTES
from .parquet import column_names, read, row_count

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
DATA_PATH_V3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH_V3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
MOST_EPISODES = 5_000_000
MOST_FEATURES = 2000
MOST_MISSING = 10_000  # episodes that are said to be there, and are not
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


@dataclass(frozen=True)
class EpisodeSource:
    """One episode. shared: its parquet file holds others too. length: rows it should have, where that is
    recorded. videos: the feature's name in LeRobot → file, and from when to when the episode lasts in it, in
    seconds; absent where the folder does not say."""

    index: int
    table: Path
    shared: bool
    length: int | None
    videos: dict[str, tuple[Path, float, float]]
    attrs: dict[str, Any] = field(default_factory=dict)  # from our own export


@dataclass(frozen=True)
class Modality:
    """GR00T's words. slices: column → (name, first element, the one behind the last). joins: our key →
    columns that make it up. task_columns: those that say the task. videos: features that it names as such."""

    slices: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    joins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    task_columns: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()


class LeRobotFolder:
    """The folder `path`, with its header read. Raises StoreError.

    version: (2, 0), (2, 1) or (3, 0). features: as in info.json, by name. fps: rows a second."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise StoreError(f"there is no folder {path}")
        self.path, self.root = path, Root(path)
        file = path / "meta" / "info.json"
        if not file.exists():
            what = (
                "is empty"
                if not any(path.iterdir())
                else "is not a LeRobot dataset: it has no meta/info.json"
            )
            raise StoreError(f"{path} {what}")
        self.root.require_file(file)
        self.info = json_object(file)
        try:
            said, fps, features = self.info["codebase_version"], self.info["fps"], self.info["features"]
            self.features: dict[str, dict[str, Any]] = dict(features)
            self.fps = float(fps)
        except MALFORMED as error:
            raise StoreError(f"{file} cannot be used: {why(error)}") from None
        match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.\d+)?", str(said))
        self.version = (int(match[1]), int(match[2])) if match else (0, 0)
        if self.version not in ((2, 0), (2, 1), (3, 0)):
            raise StoreError(
                f"{path} has LeRobot format {str(said)[:20]}; v2.0, v2.1 and v3.0 can be read: convert it "
                "with LeRobot's own converter first"
            )
        if not 0 < self.fps < math.inf:
            raise StoreError(f"{file} cannot be used: fps is {fps}")
        if not 0 < len(self.features) <= MOST_FEATURES:
            raise StoreError(f"{file} cannot be used: it names {len(self.features)} features")
        if odd := [n for n, f in self.features.items() if not isinstance(f, dict)]:
            raise StoreError(f"{file} cannot be used: its feature {odd[0]!r} is no JSON object")
        self.robot = str(self.info.get("robot_type") or "")

    def episodes(self, videos: Sequence[str]) -> list[EpisodeSource]:
        """All episodes in their order, with the files of the features `videos`. Files may be missing."""
        reader = self._episodes_v30 if self.version == (3, 0) else self._episodes_v2
        try:
            sources = sorted(reader(videos), key=lambda s: s.index)
        except (OSError, RecursionError, *MALFORMED) as error:
            if str(self.path) in str(error):
                raise StoreError(str(error)) from None
            raise StoreError(
                f"the list of episodes in {self.path / 'meta'} cannot be used: {why(error)}"
            ) from None
        if not sources:
            raise StoreError(f"{self.path} holds no episode")
        if twice := [a.index for a, b in itertools.pairwise(sources) if a.index == b.index]:
            raise StoreError(f"the list of episodes in {self.path / 'meta'} has episode {twice[0]} twice")
        return sources

    def tasks(self) -> dict[int, str]:
        """Index → the instruction in words."""
        lines, table = self.path / "meta" / "tasks.jsonl", self.path / "meta" / "tasks.parquet"
        try:
            if table.is_file():
                self.root.require_file(table)
                rows: list[dict[str, Any]] = read(table).to_pylist()
            elif lines.is_file():
                self.root.require_file(lines)
                rows = json_objects(lines)
            else:
                return {}
            # pandas keeps the task, which is the index, in a column of this name
            return {
                whole(r["task_index"], "task_index"): str(r.get("task", r.get("__index_level_0__", "")))
                for r in rows
            }
        except (OSError, *MALFORMED) as error:
            raise StoreError(f"the tasks of {self.path} cannot be read: {why(error)}") from None

    def modality(self) -> Modality | None:
        """What `meta/modality.json` says, None where there is none."""
        file = self.path / "meta" / "modality.json"
        if not file.is_file():
            return None
        self.root.require_file(file)
        try:
            return _modality(json_object(file), self.features)
        except MALFORMED as error:
            raise StoreError(f"{file} cannot be used: {why(error)}") from None

    def require_files(self, source: EpisodeSource, videos: Sequence[str]) -> None:
        """Raise StoreError unless the episode's files are there, inside the folder, and no pointers."""
        missing = [v for v in videos if v not in source.videos]
        if missing:
            raise StoreError(f"episode {source.index}: meta/ does not say where its video of {missing[0]} is")
        for path in (source.table, *(source.videos[v][0] for v in videos)):
            try:
                self.root.require_file(path)
            except StoreError as error:
                hint = (
                    f"; without the videos it comes in with --drop '{videos[0]}'"
                    if path != source.table and "missing" in str(error)
                    else ""
                )
                raise StoreError(f"episode {source.index}: {error}{hint}") from None

    def _episodes_v2(self, videos: Sequence[str]) -> Iterator[EpisodeSource]:
        path = self.path / "meta" / "episodes.jsonl"
        if path.is_file():
            self.root.require_file(path)
            lengths = {
                whole(e["episode_index"], "episode_index"): whole(e["length"], "length")
                for e in json_objects(path)
            }
        else:
            count = whole(self.info["total_episodes"], "total_episodes")
            tables = sum(1 for _ in without_litter(self.path, (self.path / "data").glob("**/*.parquet")))
            if count > MOST_MISSING + 2 * tables:  # those that are missing are told one by one
                raise StoreError(
                    f"{self.path} says it has {count} episodes, but {tables} parquet files lie in its data/"
                )
            lengths = dict.fromkeys(range(count))
        chunk = whole(self.info.get("chunks_size", 1000), "chunks_size") or 1000
        data, video = (self.info.get(k, d) for k, d in (("data_path", DATA_PATH), ("video_path", VIDEO_PATH)))
        for i, length in sorted(lengths.items()):
            at = {"episode_chunk": i // chunk, "episode_index": i}
            paths = {k: (self._file("video_path", video, at, k), 0.0, math.inf) for k in videos}
            yield EpisodeSource(i, self._file("data_path", data, at), False, length, paths)

    def _episodes_v30(self, videos: Sequence[str]) -> Iterator[EpisodeSource]:
        folder = self.path / "meta" / "episodes"
        data, video = (
            self.info.get(k, d) for k, d in (("data_path", DATA_PATH_V3), ("video_path", VIDEO_PATH_V3))
        )
        for table in sorted(without_litter(self.path, folder.glob("**/*.parquet"))):
            self.root.require_file(table)
            if (rows := row_count(table)) > MOST_EPISODES:
                raise StoreError(f"{table} lists {rows} episodes: refused")
            available = column_names(table)
            parts = [f"videos/{k}/{p}" for k in videos for p in ("chunk_index", "file_index")]
            parts += [f"videos/{k}/{p}_timestamp" for k in videos for p in ("from", "to")]
            names = ["episode_index", "length", "data/chunk_index", "data/file_index", *parts, ATTRIBUTES]
            for e in read(table, [n for n in names if n in available]).to_pylist():
                paths = {}
                for k in videos:
                    if e.get(f"videos/{k}/file_index") is None:
                        continue
                    at = {p: whole(e[f"videos/{k}/{p}"], p) for p in ("chunk_index", "file_index")}
                    span = float(e[f"videos/{k}/from_timestamp"]), float(e[f"videos/{k}/to_timestamp"])
                    if not 0 <= span[0] < span[1] < math.inf:
                        raise StoreError(f"{table}: the video of {k} lasts from {span[0]} to {span[1]} s")
                    paths[k] = (self._file("video_path", video, at, k), *span)
                at = {p: whole(e[f"data/{p}"], p) for p in ("chunk_index", "file_index")}
                yield EpisodeSource(
                    whole(e["episode_index"], "episode_index"),
                    self._file("data_path", data, at),
                    True,
                    whole(e["length"], "length"),
                    paths,
                    _attributes(e.get(ATTRIBUTES)),
                )

    def _file(self, name: str, template: Any, numbers: Mapping[str, int], video: str | None = None) -> Path:
        """The file that a template of info.json names. Only plain placeholders are filled in, and the path
        leads down."""
        values = {**numbers, **({} if video is None else {"video_key": video})}
        where = f"{self.path / 'meta' / 'info.json'}: {name} is {str(template)[:80]!r}"
        if not isinstance(template, str) or len(template) > 1000:
            raise StoreError(f"{where}, which is no path")
        text = ""
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise StoreError(f"{where}, which is no path: {error}") from None
        for literal, key, form, conversion in pieces:
            text += literal
            if key is None:
                continue
            plain = re.fullmatch(r"(0?\d{1,2})?d?" if isinstance(values.get(key), int) else "", form or "")
            if key not in values or plain is None or conversion is not None:
                raise StoreError(
                    f"{where}; only {', '.join('{' + v + '}' for v in values)} can be filled in, with a "
                    "width like :06d for numbers"
                )
            text += format(values[key], form or "")
        relative = Path(text)
        if relative.is_absolute() or ".." in relative.parts or "\0" in text:
            raise StoreError(f"{where}, which leads out of the folder: refused")
        return self.path / relative


def why(error: Exception) -> str:
    """What is wrong with a description that is not as it must be."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _attributes(text: Any) -> dict[str, Any]:
    attrs = json.loads(text or "{}")
    if not isinstance(attrs, dict):
        raise StoreError(f"{ATTRIBUTES} must hold JSON objects")
    kinds = {"task": str, "agent": str, "notes": list, "success": bool | None}
    if odd := [k for k, kind in kinds.items() if k in attrs and not isinstance(attrs[k], kind)]:
        raise StoreError(f"{ATTRIBUTES}: {odd[0]} cannot be {str(attrs[odd[0]])[:40]!r}")
    return {**attrs, "notes": [str(n) for n in attrs["notes"]]} if "notes" in attrs else attrs


def _modality(said: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]]) -> Modality:
    slices: dict[str, list[tuple[str, int, int]]] = {}
    joins: dict[str, list[str]] = {}
    for group, key in (("state", STATE), ("action", ACTION)):
        parts = sorted(dict(said.get(group) or {}).items(), key=lambda p: whole(p[1]["start"], "start"))
        for name, part in parts:
            column = str(part.get("original_key") or key)
            start, stop = whole(part["start"], "start"), whole(part["end"], "end")
            if column not in features:
                continue  # of a later version of the data
            width = math.prod(whole(n, "shape") for n in features[column]["shape"])
            if not start < stop <= width:
                raise StoreError(f"{group}.{name} is {start}…{stop}, but {column} has {width} elements")
            slices.setdefault(column, []).append((str(name), start, stop))
            joins.setdefault(key, []).append(column)
    tasks = []
    for name, part in dict(said.get("annotation") or {}).items():
        column = str((part or {}).get("original_key") or f"annotation.{name}")
        if column in features and (
            "task_description" in column or "instruction" in column or column == "task_index"
        ):
            tasks.append(column)
    named = dict(said.get("video") or {}).items()
    videos = tuple(str((part or {}).get("original_key") or name) for name, part in named)
    return Modality(slices, {k: tuple(dict.fromkeys(v)) for k, v in joins.items()}, tuple(tasks), videos)
