"""Imports LeRobot datasets: format v2.0 and v2.1 (one parquet and one video per episode) and v3.0 (many
episodes per file).

Reads the files with pyarrow and PyAV; LeRobot itself is not imported. Every row keeps its recorded timestamp,
and has a video frame of its own, the one at its time; where that is impossible the import says so. All
episodes are looked through before anything is written, so that all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import StoreError
from ..features import ACTION, REQUESTED, Feature, is_frames
from ..making import making
from ..recording.writer import EpisodeWriter
from ..store import EpisodeStore
from ..units import Restate, Restated, plain
from ..video import (
    Picture,
    require_frames,
    resize,
    still_frames,
    time_shift,
    video_frames,
    video_header,
)
from .broken import Broken
from .importing import add_provenance
from .lerobot_export import FLAGS, REQUEST, TIMES
from .lerobot_folder import EpisodeSource, LeRobotFolder
from .lerobot_schema import BOOKKEEPING, TEXT_TASKS, ULNA_COLUMNS, Schema, require_size, schema_of
from .naming import Naming, join_rows
from .parquet import column_names, episode_rows, read, row_count, vector

SCALAR = Feature((), "float64")
MOST_SHARED_ROWS = 1_000_000
MOST_SECONDS = 9e9  # as int64 in nanoseconds


def import_lerobot(
    src: str | Path,
    dst: str | Path,
    image_size: tuple[int, int] | None = None,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    naming: Naming | None = None,
    skip_broken: bool = False,
    restate: Restate = plain,
) -> EpisodeStore:
    """Bring the LeRobot folder `src` into a new store at `dst`, which appears whole or not at all.

    image_size: (height, width) to resize images to by area; as recorded by default. episodes: indices, all by
    default. naming: what its features become, and what stays out. skip_broken: leave episodes out that cannot
    be imported, instead of failing. restate: what its vectors are to be called and measured in; `.pos` drops
    from names in any case. Kept: the numeric observations, images, 16-bit depth, actions, tasks,
    success where it is recorded; t_capture_ns is the timestamp column (LeRobot writes frame_index / fps
    unless the recorder knew better). What is not kept, what was assumed and what stayed out is listed in the
    store's provenance. Raises StoreError that tells everything that is wrong."""
    src, dst = Path(src), Path(dst)
    folder = LeRobotFolder(src)
    sources = folder.episodes([n for n, f in folder.features.items() if f.get("dtype") == "video"])
    if episodes is not None:
        if unknown := sorted(set(episodes) - {s.index for s in sources}):
            raise StoreError(f"{src} has no episode {unknown[0]}; it has {len(sources)}")
        sources = [s for s in sources if s.index in set(episodes)]
    schema = schema_of(folder, sources, naming or Naming(), image_size)
    restated = restate(schema.features, folder.robot)
    features = restated.features(schema.features)
    reader = _Reader(folder, schema, restated, folder.tasks(), image_size)
    broken = Broken(len(sources), skip_broken)
    for source in sources:
        try:
            reader.require_whole(source)
        except StoreError as error:
            broken.add(source.index, error)
    broken.require()
    with making(dst) as work:
        provenance = {
            "imported_from": str(src),
            "format": f"lerobot v{folder.version[0]}.{folder.version[1]}",
            **schema.notes,
            **restated.notes,
        }
        store = EpisodeStore.create(work, features, folder.fps, folder.robot, provenance)
        with EpisodeWriter(store) as writer:
            for index, source in enumerate(sources):
                try:
                    if source.index not in broken.errors:
                        reader.write(source, writer)
                except StoreError as error:  # in what only decoding shows
                    broken.add(source.index, error)
                progress(index + 1, len(sources))
        broken.require()
        if broken.errors:
            add_provenance(work, {"stayed_out": broken.stayed_out()})
    return EpisodeStore.open(dst)


