"""The episode store: a folder of finished episodes, each a zarr v3 group that arrived by one rename.

    DIR/ulna.json                     format, version, features, fps, robot, provenance
    DIR/episodes/000000-<id>/         attrs: task, length, streams (rows of each, by_tick), seed, success, agent, ...
        <stream>/value                (T, *shape); images by the frame, in shards; every chunk with its CRC-32C
        <stream>/t_capture_ns         (T,) int64   when each row was true
        <stream>/t_receive_ns         (T,) int64   when we learned it
        <stream>/flags                (T,) uint8   STALE, INTERPOLATED, AFTER_DROP, INVALID, INTERVENTION; absent: none
    DIR/in-progress/<id>/             an episode being written, or cut off; `open` recovers those (see recovery.py)
    DIR/damaged/<id>/                 the files of a recording that were damaged before it was recovered, as they were
    DIR/trash/                        what `ulna data delete` took out
    DIR/.lock                         held by the one who writes (see lock.py)

A stream is a feature, or `action.requested` (what was asked for, beside `action`, what was sent). Streams carry their
own times and may differ in length: a camera has one row per frame that it took, `action` one per control tick, and the
episode's `length` is that of `action`. Any zarr v3 reader opens an episode; images need the codecs of `imagecodecs`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .codec import CodecError, kind_for
from .durable import sync_folders, sync_tree
from .features import ACTION, Features, features_from_json, features_to_json, is_frames, require_name
from .frames import DamagedFrames, FrameReader
from .lock import Locked, StoreLock

FORMAT, VERSION = "ulna-episodes", 2
log = logging.getLogger("ulna.datasets")


class StoreError(ValueError):
    """The folder is no episode store, or what lies in it cannot be used; the message is one sentence."""


def require_finite(where: str, key: str, values: np.ndarray) -> None:
    """StoreError naming the first frame of `values` `(T, ...)` that holds NaN or infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        good = np.isfinite(values).reshape(len(values), -1).all(1)
        raise StoreError(f"{where}: {key} is not finite in frame {int(np.flatnonzero(~good)[0])}")


