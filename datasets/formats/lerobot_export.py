"""Exports datasets as LeRobot v3.0, with pyarrow and PyAV; LeRobot itself is not imported.

LeRobot has one time line: row i of an episode is at i / fps, and every stream has a row there. Real times,
requested actions, outcomes and flags are written into columns that LeRobot ignores (`ulna.times_ns`,
`ulna.flags`, `ulna.action_requested`) and into the row of the episode (`ulna/attributes`), and our own import
restores them. Depth is not exported, nor are frames that belong to no control tick."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..episode import Episode, StoreError
from ..features import ACTION, REQUESTED, Feature, is_depth, is_image
from ..layout import require_new
from ..making import making
from ..reading.windows import Windows, WindowSpec
from ..stats import of_histogram, of_rows
from ..store import EpisodeStore
from ..units import Restated
from ..video import write_video

TIMES, FLAGS, REQUEST, ATTRIBUTES = "ulna.times_ns", "ulna.flags", "ulna.action_requested", "ulna/attributes"
UNITS = "units"  # in the `info` of a vector in meta/info.json: one per element
FILES_PER_CHUNK, DATA_FILE_MB, VIDEO_FILE_MB = 1000, 100, 200
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
STATS_FRAMES = 64
PIECE = 32


@dataclass(frozen=True)
class ExportResult:
    """The result of an export. frames: rows of the LeRobot dataset. dropped: ticks that were left out because
    a stream had no recent row. repeated: ticks that repeat an older row for that reason. left_out: features
    and episodes that were not exported, in words."""

    out: Path
    episodes: int
    frames: int
    dropped: int
    repeated: int
    left_out: tuple[str, ...]


def export_lerobot(
    store: EpisodeStore,
    out: str | Path,
    episodes: Sequence[int] | None = None,
    crf: int = 12,
    lossless: bool = False,
    gaps: Literal["refuse", "drop", "repeat"] = "refuse",
    progress: Callable[[int, int], None] = lambda count, total: None,
    words: Restated | None = None,
) -> ExportResult:
    """Write `episodes` (all that were not cut off by default) into the new folder `out`, whole or not at all.

    crf: quality of H.264, less is better. lossless: every pixel as it is, in RGB. gaps: what to do at control
    ticks for which a stream has no recent row: refuse, drop the tick, or repeat an older row. words: what
    vectors are to be called and measured in, as they are by default. Raises StoreError."""
    out = Path(out)
    require_new(out)
    interrupted = [e.index for e in store.episodes if e.interrupted]
    selection = [e.index for e in store.choose(episodes) if episodes is not None or not e.interrupted]
    if not selection:
        raise StoreError(f"{store.path} has no episode to export")
    with_request = [i for i in selection if REQUESTED in store.episodes[i].streams]
    if 0 < len(with_request) < len(selection):
        without = next(i for i in selection if i not in with_request)
        raise StoreError(
            f"episode {with_request[0]} has {REQUESTED} and episode {without} has none, but a column is of "
            "all "
            "rows: export such episodes apart with --episodes"
        )
    left_out = [f"{k}: LeRobot's depth is lossy" for k in store.features if is_depth(k)]
    if episodes is None and interrupted:
        left_out.append(f"episodes {', '.join(map(str, interrupted))}: they were cut off")
    dropped = repeated = 0
    with making(out) as work:
        writer = _Writer(work, store, crf, lossless, words or Restated())
        for index, i in enumerate(selection):
            drops, repeats = writer.add(store.episodes[i], gaps)
            dropped, repeated = dropped + drops, repeated + repeats
            progress(index + 1, len(selection))
        writer.finish()
    return ExportResult(out, len(selection), writer.rows, dropped, repeated, tuple(left_out))


@dataclass
class _Writer:
    """The files of one dataset, an episode at a time."""

    root: Path
    store: EpisodeStore
    crf: int
    lossless: bool
    words: Restated
    rows: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.features = self.words.features(self.store.features)
        self.keys = [k for k in self.features if not is_depth(k)]
        self.images = [k for k in self.keys if is_image(k)]
        self.columns: dict[str, list[np.ndarray]] = {}  # for the statistics of the whole
        self.histograms = {k: np.zeros((3, 256), np.int64) for k in self.images}
        self._table: Any = None
        self._file = -1

    def add(self, e: Episode, gaps: str) -> tuple[int, int]:
        """Write one episode. (ticks dropped, ticks that repeat an older row)."""
        keys = tuple(k for k in self.keys if k != ACTION)
        windows = Windows(self.store, WindowSpec(1, 1, keys=keys), [e.index], cache="none")
        repeated = 0
        if gaps == "repeat" and len(windows) < e.length:
            recent = len(windows)
            windows = Windows(
                self.store, WindowSpec(1, 1, keys=keys, tolerance_s=1e9), [e.index], cache="none"
            )
            repeated = len(windows) - recent
        dropped = e.length - len(windows)
        if dropped and gaps == "refuse":
            raise StoreError(
                f"episode {e.index} cannot be exported whole: {windows.left_out_sentence()}; leave those out "
                "with --gaps drop, or repeat what there was with --gaps repeat"
            )
        if not len(windows):
            raise StoreError(f"episode {e.index} has no tick that can be exported")
        index, length = len(self.episodes), len(windows)
        task = self.tasks.setdefault(e.task, len(self.tasks))
        rows = {k: windows.row(k, windows.tick) for k in self.keys}
        # in their own dtype: windows round doubles for training
        values = {
            k: self.words.values(k, e.read(k)[rows[k]]).reshape(length, -1)
            for k in self.keys
            if not is_image(k)
        }
        times = [t[rows[k]] for k in self.keys for t in e.times_ns(k)]
        extra: dict[str, np.ndarray] = {
            TIMES: np.stack(times, 1),
            FLAGS: np.stack([e.flags(k)[rows[k]] for k in self.keys], 1).astype(np.int64),
        }
        if REQUESTED in e.streams:
            extra[REQUEST] = self.words.values(REQUESTED, e.read(REQUESTED)[windows.tick])
        row = np.arange(length)
        columns = {
            **values,
            **extra,
            "timestamp": (row / self.store.control_hz).astype(np.float32)[:, None],
            "frame_index": row[:, None],
            "episode_index": np.full((length, 1), index),
            "index": (self.rows + row)[:, None],
            "task_index": np.full((length, 1), task),
        }
        videos, stats = self._videos(windows, index, length)
        for key, value in columns.items():
            self.columns.setdefault(key, []).append(value)
            stats[key] = _vector_stats(value.astype(np.float64))
        at = self._append(columns)
        self.episodes.append(
            {
                "episode_index": index,
                "tasks": [e.task],
                "length": length,
                "data/chunk_index": at // FILES_PER_CHUNK,
                "data/file_index": at % FILES_PER_CHUNK,
                "dataset_from_index": self.rows,
                "dataset_to_index": self.rows + length,
                **videos,
                **{f"stats/{k}/{s}": v for k, values_of in stats.items() for s, v in values_of.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                ATTRIBUTES: json.dumps(self._attributes(e)),
            }
        )
        self.rows += length
        return dropped, repeated

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._table.close()
        folder = self.root / "meta" / "episodes" / "chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), folder / "file-000.parquet")
        tasks = pa.table({"task_index": list(self.tasks.values()), "task": list(self.tasks)})
        pandas_metadata = {  # pandas, which LeRobot reads it with, takes the task for the index
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": "task_index",
                    "field_name": "task_index",
                    "pandas_type": "int64",
                    "numpy_type": "int64",
                    "metadata": None,
                },
                {
                    "name": "task",
                    "field_name": "task",
                    "pandas_type": "unicode",
                    "numpy_type": "object",
                    "metadata": None,
                },
            ],
            "creator": {"library": "pyarrow", "version": pa.__version__},
            "pandas_version": "2.0.0",
        }
        pq.write_table(
            tasks.replace_schema_metadata({"pandas": json.dumps(pandas_metadata)}),
            self.root / "meta" / "tasks.parquet",
        )
        stats = {k: _vector_stats(np.concatenate(v).astype(np.float64)) for k, v in self.columns.items()}
        for key, histogram in self.histograms.items():
            stats[key] = _image_stats(histogram, self.rows)
        (self.root / "meta" / "stats.json").write_text(json.dumps(stats, indent=1))
        (self.root / "meta" / "info.json").write_text(json.dumps(self._info(), indent=1))

    def _attributes(self, e: Episode) -> dict[str, Any]:
        attrs = {k: v for k, v in e.attrs.items() if k not in ("length", "streams")}
        if limits := attrs.get("limits"):
            attrs["limits"] = self.words.limits(self.store.features[ACTION].names, limits)
        return attrs

    def _info(self) -> dict[str, Any]:
        fps: float | int = (
            int(self.store.control_hz)
            if self.store.control_hz == int(self.store.control_hz)
            else self.store.control_hz
        )
        features: dict[str, Any] = {}
        for key in self.keys:
            f = self.features[key]
            features[key] = self._video_feature(f, fps) if is_image(key) else _vector_feature(f)
        both = [f"{k}.{which}" for k in self.keys for which in ("t_capture", "t_receive")]
        features[TIMES] = {"dtype": "int64", "shape": [len(both)], "names": both}
        features[FLAGS] = {"dtype": "int64", "shape": [len(self.keys)], "names": list(self.keys)}
        if REQUEST in self.columns:
            features[REQUEST] = _vector_feature(self.features[ACTION])
        one = {"shape": [1], "names": None}
        features["timestamp"] = {"dtype": "float32", **one}
        for name in ("frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "int64", **one}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.store.robot or None,
            "fps": fps,
            "features": features,
            "total_episodes": len(self.episodes),
            "total_frames": self.rows,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if self.images
            else None,
            "splits": {"train": f"0:{len(self.episodes)}"},
        }

    def _video_feature(self, f: Feature, fps: float) -> dict[str, Any]:
        video_info = {
            "video.height": f.shape[0],
            "video.width": f.shape[1],
            "video.codec": "h264",
            "video.pix_fmt": "gbrp" if self.lossless else "yuv420p",
            "is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
        return {
            "dtype": "video",
            "shape": list(f.shape),
            "names": ["height", "width", "channels"],
            "info": video_info,
        }

    def _append(self, columns: dict[str, np.ndarray]) -> int:
        """Write the rows of an episode as a row group of a parquet file; the number of that file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {}
        for name, value in columns.items():
            column = pa.array(np.ascontiguousarray(value).reshape(-1))
            shape = self.features[name].shape if name in self.features else value.shape[1:]
            for size in reversed(shape if len(shape) > 1 else value.shape[1:] if value.shape[1] > 1 else ()):
                column = pa.FixedSizeListArray.from_arrays(column, size)
            arrays[name] = column
        table = pa.table(arrays)
        full = self._table is not None and self._path().stat().st_size > DATA_FILE_MB << 20
        if self._table is None or full:
            if self._table is not None:
                self._table.close()
            self._file += 1
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self._table = pq.ParquetWriter(self._path(), table.schema)
        self._table.write_table(table, row_group_size=len(table))
        return self._file

    def _path(self) -> Path:
        chunk, file = divmod(self._file, FILES_PER_CHUNK)
        return self.root / "data" / f"chunk-{chunk:03d}" / f"file-{file:03d}.parquet"

    def _videos(
        self, windows: Windows, index: int, length: int
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Write one video per camera. (entries that say where they lie, statistics of their frames)."""
        entries: dict[str, Any] = {}
        stats: dict[str, dict[str, Any]] = {}
        chunk, file = divmod(index, FILES_PER_CHUNK)
        for key in self.images:
            path = self.root / "videos" / key / f"chunk-{chunk:03d}" / f"file-{file:03d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            histogram = np.zeros((3, 256), np.int64)
            sample_rows = set(np.linspace(0, length - 1, STATS_FRAMES).round().astype(int).tolist())

            def frames() -> Iterator[np.ndarray]:
                for start in range(0, length, PIECE):
                    rows = np.arange(start, min(start + PIECE, length))
                    for row, frame in zip(rows.tolist(), windows.frames(key, rows), strict=True):  # noqa: B023
                        if row in sample_rows:  # noqa: B023
                            for c in range(3):
                                histogram[c] += np.bincount(frame[..., c].ravel(), minlength=256)  # noqa: B023
                        yield frame

            write_video(
                path,
                frames(),
                self.features[key].shape,
                self.store.control_hz,
                self.crf,
                self.lossless,
                length,
            )
            self.histograms[key] += histogram
            stats[key] = _image_stats(histogram, length)
            prefix = f"videos/{key}"
            entries |= {
                f"{prefix}/chunk_index": chunk,
                f"{prefix}/file_index": file,
                f"{prefix}/from_timestamp": 0.0,
                f"{prefix}/to_timestamp": length / self.store.control_hz,
            }
        return entries, stats


def _vector_feature(f: Feature) -> dict[str, Any]:
    """LeRobot's form has no unit; what it does not know of it keeps in `info`, as for videos."""
    about = {"info": {UNITS: list(f.units)}} if any(f.units) else {}
    return {"dtype": f.dtype, "shape": list(f.shape or (1,)), "names": list(f.names) or None, **about}


def _vector_stats(x: np.ndarray) -> dict[str, Any]:
    """Statistics of `(N, D)` float64, under LeRobot's names."""
    return {**{k: v.tolist() for k, v in of_rows(x, QUANTILES).items()}, "count": [len(x)]}


def _image_stats(histogram: np.ndarray, frames: int) -> dict[str, Any]:
    """Statistics per channel in 0..1, `(3, 1, 1)`, from the counts `(3, 256)` of sampled pixels."""
    values = of_histogram(histogram, QUANTILES)
    return {**{k: (v / 255).reshape(3, 1, 1).tolist() for k, v in values.items()}, "count": [frames]}