class _Reader:
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
        self._headers: dict[str, tuple[Path, Picture, np.ndarray | None]] = {}  # of each camera's last file
        self._shared: tuple[Path, Any] | None = None  # the last table of several episodes

    def require_whole(self, source: EpisodeSource) -> None:
        """Raise StoreError unless everything of the episode is there and fits, as far as can be told without
        decoding pictures."""
        self.folder.require_files(source, self.schema.videos)
        place = _place(source)
        table = self._table(source, place, with_stills=False)
        times = self._times(table, source, place)
        self._vectors(table, place)
        for name in self.schema.videos:
            self._frame_count(source, name, times, place)

    def write(self, source: EpisodeSource, writer: EpisodeWriter) -> None:
        """Write the episode. After a StoreError it is not in the store."""
        place, schema = _place(source), self.schema
        table = self._table(source, place, with_stills=True)
        times = self._times(table, source, place)
        vectors = self._vectors(table, place)
        notes = []
        images: dict[str, Generator[np.ndarray]] = {}
        for key in (k for k in schema.features if is_frames(k)):
            (name,) = schema.parts[key]
            # what is resized may differ from episode to episode
            picture = schema.pictures[name]
            if name in schema.videos:
                path, start, stop = source.videos[name]
                count = self._frame_count(source, name, times, place)
                if count is not None and count > len(times):
                    notes.append(
                        f"the video of {name} has {count} frames for {len(times)} rows: others are lost"
                    )
                shift = self._shift(source, name, times, place)
                if shift:
                    notes.append(
                        f"the timestamps are {shift:g} s later than the video of {name}; it has as many "
                        "frames as there are rows, and each row gets the frame of its number"
                    )
                own = self._header(name, path, place)[0] if self.image_size else picture
                images[key] = video_frames(path, start + times - shift, stop, self.folder.fps, place, own)
            else:
                images[key] = still_frames(table[name], place, None if self.image_size else picture)
        extras = _ulna_columns(table, schema, self.restated, place) if TIMES in table.column_names else None
        attrs = {k: v for k, v in source.attrs.items() if k not in ("success", "content", "edit", "dropped")}
        if isinstance(limits := attrs.get("limits"), dict):
            attrs["limits"] = self.restated.limits(schema.features[ACTION].names, limits)
        wordings = self._wordings(table, place)
        if len(wordings) > 1:
            others = ", ".join(map(repr, wordings[1:]))
            notes.append(f"the task changes within the episode, and only the first is kept, not {others}")
        if notes:
            attrs["notes"] = [*(attrs.get("notes") or ()), *notes]
        # LeRobot does not record who acted: mostly people, but also scripts and policies
        writer.start(
            {"task": wordings[0] if wordings else "", "agent": "", **attrs, "source_episode": source.index}
        )
        try:
            for row, t_ns in enumerate(np.round(times * 1e9).astype(np.int64).tolist()):
                values = {k: v[row] for k, v in vectors.items()}
                for key, frames in images.items():
                    values[key] = resize(next(frames), self.image_size)
                if extras is None:
                    writer.tick(values, dict.fromkeys(values, (t_ns, t_ns)))
                else:
                    writer.tick({**values, **extras.extra(row)}, extras.times(row), extras.flags(row))
            writer.end({"success": source.attrs.get("success", _success(table))})
        finally:
            writer.discard()
            for frames in images.values():
                frames.close()  # its video stays open otherwise

    def _table(self, source: EpisodeSource, place: str, with_stills: bool) -> Any:
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

    def _times(self, table: Any, source: EpisodeSource, place: str) -> np.ndarray:
        times = vector(table, "timestamp", SCALAR, place)
        _require_length(source, len(times), place)
        if len(late := np.flatnonzero(np.diff(times) <= 0)):
            raise StoreError(
                f"{place}: the timestamp of row {late[0] + 1} is not after that of the row before"
            )
        if np.abs(times[[0, -1]]).max() > MOST_SECONDS:
            raise StoreError(f"{place}: its timestamps reach {np.abs(times).max():g} s")
        return times

    def _vectors(self, table: Any, place: str) -> dict[str, np.ndarray]:
        vectors = {}
        for key, names in self.schema.parts.items():
            if not is_frames(key):
                blocks = [vector(table, n, self.schema.columns[n], place) for n in names]
                vectors[key] = self.restated.values(key, join_rows(blocks, self.schema.features[key]))
        return vectors

    def _frame_count(self, source: EpisodeSource, name: str, times: np.ndarray, place: str) -> int | None:
        """How many frames the episode has in the video of a feature, None where the video does not tell."""
        path, start, stop = source.videos[name]
        picture, frames_s = self._header(name, path, place)
        require_size(place, name, picture, self.schema.pictures[name], bool(self.image_size))
        if frames_s is None:
            return None
        at = start + times - self._shift(source, name, times, place)
        return require_frames(path, frames_s, at, stop, self.folder.fps, place)

    def _shift(self, source: EpisodeSource, name: str, times: np.ndarray, place: str) -> float:
        """How much later the rows' times are than those of their frames, in seconds."""
        path, start, stop = source.videos[name]
        frames_s = self._header(name, path, place)[1]
        return 0.0 if frames_s is None else time_shift(frames_s, start + times, start, stop, self.folder.fps)

    def _header(self, name: str, path: Path, place: str) -> tuple[Picture, np.ndarray | None]:
        known = self._headers.get(name)
        if known is None or known[0] != path:
            self._headers[name] = known = (path, *video_header(path, place))
        return known[1:]

    def _wordings(self, table: Any, place: str) -> list[str]:
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


def _place(source: EpisodeSource) -> str:
    return f"episode {source.index} ({source.table.name})"


def _require_length(source: EpisodeSource, rows: int, place: str) -> None:
    if rows == 0:
        raise StoreError(f"{place} has no rows")
    if source.length is not None and rows != source.length:
        raise StoreError(f"{place} has {rows} rows, but meta/ says {source.length}")


def _success(table: Any) -> bool | None:
    if "next.success" not in table.column_names:
        return None
    return bool(np.any(table["next.success"].to_numpy()))


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


def _ulna_columns(table: Any, schema: Schema, restated: Restated, place: str) -> _UlnaColumns:
    keys_by_name = {name: key for key, names in schema.parts.items() for name in names}
    keys = [keys_by_name.get(k, k) for k in schema.timed_names]
    count = len(keys)
    requests = (
        vector(table, REQUEST, schema.features[ACTION], place) if REQUEST in table.column_names else None
    )
    return _UlnaColumns(
        keys,
        vector(table, TIMES, Feature((2 * count,), "int64"), place),
        vector(table, FLAGS, Feature((count,), "int64"), place),
        None if requests is None else restated.values(REQUESTED, requests),
    )
