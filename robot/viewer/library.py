"""The store as the viewer's page sees it: a list of episodes that follows what happens on disk."""

from __future__ import annotations

import hashlib
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets import inside
from ...datasets.edit import trash
from ...datasets.episode import Episode, StoreError
from ...datasets.layout import EPISODES, TRASH
from ...datasets.reading.align import period_ns
from ...datasets.store import EpisodeStore

# number of episodes that the dataset's rates are measured on: reading all of a thousand takes half a minute
RATES_FROM = 12


class NotThere(LookupError):
    """The store holds no such thing; the message is one sentence."""


class Library:
    """A store whose list of episodes is read again when its folder has changed. Episodes are identified by
    their folders' names, because their numbers change when one is deleted. Usable from several threads."""

    def __init__(self, store: EpisodeStore, only: Sequence[int] | None = None) -> None:
        """only: numbers of the episodes to show, as they are now; None shows all. StoreError: there is no
        such episode."""
        self.store = store
        self._only = None if only is None else {e.path.name for e in store.choose(only)}
        self._guard = threading.RLock()
        self._revision = ""
        self._episodes: dict[str, Episode] = {}
        self._facts: dict[str, Any] = {}

    @property
    def revision(self) -> str:
        """A text that changes with every change of an episode, of its labels, or of the trash."""
        state = hashlib.sha256()
        for folder, what in ((EPISODES, "zarr.json"), (TRASH, "")):
            path = self.store.path / folder
            try:
                entries = inside.scan(self.store.path, path)
            except OSError:
                continue  # there is no trash; what is wrong with the episodes is said when they are read
            for name, status in entries.items():
                if what and stat.S_ISDIR(status.st_mode):
                    try:
                        status = (path / name / what).lstat()
                    except OSError:
                        continue  # it moved away meanwhile
                state.update(f"{name!r} {status.st_ino} {status.st_mtime_ns}\n".encode())
        return state.hexdigest()[:16]

    def episodes(self) -> list[Episode]:
        """The episodes in the order of their recording."""
        with self._guard:
            now = self.revision
            if now != self._revision:
                self.store.refresh()
                self._episodes = {e.path.name: e for e in self.store.episodes if self._is_shown(e.path.name)}
                self._revision = now
            return list(self._episodes.values())

    def episode(self, name: str) -> Episode:
        """An episode by its folder's name, or by its present number. NotThere when there is none, for
        instance because it was deleted."""
        episodes = self.episodes()
        if name.isdecimal():
            name = next((e.path.name for e in episodes if str(e.index) == name), name)
        with self._guard:
            if name not in self._episodes:
                raise NotThere(f"there is no episode {name} here: it may have been deleted meanwhile")
            return self._episodes[name]

    def trash(self) -> list[dict[str, Any]]:
        """What can be restored, last deleted first; see `TrashItem`."""
        return [
            {
                "version": t.path.name,
                "episode": t.name,
                "deleted_s": t.deleted_s,
                "replaced": t.replaced,
            }
            for t in reversed(trash(self.store))
            if self._is_shown(t.name)
        ]

    def dataset(self) -> dict[str, Any]:
        """The facts in the page's header. hz: stream → median rate by its capture times, over `RATES_FROM`
        episodes."""
        episodes = self.episodes()
        with self._guard:
            if self._facts.get("revision") != self._revision:
                frames = sum(e.length for e in episodes)
                self._facts = {
                    "revision": self._revision,
                    "name": self.store.path.resolve().name,
                    "path": str(self.store.path),
                    "robot": self.store.robot,
                    "fps": self.store.control_hz,
                    "episodes": len(episodes),
                    "frames": frames,
                    "seconds": round(frames / self.store.control_hz, 3),
                    "hz": _rates(episodes),
                    "tasks": sorted({e.task for e in episodes}),
                }
            return self._facts

    def _is_shown(self, name: str) -> bool:
        return self._only is None or name in self._only


def row(e: Episode, control_hz: float) -> dict[str, Any]:
    """An episode's entry in the list. control_hz: the store's rate. seconds: duration at that rate, so that
    the list needs no capture times."""
    dropped = e.attrs.get("dropped") or {}
    return {
        "name": e.path.name,
        "index": e.index,
        "number": e.path.name.split("-")[0],
        "task": e.task,
        "agent": str(e.attrs.get("agent", "")),
        "length": e.length,
        "seconds": round(e.length / control_hz, 3),
        "success": e.attrs.get("success"),
        "weight": e.attrs.get("weight"),
        "interrupted": str(e.attrs.get("interrupted") or ""),
        "dropped": sum(int(n) for n in dropped.values()) if isinstance(dropped, dict) else 0,
        "trimmed": "trimmed_to" in e.attrs,
        "reviewed": bool(e.attrs.get("reviewed_s")),
        "content": e.content,
    }


def _rates(episodes: Sequence[Episode]) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for i in np.unique(np.linspace(0, len(episodes) - 1, RATES_FROM).round().astype(int)) if episodes else ():
        e = episodes[i]
        for key in e.streams:
            try:
                period = period_ns(e.times_ns(key)[0])
            except StoreError:
                continue  # the checks name what cannot be read
            if period > 0:
                rates.setdefault(key, []).append(1e9 / period)
    return {key: round(float(np.median(values)), 3) for key, values in rates.items()}


class Cache[T]:
    """The last `most` results of a slow function; each is computed by one thread at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: OrderedDict[Hashable, T] = OrderedDict()
        self._guard = threading.Lock()
        self._busy: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._guard:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._guard:
                if key in self._results:
                    self._results.move_to_end(key)
                    return self._results[key]
            value = make()
            with self._guard:
                self._results[key] = value
                while len(self._results) > self._most:
                    oldest, _ = self._results.popitem(last=False)
                    self._busy.pop(oldest, None)
            return value

    def peek(self, key: Hashable) -> T | None:
        with self._guard:
            return self._results.get(key)


def cache_root() -> Path:
    """Folder for files that can be made again."""
    import os

    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "ulna"
