"""The episode store: a folder of finished episodes, each a zarr v3 group that arrived by one rename. See
layout.py for what lies where. Opening a store recovers what a killed recorder left in it, unless it is only
looked at. A store may come from anyone: nothing in it is followed out of it (see inside.py)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import inside
from .codec import CodecError, kind_for
from .durable import sync_folders, sync_tree
from .episode import Episode, StoreError, attrs_of, episode_of, version_of
from .features import ACTION, WORDS, Features, features_from_json, features_to_json, is_frames, require_name
from .layout import EPISODES, HEADER, IN_PROGRESS, require_new, require_own
from .lock import Locked, StoreLock
from .recording.recovery import recover
from .sizes import count_of

FORMAT, VERSION = "ulna-episodes", 2
MOST_HZ = 1e6
log = logging.getLogger("ulna.datasets")


class EpisodeStore:
    """Opened with `EpisodeStore.open`, begun with `EpisodeStore.create`, filled with `EpisodeWriter`."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.features: Features = features_from_json(_table(header, "features"))
        _require_names(self.features)
        self.control_hz = _rate(header["fps"])
        self.robot = str(header.get("robot", ""))
        self.provenance: dict[str, Any] = _table(header, "provenance")
        storage = _table(header, "storage")
        self.storage: dict[str, dict[str, Any]] = {key: _table(storage, key) for key in storage}
        self._episodes: list[Episode] | None = None
        self._guard = threading.Lock()
        self._lock: StoreLock | None = None
        self._holders = 0
        self._recorded = False

    @staticmethod
    def create(
        path: str | Path,
        features: Features,
        control_hz: float,
        robot: str = "",
        provenance: Mapping[str, Any] | None = None,
        storage: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> EpisodeStore:
        """A new store in a folder that is not there yet or is empty.

        control_hz: rate of control ticks. storage: how images are stored, by key:
        `{"codec": "jpeg", "quality": 95}`, and `"resize": true` to shrink larger images to the feature's
        shape; by default losslessly, and in the feature's shape only. Raises StoreError."""
        path = Path(path)
        if ACTION not in features:
            raise StoreError(
                f"a store needs the feature {ACTION!r}; it was given {', '.join(features) or 'none'}"
            )
        _require_names(features)
        if not 0 < control_hz < float("inf"):
            raise StoreError(f"control_hz must be a positive number, not {control_hz}")
        for key, settings in (storage or {}).items():
            if key not in features or not is_frames(key):
                raise StoreError(f"storage is given for {key}, which is no image of this store")
            try:
                kind_for(features[key].dtype, settings)
            except CodecError as error:
                raise StoreError(f"storage of {key}: {error}") from None
        require_new(path)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "features": features_to_json(features),
            "fps": control_hz,
            "robot": robot,
            "provenance": dict(provenance or {}),
            "storage": {key: dict(settings) for key, settings in (storage or {}).items()},
        }
        existed = path.exists()
        try:
            (path / EPISODES).mkdir(parents=True, exist_ok=True)
            (path / IN_PROGRESS).mkdir(exist_ok=True)
            (path / f".{HEADER}").write_text(json.dumps(header, indent=1) + "\n")
            sync_tree(path)
            os.replace(path / f".{HEADER}", path / HEADER)
            sync_folders(path, path.absolute().parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                for entry in path.iterdir():
                    entry.rmdir() if entry.is_dir() else entry.unlink()
                if not existed:
                    path.rmdir()
            raise StoreError(
                f"cannot create an episode store at {path}: {error.strerror or error}"
            ) from error
        return EpisodeStore(path, header)

    @staticmethod
    def open(path: str | Path, recover: bool = True) -> EpisodeStore:
        """The store at `path`. What an earlier process left in progress is recovered first, unless `recover`
        is False, another process is writing, or the disk is read-only. Raises StoreError."""
        path = Path(path)
        if not path.exists():
            raise StoreError(
                f"there is no dataset at {path}: record one with `ulna record` or bring one in with "
                "`ulna data import`"
            )
        try:
            header = inside.read_json(path, path / HEADER)
        except FileNotFoundError:
            raise StoreError(f"{path} {_what_else(path)}") from None
        except NotADirectoryError:
            raise StoreError(f"{path} is a file, not an episode store") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path / HEADER} cannot be read: {_why(error)}") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise StoreError(f"{path} is not an Ulna episode store: its ulna.json has another format")
        try:
            if count_of(header["version"], "its version") > VERSION:
                raise StoreError(
                    f"{path} was written by a newer Ulna (store version {header['version']}, this one reads "
                    f"{VERSION}): update Ulna"
                )
            store = EpisodeStore(path, header)
        except StoreError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = str(error) if type(error) is ValueError else repr(error)
            raise StoreError(f"{path / HEADER} is incomplete: {why}") from None
        if recover and store._in_progress():
            store.recover()
        return store

    @property
    def episodes(self) -> list[Episode]:
        """Finished episodes in the order they were recorded."""
        if self._episodes is None:
            try:
                entries = inside.scan(self.path, self.path / EPISODES)
            except OSError as error:
                raise StoreError(f"{self.path / 'episodes'} cannot be read: {error.strerror}") from None
            # a link in the place of an episode is listed, and then found damaged: it is not followed
            folders = [
                self.path / EPISODES / name
                for name, status in entries.items()
                if not name.startswith(".") and not stat.S_ISREG(status.st_mode)
            ]
            versions = [version_of(p) for p in folders]  # before their attributes are read
            self._episodes = [episode_of(p, i, versions[i]) for i, p in enumerate(folders)]
        return self._episodes

    def reopen(self, e: Episode) -> Episode:
        """The episode `e` with its labels as they are on disk now. Raises StoreError where it is damaged or
        missing."""
        return Episode(e.path, e.index, attrs_of(e.path))

    def __len__(self) -> int:
        return len(self.episodes)

    def choose(self, episodes: Sequence[int] | None = None) -> list[Episode]:
        """The episodes of these numbers, each once; all by default. Raises StoreError that names a number
        which does not exist."""
        if episodes is None:
            return list(self.episodes)
        if unknown := [i for i in episodes if not 0 <= i < len(self)]:
            numbers = f"episodes 0 to {len(self) - 1}, not {unknown[0]}" if len(self) else "no episode"
            raise StoreError(f"{self.path} has {numbers}")
        return [self.episodes[i] for i in dict.fromkeys(episodes)]

    def interrupted_folders(self) -> list[Path]:
        """Folders of episodes that are being written, or were cut off and could not be recovered."""
        return [p for p in self._in_progress() if not p.name.startswith(".")]

    def _in_progress(self) -> list[Path]:
        try:
            return [
                self.path / IN_PROGRESS / name for name in inside.scan(self.path, self.path / IN_PROGRESS)
            ]
        except OSError:
            return []

    def recover(self, wait: bool = False) -> list[Path]:
        """Make episodes of recordings that were cut off; the folders of those that came back.

        Does nothing while another process writes or where the disk is read-only; with `wait`, these raise a
        StoreError instead."""
        if self._recorded:  # by a writer on this object, which holds the lock already
            if wait:
                raise StoreError(f"{self.path} is being recorded into: close that writer first")
            return []
        try:
            with self._exclusive(wait):
                episodes, problems = recover(self.path)
        except (StoreError, OSError) as error:
            if wait:
                raise StoreError(f"{self.path} cannot be recovered: {_why(error)}") from None
            if isinstance(error, StoreError):
                log.warning("%s", error)
            return []
        for problem in problems:
            log.warning("%s", problem)
        if episodes:
            self.refresh()
            names = ", ".join(p.name for p in episodes)
            log.warning("%s: recovered %s, which had been cut off", self.path, names)
        return episodes

    @contextlib.contextmanager
    def writing(self) -> Iterator[StoreLock]:
        """Hold the writer's lock of this store. Re-entrant on this object. Raises StoreError when another
        process, or another object in this process, holds it."""
        try:
            with self._exclusive(wait=True) as lock:
                yield lock
        except Locked as error:
            raise StoreError(str(error)) from None
        except _LockFailed as error:
            raise StoreError(f"cannot write to {self.path}: {error}") from None

    @contextlib.contextmanager
    def recording(self) -> Iterator[StoreLock]:
        """`writing` for a recorder, of which there is only one at a time, also on this object. Edits may come
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
        require_own(self.path)
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
        """Read the list of episodes anew when it is next needed."""
        self._episodes = None


def _require_names(features: Features) -> None:
    try:
        for key, feature in features.items():
            require_name(key)
            if feature.dtype == WORDS:
                raise ValueError(f"the feature {key} holds words: a dataset holds numbers and pictures")
    except ValueError as error:
        raise StoreError(str(error)) from None


class _LockFailed(OSError):
    """The file of the lock cannot be created."""


def _table(header: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(value := header.get(key) or {}, dict):
        raise ValueError(f"its {key} is {str(value)[:40]!r}, no object")  # noqa: TRY004
    return dict(value)


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_HZ:
        raise ValueError(f"its fps is {str(value)[:40]!r}, not a number of ticks a second in 0..{MOST_HZ:g}")
    return float(value)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _what_else(path: Path) -> str:
    if not path.is_dir():
        return "is a file, not an episode store"
    if not any(path.iterdir()):
        return "is an empty folder, not an episode store"
    if (path / "meta" / "info.json").is_file():
        return "is a LeRobot dataset: bring it in with `ulna data import`"
    return "is not an Ulna episode store: it has no ulna.json"
