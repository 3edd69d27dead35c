"""Reads episodes of a LeRobot folder: their rows, by pyarrow, and where in the videos each row's frame is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, REQUESTED, Feature, is_frames
from ..units import Restated
from ..video import Picture, require_frames, time_shift, video_header
from .lerobot_export import FLAGS, REQUEST, TIMES
from .lerobot_folder import EpisodeSource, LeRobotFolder
from .lerobot_schema import BOOKKEEPING, TEXT_TASKS, ULNA_COLUMNS, Schema, require_size
from .naming import join_rows
from .parquet import column_names, episode_rows, read, row_count, vector

SCALAR = Feature((), "float64")
MOST_SHARED_ROWS = 1_000_000
MOST_SECONDS = 9e9  # as int64 in nanoseconds


class LeRobotReader:
    """Reads episodes of one folder."""

    def __init__(
        self,
        folder: LeRobotFolder,
        schema: Schema,
        restated: Restated,
        tasks: dict[int, str],
        image_size: tuple[int, int] | None,
    ) -> None:
        self.folder, self.schema, self.restated = folder, schema, restated
        self.tasks, self.image_size = tasks, image_size
        self._headers: dict[Path, tuple[Picture, np.ndarray | None]] = {}
        self._shared: tuple[Path, Any] | None = None  # the last table of several episodes

    def require_whole(self, source: EpisodeSource) -> None:
        """Raise StoreError unless everything of the episode is there and fits, as far as can be told without
        decoding pictures."""
        self.folder.require_files(source, self.schema.videos)
        place = place_of(source)
        table = self.table(source, place, with_stills=False)
        times = self.times(table, source, place)
        self.vectors(table, place)
        for name in self.schema.videos:
            self.frame_count(source, name, times, place)

    def table(self, source: EpisodeSource, place: str, with_stills: bool) -> Any:
        """The episode's rows, of the columns that are used."""
        available = column_names(source.table)
        stills = {n for n in self.schema.pictures if n not in self.schema.videos}
        names = [n for v in self.schema.parts.values() for n in v if n not in self.schema.videos]
        if missing := [k for k in (*names, "timestamp") if k not in available]:
            raise StoreError(f"{place} has no column {missing[0]}")
        if not source.shared:
            _require_length(source, row_count(source.table), place)
        used = (*names, *BOOKKEEPING, *ULNA_COLUMNS, *self.schema.task_columns, *TEXT_TASKS)
        columns = [c for c in available if c in used and (with_stills or c not in stills)]
        if not source.shared:
            return read(source.table, columns)
        if stills.intersection(columns) or row_count(source.table) > MOST_SHARED_ROWS:
            return read(source.table, columns, source.index)
        if self._shared is None or self._shared[0] != source.table:  # its rows may lie in one group
            self._shared = (source.table, read(source.table, columns))
        return episode_rows(source.table, self._shared[1], source.index)

    def times(self, table: Any, source: EpisodeSource, place: str) -> np.ndarray:
        times = vector(table, "timestamp", SCALAR, place)
        _require_length(source, len(times), place)
        if len(late := np.flatnonzero(np.diff(times) <= 0)):
            raise StoreError(
                f"{place}: the timestamp of row {late[0] + 1} is not after that of the row before"
            )
        if np.abs(times[[0, -1]]).max() > MOST_SECONDS:
            raise StoreError(f"{place}: its timestamps reach {np.abs(times).max():g} s")
        return times

    def vectors(self, table: Any, place: str) -> dict[str, np.ndarray]:
        vectors = {}
        for key, names in self.schema.parts.items():
            if not is_frames(key):
                blocks = [vector(table, n, self.schema.columns[n], place) for n in names]
                vectors[key] = self.restated.values(key, join_rows(blocks, self.schema.features[key]))
        return vectors

    def frame_count(self, source: EpisodeSource, name: str, times: np.ndarray, place: str) -> int | None:
        """How many frames the episode has in the video of a feature, None where the video does not tell."""
        path, start, stop = source.videos[name]
        picture, frames_s = self.header(path, place)
        require_size(place, name, picture, self.schema.pictures[name], bool(self.image_size))
        if frames_s is None:
            return None
        at = start + times - self.shift(source, name, times, place)
        return require_frames(path, frames_s, at, stop, self.folder.fps, place)

    def shift(self, source: EpisodeSource, name: str, times: np.ndarray, place: str) -> float:
        """How much later the rows' times are than those of their frames, in seconds."""
        path, start, stop = source.videos[name]
        frames_s = self.header(path, place)[1]
        return 0.0 if frames_s is None else time_shift(frames_s, start + times, start, stop, self.folder.fps)

    def header(self, path: Path, place: str) -> tuple[Picture, np.ndarray | None]:
        """`video_header` of a file, for which all of it is read once."""
        if path not in self._headers:
            self._headers[path] = video_header(path, place)
        return self._headers[path]

    def wordings(self, table: Any, place: str) -> list[str]:
        """The instructions of the episode, in the order of their rows."""
        for name in (*self.schema.task_columns, "task_index", *TEXT_TASKS):
            if name not in table.column_names:
                continue
            if name in TEXT_TASKS or self.schema.columns.get(name, SCALAR).dtype == "string":
                words = [str(w) for w in table[name].to_pylist() if w]
            else:
                indices = vector(table, name, Feature((), "int64"), place).tolist()
                words = [self.tasks.get(i, "") for i in dict.fromkeys(indices)]
            if any(words):
                return list(dict.fromkeys(words))
        return []

    def attrs(self, source: EpisodeSource, table: Any, place: str) -> dict[str, Any]:
        """What an episode says of itself: those that our own export wrote, and its task. Without `success`,
        unless it was exported with one."""
        attrs = {k: v for k, v in source.attrs.items() if k not in ("content", "edit", "dropped")}
        if isinstance(limits := attrs.get("limits"), dict):
            attrs["limits"] = self.restated.limits(self.schema.features[ACTION].names, limits)
        wordings = self.wordings(table, place)
        if len(wordings) > 1:
            others = ", ".join(map(repr, wordings[1:]))
            note = f"the task changes within the episode, and only the first is kept, not {others}"
            attrs["notes"] = [*(attrs.get("notes") or ()), note]
        # LeRobot does not record who acted: mostly people, but also scripts and policies
        return {"task": wordings[0] if wordings else "", "agent": "", **attrs, "source_episode": source.index}


def place_of(source: EpisodeSource) -> str:
    return f"episode {source.index} ({source.table.name})"


def _require_length(source: EpisodeSource, rows: int, place: str) -> None:
    if rows == 0:
        raise StoreError(f"{place} has no rows")
    if source.length is not None and rows != source.length:
        raise StoreError(f"{place} has {rows} rows, but meta/ says {source.length}")


def success_of(table: Any) -> bool | None:
    if "next.success" not in table.column_names:
        return None
    return bool(np.any(table["next.success"].to_numpy()))


@dataclass(frozen=True)
class UlnaColumns:
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


def ulna_columns(table: Any, schema: Schema, restated: Restated, place: str) -> UlnaColumns:
    keys_by_name = {name: key for key, names in schema.parts.items() for name in names}
    keys = [keys_by_name.get(k, k) for k in schema.timed_names]
    count = len(keys)
    requests = (
        vector(table, REQUEST, schema.features[ACTION], place) if REQUEST in table.column_names else None
    )
    return UlnaColumns(
        keys,
        vector(table, TIMES, Feature((2 * count,), "int64"), place),
        vector(table, FLAGS, Feature((count,), "int64"), place),
        None if requests is None else restated.values(REQUESTED, requests),
    )
