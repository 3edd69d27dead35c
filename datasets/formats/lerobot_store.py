"""A LeRobot folder read where it is, as if it were a store: nothing is copied, and only what is asked for is
read. Parquet is read an episode at a time and its numbers are kept; pictures are decoded as they are read.

It may lie in the hub's cache, with some of its files not there yet: `fetch` brings a file when it is first
needed. Only `meta/` must be there from the start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..episode import Episode, StoreError
from ..features import ACTION, REQUESTED, Features, features_to_json, is_frames
from ..frames import DamagedFrames
from ..store import EpisodeStore
from ..units import plain
from ..video import LEAD_S, still_frames, video_frames
from .lerobot_export import TIMES
from .lerobot_folder import EpisodeSource, LeRobotFolder
from .lerobot_reader import LeRobotReader, place_of, success_of, ulna_columns
from .lerobot_schema import schema_of
from .naming import Naming

LEAD = 2  # frames before the one that is wanted, from which decoding begins
SKIP = 12  # frames that are decoded and passed over, sooner than looked for anew
Fetch = Callable[[Path], None]


class LeRobotStore(EpisodeStore):
    """The folder `path`, format v3.0 or v2. It cannot be written. Features are called as an import calls them
    (`.pos` drops), and measured in what the folder says, if it does.

    fetch: makes sure that a file below `path` is there. identity: what the content of `path` is known by,
    such as a commit; without one, the sizes and dates of its files count. Raises StoreError."""

    def __init__(self, path: str | Path, fetch: Fetch = lambda file: None, identity: str = "") -> None:
        folder = LeRobotFolder(Path(path))
        sources = folder.episodes([n for n, f in folder.features.items() if f.get("dtype") == "video"])
        schema = schema_of(folder, sources, Naming(), None)
        restated = plain(schema.features, folder.robot)
        self.reader = LeRobotReader(folder, schema, restated, folder.tasks(), None)
        self.fetch, self.identity = fetch, identity
        self.lead_s = min(LEAD_S, LEAD / folder.fps)
        provenance = {
            "read_from": str(path),
            "format": f"lerobot v{folder.version[0]}.{folder.version[1]}",
            **schema.notes,
            **restated.notes,
        }
        header = {
            "features": features_to_json(restated.features(schema.features)),
            "fps": folder.fps,
            "robot": folder.robot,
            "provenance": provenance,
        }
        try:
            super().__init__(Path(path), header)
        except ValueError as error:
            raise StoreError(f"{path}: {error}") from None
        self._sources = sources

    @property
    def episodes(self) -> list[Episode]:
        """All of them, in their order."""
        if self._episodes is None:
            self._episodes = [LeRobotEpisode(self, source, i) for i, source in enumerate(self._sources)]
        return self._episodes

    def require_files(self) -> None:
        """Raise StoreError unless all tables and videos are there."""
        for source in self._sources:
            self.reader.folder.require_files(source, self.reader.schema.videos)

    def reopen(self, e: Episode) -> Episode:
        return e


class LeRobotEpisode(Episode):
    """One episode of a `LeRobotStore`. Its rows are read when the first of them is asked for, and kept;
    pictures are not."""

    def __init__(self, store: LeRobotStore, source: EpisodeSource, index: int) -> None:
        self.store, self.source, self.index = store, source, index
        self.path, self.damage = source.table, ""
        # the rest is in the parquet file, which may not be here yet
        if source.length is not None:
            self.length = source.length

    @cached_property
    def length(self) -> int:  # type: ignore[reportIncompatibleVariableOverride]
        return len(self._rows.times_ns[ACTION][0])

    @cached_property
    def attrs(self) -> dict[str, Any]:  # type: ignore[reportIncompatibleVariableOverride]
        return {"length": self.length, **self._rows.attrs}

    @property
    def task(self) -> str:  # type: ignore[reportIncompatibleVariableOverride]
        return str(self.attrs["task"])

    @property
    def interrupted(self) -> bool:
        return bool(self.source.attrs.get("interrupted"))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        requested = (REQUESTED,) if REQUESTED in self._rows.vectors else ()
        return (*self.store.features, *requested)

    @property
    def content(self) -> str:
        """A digest of its numbers and times, of where its frames are, and of the files that they are in."""
        return self._content

    @cached_property
    def _content(self) -> str:
        rows, digest = self._rows, hashlib.sha256(self.store.identity.encode())
        for key in sorted(rows.times_ns):
            for array in (*rows.times_ns[key], rows.vectors.get(key, np.zeros(0))):
                digest.update(np.ascontiguousarray(array).tobytes())
        for name, (file, start, stop) in sorted(self.source.videos.items()):
            digest.update(f"{name} {file.relative_to(self.store.path)} {start} {stop} ".encode())
        if not self.store.identity:
            files = (self.source.table, *(file for file, _, _ in self.source.videos.values()))
            for status in (f.stat() for f in files if f.exists()):
                digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        digest.update(str(self.source.index).encode())
        return digest.hexdigest()

    def rows(self, key: str) -> int:
        self._require_stream(key)
        return self.length

    def by_tick(self, key: str) -> bool | None:
        self._require_stream(key)
        return True

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        self._require_stream(key)
        if is_frames(key):
            return self.read_frames(key, range(*slice(start, stop).indices(self.length)))
        return self._rows.vectors[key][start:stop]

    def read_frames(
        self, key: str, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        with self.frame_reader(key) as reader:
            return reader.read(rows, out)

    def frame_reader(self, key: str) -> FrameDecoder:  # type: ignore[reportIncompatibleMethodOverride]
        self._require_stream(key)
        return FrameDecoder(self, key)

    def verify_frames(self, key: str) -> None:
        """Raise StoreError where a frame cannot be decoded."""
        with self.frame_reader(key) as reader:
            for row in range(self.length):
                reader.read([row])

    def times_ns(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        self._require_stream(key)
        return self._rows.times_ns[key]

    def flags(self, key: str) -> np.ndarray:
        self._require_stream(key)
        return self._rows.flags[key]

    def require_fit(self, features: Features, keys: Iterable[str]) -> None:
        """Raise StoreError unless it has as many rows as `meta/` says, and its vectors are as the features
        say. Pictures are compared when they are read."""
        for key in keys:
            self._require_stream(key)

    @property
    def seconds(self) -> np.ndarray:
        """Its timestamps `(T,)` float64."""
        return self._rows.seconds

    @cached_property
    def _rows(self) -> _Rows:
        self.store.fetch(self.source.table)
        return _read_rows(self.store.reader, self.source)

    def _require_stream(self, key: str) -> None:
        if key not in self.streams:
            raise StoreError(f"episode {self.index} has no stream {key}; it has {', '.join(self.streams)}")


class _Rows:
    """What the parquet file says of an episode, but for pictures: by stream the times in ns, flags, and the
    vectors `(T, *shape)`."""

    def __init__(self) -> None:
        self.attrs: dict[str, Any] = {}
        self.seconds = np.zeros(0)
        self.times_ns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.flags: dict[str, np.ndarray] = {}
        self.vectors: dict[str, np.ndarray] = {}


def _read_rows(reader: LeRobotReader, source: EpisodeSource) -> _Rows:
    place, schema, rows = place_of(source), reader.schema, _Rows()
    reader.folder.root.require_file(source.table)
    table = reader.table(source, place, with_stills=False)
    rows.seconds = reader.times(table, source, place)
    rows.vectors = reader.vectors(table, place)
    rows.attrs = {"success": success_of(table), **reader.attrs(source, table, place)}
    count, ns = len(rows.seconds), np.round(rows.seconds * 1e9).astype(np.int64)
    keys = list(schema.features)
    rows.times_ns = dict.fromkeys(keys, (ns, ns))
    rows.flags = {key: np.zeros(count, np.uint8) for key in keys}
    if TIMES in table.column_names:
        extras = ulna_columns(table, schema, reader.restated, place)
        for i, key in enumerate(k for k in extras.keys if k in schema.features):
            rows.times_ns[key] = (extras.times_ns[:, 2 * i], extras.times_ns[:, 2 * i + 1])
            rows.flags[key] = extras.marks[:, i].astype(np.uint8)
        if extras.requests is not None:
            rows.vectors[REQUESTED] = extras.requests
            rows.times_ns[REQUESTED], rows.flags[REQUESTED] = rows.times_ns[ACTION], np.zeros(count, np.uint8)
    return rows


class FrameDecoder:
    """The frames of one stream of an episode: `shape` `(T, H, W[, C])`, `dtype`, `read(rows)`. A video stays
    open from one call to the next, until `close`: rows that ascend are decoded in one pass."""

    def __init__(self, episode: LeRobotEpisode, key: str) -> None:
        feature = episode.store.features[key]
        self.shape, self.dtype = (episode.length, *feature.shape), np.dtype(feature.dtype)
        self.episode = episode
        (self.name,) = episode.store.reader.schema.parts[key]
        self._frames: Any = None
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
            self._frames = None

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The frames of `rows` `(N,)`, in any order. Raises StoreError."""
        rows = np.asarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a stream of {len(self)}")
        before, frame = -1, None
        for i in np.argsort(rows, kind="stable").tolist():
            row = int(rows[i])
            if row != before:
                before, frame = row, self._frame(row)
            out[i] = frame
        return out

    def read_encoded(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        raise DamagedFrames("frames of a video have no bytes of their own")

    def _frame(self, row: int) -> np.ndarray:
        frames = self._frames
        if frames is None or not self._next <= row <= self._next + SKIP:
            return self._begin(row)
        while self._next < row:
            next(frames)
            self._next += 1
        self._next += 1
        return next(frames)

    def _begin(self, row: int) -> np.ndarray:
        """The frame of `row`, looked for anew."""
        store = self.episode.store
        self.close()
        frames: Any = self._from(row)
        self._frames, self._next = frames, row + 1
        try:
            return next(frames)
        except StoreError:
            if store.lead_s == LEAD_S:
                raise
        # a video whose frames are stored in another order: from further away, here and from now on
        store.lead_s = LEAD_S
        frames = self._from(row)
        self._frames = frames
        return next(frames)

    def _from(self, row: int) -> Any:
        """The frames from `row` on."""
        e, reader = self.episode, self.episode.store.reader
        place, picture = place_of(e.source), reader.schema.pictures[self.name]
        if self.name not in reader.schema.videos:
            table = reader.table(e.source, place, with_stills=True)
            return still_frames(table[self.name][row:], place, picture, row)
        if self.name not in e.source.videos:
            raise StoreError(
                f"episode {e.source.index}: meta/ does not say where its video of {self.name} is"
            )
        path, start, stop = e.source.videos[self.name]
        e.store.fetch(path)
        reader.folder.require_files(e.source, [self.name])
        times = e.seconds - reader.shift(e.source, self.name, e.seconds, place)
        at = start + times[row:]
        return video_frames(path, at, stop, reader.folder.fps, place, picture, e.store.lead_s)