class Episode:
    """One finished episode, read on demand. A trim or a restore puts another version in its place: what is read then would
    be other rows than those that were counted before, so every read after it is refused with a StoreError.

    damaged: a sentence where its own zarr.json cannot be read; it is listed, with no rows, and every read raises that."""

    def __init__(
        self,
        path: Path,
        index: int,
        attrs: Mapping[str, Any],
        version: tuple[int, int] | None = None,
        damaged: str = "",
    ) -> None:
        self.damaged = damaged
        self.path, self.index, self.attrs = path, index, dict(attrs)
        self._version = version or _version(path)
        self.length = int(attrs["length"])
        self.task = str(attrs.get("task", ""))
        self._readers: dict[str, FrameReader] = {}

    @cached_property
    def _group(self) -> Any:
        import zarr

        try:
            return zarr.open_group(str(self.path), mode="r")
        except Exception as error:
            raise StoreError(f"episode {self.path.name} cannot be opened: {error}") from error

    @cached_property
    def streams(self) -> tuple[str, ...]:
        if self.damaged:
            return ()
        return tuple(sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith(".")))

    @property
    def interrupted(self) -> bool:
        """It was cut off (by a kill, a failing device, Ctrl-C); attrs["interrupted"] says by what."""
        return bool(self.attrs.get("interrupted"))

    @property
    def content(self) -> str:
        """A digest of all rows, times and flags, whatever the folder is called; of older episodes, of its files' dates."""
        if "content" in self.attrs:
            return str(self.attrs["content"])
        if self.damaged:
            return f"{self.path.name}-damaged"
        stat = (self.path / "zarr.json").stat()
        return f"{self.path.name}-{stat.st_size}-{stat.st_mtime_ns}"

    def rows(self, key: str) -> int:
        """How many rows a stream has."""
        return len(self._reader(key))

    def by_tick(self, key: str) -> bool | None:
        """Whether the stream's rows were written with the control ticks, else at its own rate; None where it was not noted."""
        noted = self.attrs.get("streams", {}).get(key, {}).get("by_tick")
        return None if noted is None else bool(noted)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `[start, stop)` of a stream `(T, *shape)` in its stored dtype."""
        if is_frames(key):
            return self.read_frames(key, range(*slice(start, stop).indices(len(self._reader(key)))))
        return self._read(key, "value", slice(start, stop))

    def read_frames(
        self, key: str, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Any `rows` `(N,)` of a stream of images or depth, as `(N, H, W[, C])`, into `out` where given. Reads only those frames."""
        with self._reading(key):
            return self._reader(key).read(rows, out)

    def verify_frames(self, key: str) -> None:
        """StoreError where the stored bytes of a stream's frames are not those that were written."""
        with self._reading(key):
            self._reader(key).verify()

    def times_ns(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(t_capture_ns, t_receive_ns), each `(T,)` int64."""
        return self._read(key, "t_capture_ns", slice(None)), self._read(key, "t_receive_ns", slice(None))

    def flags(self, key: str) -> np.ndarray:
        """STALE, INTERPOLATED, … of each row, `(T,)` uint8."""
        self._require_stream(key)
        with self._reading(key):
            there = (self.path / key / "flags").is_dir()
        return self._read(key, "flags", slice(None)) if there else np.zeros(self.rows(key), np.uint8)

    def _reader(self, key: str) -> FrameReader:
        if key not in self._readers:
            self._require_stream(key)
            with self._reading(key):
                reader = FrameReader(self.path / key / "value")
            self._readers[key] = reader
        return self._readers[key]

    def _read(self, key: str, part: str, rows: slice) -> np.ndarray:
        self._require_stream(key)
        with self._reading(key):
            try:
                array = self._group[f"{key}/{part}"]
                # zarr takes a chunk that is gone for one that was never written, and gives zeros. Our writer leaves none out.
                chunk = (self.path / key / part).joinpath("c", *("0" for _ in array.shape))
                if "streams" in self.attrs and array.shape[0] and not chunk.is_file():
                    raise FileNotFoundError(f"its file {chunk.relative_to(self.path)} is missing")
                return np.asarray(array[rows])
            except StoreError:
                raise
            except Exception as error:  # zarr raises whatever its codecs raise on a damaged chunk
                raise StoreError(f"episode {self.path.name}: stream {key} cannot be read: {error}") from error

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """What was read is of the version that was opened: looked at afterwards, since an edit may come at any moment."""
        try:
            yield
        except DamagedFrames as error:
            raise StoreError(f"episode {self.path.name}: stream {key}: {error}") from error
        finally:
            if _version(self.path) != self._version:
                raise StoreError(
                    f"episode {self.path.name} was edited or deleted while it was in use: open the dataset again, or bring "
                    "back with `ulna data restore` what was there"
                )

    def require_readable(self) -> None:
        """StoreError when it is damaged."""
        if self.damaged:
            raise StoreError(self.damaged)

    def _require_stream(self, key: str) -> None:
        self.require_readable()
        if key not in self.streams:
            raise StoreError(
                f"episode {self.path.name} has no stream {key}; it has {', '.join(self.streams)}"
            )


class EpisodeStore:
    """Open with `EpisodeStore.open`, begin with `EpisodeStore.create`, fill with `EpisodeWriter`."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.features: Features = features_from_json(header["features"])
        _require_names(self.features)
        self.fps = float(header["fps"])
        self.robot = str(header.get("robot", ""))
        self.provenance: dict[str, Any] = dict(header.get("provenance", {}))
        self.storage: dict[str, dict[str, Any]] = dict(header.get("storage", {}))
        self._episodes: list[Episode] | None = None
        self._guard = threading.Lock()
        self._lock: StoreLock | None = None
        self._holders = 0
        self._recorded = False

    @staticmethod
    def create(
        path: str | Path,
        features: Features,
        fps: float,
        robot: str = "",
        provenance: Mapping[str, Any] | None = None,
        storage: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> EpisodeStore:
        """A new store in a folder that is not there yet or is empty.

        storage: how images are kept, by key: `{"codec": "jpeg", "quality": 95}`, and `"resize": true` to shrink what
        comes to the feature's shape; without, losslessly and in the shape of the feature.
        """
        path = Path(path)
        if ACTION not in features:
            raise StoreError(
                f"a store needs the feature {ACTION!r}; it was given {', '.join(features) or 'none'}"
            )
        _require_names(features)
        if not 0 < fps < float("inf"):
            raise StoreError(f"fps must be a positive number, not {fps}")
        for key, how in (storage or {}).items():
            if key not in features or not is_frames(key):
                raise StoreError(f"storage is given for {key}, which is no image of this store")
            try:
                kind_for(features[key].dtype, how)
            except CodecError as error:
                raise StoreError(f"storage of {key}: {error}") from None
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} exists and is not empty: choose another folder, or remove it")
        header = {
            "format": FORMAT,
            "version": VERSION,
            "features": features_to_json(features),
            "fps": fps,
            "robot": robot,
            "provenance": dict(provenance or {}),
            "storage": {key: dict(how) for key, how in (storage or {}).items()},
        }
        was_there = path.exists()
        try:
            (path / "episodes").mkdir(parents=True, exist_ok=True)
            (path / "in-progress").mkdir(exist_ok=True)
            (path / ".ulna.json").write_text(json.dumps(header, indent=1) + "\n")
            sync_tree(path)
            os.replace(path / ".ulna.json", path / "ulna.json")
            sync_folders(path, path.absolute().parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                for ours in path.iterdir():
                    ours.rmdir() if ours.is_dir() else ours.unlink()
                if not was_there:
                    path.rmdir()
            raise StoreError(
                f"cannot create an episode store at {path}: {error.strerror or error}"
            ) from error
        return EpisodeStore(path, header)

    @staticmethod
    def open(path: str | Path, recover: bool = True) -> EpisodeStore:
        """Recovers what an earlier process left in progress, unless somebody is writing or the disk is read-only."""
        path = Path(path)
        if not path.exists():
            raise StoreError(
                f"there is no dataset at {path}: record one with `ulna record` or bring one in with `ulna data import`"
            )
        try:
            header = json.loads((path / "ulna.json").read_text())
        except FileNotFoundError:
            raise StoreError(f"{path} {_what_else(path)}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise StoreError(f"{path / 'ulna.json'} cannot be read: {error}") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise StoreError(f"{path} is not an Ulna episode store: its ulna.json has another format")
        try:
            if int(header["version"]) > VERSION:
                raise StoreError(
                    f"{path} was written by a newer Ulna (store version {header['version']}, this one reads {VERSION}): "
                    "update Ulna"
                )
            store = EpisodeStore(path, header)
            if recover and store._left_over():
                store.recover()
            return store
        except StoreError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path / 'ulna.json'} is incomplete: {error!r}") from None

    @property
    def episodes(self) -> list[Episode]:
        """Finished episodes in the order they were recorded."""
        if self._episodes is None:
            try:
                folders = sorted(
                    p for p in (self.path / "episodes").iterdir() if p.is_dir() and not p.name.startswith(".")
                )
            except OSError as error:
                raise StoreError(f"{self.path / 'episodes'} cannot be read: {error.strerror}") from None
            versions = [_version(p) for p in folders]  # before what is noted there is read
            self._episodes = [_episode(p, i, versions[i]) for i, p in enumerate(folders)]
        return self._episodes

    def reopened(self, e: Episode) -> Episode:
        """The episode as it is now, whoever changed its labels since. StoreError where it is damaged or gone."""
        return Episode(e.path, e.index, _attrs(e.path))

    def __len__(self) -> int:
        return len(self.episodes)

    def choose(self, episodes: Sequence[int] | None = None) -> list[Episode]:
        """The episodes of these numbers, each once, all by default. StoreError names one that is not there."""
        if episodes is None:
            return list(self.episodes)
        if bad := [i for i in episodes if not 0 <= i < len(self)]:
            there = f"episodes 0 to {len(self) - 1}, not {bad[0]}" if len(self) else "no episode"
            raise StoreError(f"{self.path} has {there}")
        return [self.episodes[i] for i in dict.fromkeys(episodes)]

    def interrupted(self) -> list[Path]:
        """Folders of episodes that are being written, or were cut off and could not be recovered."""
        return [p for p in self._left_over() if not p.name.startswith(".")]

    def _left_over(self) -> list[Path]:
        try:
            return sorted((self.path / "in-progress").iterdir())
        except OSError:
            return []

    def recover(self, wait: bool = False) -> list[Path]:
        """Make episodes of what was cut off; the folders of those that came back. Does nothing while somebody writes
        (with `wait`, StoreError names them) or where the disk is read-only."""
        from .recovery import recover

        if self._recorded:  # by a writer on this object, which holds the lock already
            if wait:
                raise StoreError(f"{self.path} is being recorded into: close that writer first")
            return []
        try:
            with self._exclusive(wait):
                found, problems = recover(self.path)
        except OSError as error:
            if wait:
                raise StoreError(f"{self.path} cannot be recovered: {_why(error)}") from None
            return []
        for problem in problems:
            log.warning("%s", problem)
        if found:
            self.refresh()
            names = ", ".join(p.name for p in found)
            log.warning("%s: recovered %s, which had been cut off", self.path, names)
        return found

    @contextlib.contextmanager
    def writing(self) -> Iterator[StoreLock]:
        """Hold the writer's lock of this store. Re-entrant on this object; StoreError when another process, or another
        object in this one, holds it."""
        try:
            with self._exclusive(wait=True) as lock:
                yield lock
        except Locked as error:
            raise StoreError(str(error)) from None
        except _LockFailed as error:
            raise StoreError(f"cannot write to {self.path}: {error}") from None

    @contextlib.contextmanager
    def recording(self) -> Iterator[StoreLock]:
        """`writing` for one that appends episodes: on this object, too, there is only one of them at a time. Edits may come
        between its episodes."""
        with self.writing() as lock:
            with self._guard:
                if self._recorded:
                    raise StoreError(f"{self.path} is being recorded into already: close that writer first")
                self._recorded = True
            try:
                yield lock
            finally:
                self._recorded = False

    @contextlib.contextmanager
    def _exclusive(self, wait: bool) -> Iterator[StoreLock]:
        with self._guard:
            if self._lock is None:
                try:
                    self._lock = StoreLock(self.path, wait)
                except Locked:
                    raise
                except OSError as error:
                    raise _LockFailed(error.strerror or str(error)) from None
            lock = self._lock
            self._holders += 1
        try:
            yield lock
        finally:
            with self._guard:
                self._holders -= 1
                if self._holders == 0 and self._lock is not None:
                    self._lock.release()
                    self._lock = None

    def refresh(self) -> None:
        """Look at the folder again."""
        self._episodes = None


def _require_names(features: Features) -> None:
    try:
        for key in features:
            require_name(key)
    except ValueError as error:
        raise StoreError(str(error)) from None


class _LockFailed(OSError):
    """The lock's file cannot be made."""


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _version(folder: Path) -> tuple[int, int]:
    """Tells an episode's folder from one that was put in its place; labels make no difference."""
    try:
        stat = os.stat(folder / ACTION)
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def _episode(folder: Path, index: int, version: tuple[int, int]) -> Episode:
    try:
        return Episode(folder, index, _attrs(folder), version)
    except StoreError as error:
        return Episode(folder, index, {"length": 0}, version, str(error))


def _attrs(folder: Path) -> dict[str, Any]:
    try:
        attrs = json.loads((folder / "zarr.json").read_text())["attributes"]
        int(attrs["length"])
        return attrs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"episode {folder.name} has no readable zarr.json ({error!r}): bring it back from a copy, or `ulna data delete` the episode"
        ) from None


def _what_else(path: Path) -> str:
    if not path.is_dir():
        return "is a file, not an episode store"
    if not any(path.iterdir()):
        return "is an empty folder, not an episode store"
    if (path / "meta" / "info.json").is_file():
        return "is a LeRobot dataset: bring it in with `ulna data import`"
    return "is not an Ulna episode store: it has no ulna.json"
