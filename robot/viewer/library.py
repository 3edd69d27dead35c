"""The store as the viewer's page sees it: a list of episodes that follows what happens on disk."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.edit import trash
from ...datasets.episode import Episode, StoreError
from ...datasets.reading.align import period_ns
from ...datasets.store import EpisodeStore

RATES_FROM = (
    12  # episodes that the dataset's rates are measured on: reading all of a thousand takes half a minute
)


class NotThere(LookupError):
    """The store holds no such thing; the message is one sentence."""


class Library:
    """A store whose list of episodes is read again when the folder changed. Episodes are named by their
    folders, because their numbers move when one is deleted. Usable from several threads."""

    def __init__(self, store: EpisodeStore, only: Sequence[int] | None = None) -> None:
        """only: show no other episodes than these numbers of today. StoreError when there are none such."""
        self.store = store
        self._only = None if only is None else {e.path.name for e in store.choose(only)}
        self._guard = threading.RLock()
        self._revision = ""
        self._episodes: dict[str, Episode] = {}
        self._facts: dict[str, Any] = {}

    @property
    def revision(self) -> str:
        """Another one after every change of an episode, of its labels, or of the trash."""
        state = hashlib.sha256()
        for folder, what in (("episodes", "zarr.json"), ("trash", "")):
            for path in sorted((self.store.path / folder).glob("*")):
                try:
                    stat = (path / what).stat()
                except OSError:
                    continue  # it moved away meanwhile
                state.update(f"{path.name} {stat.st_ino} {stat.st_mtime_ns}\n".encode())
        return state.hexdigest()[:16]

    def episodes(self) -> list[Episode]:
        """In the order they were recorded."""
        with self._guard:
            now = self.revision
            if now != self._revision:
                self.store.refresh()
                listed = self.store.episodes
                self._episodes = {e.path.name: e for e in listed if self._shown(e.path.name)}
                self._revision = now
            return list(self._episodes.values())

    def episode(self, name: str) -> Episode:
        """By its folder's name, or its number of this moment. NotThere when it was deleted, or never was."""
        episodes = self.episodes()
        if name.isdecimal():
            name = next((e.path.name for e in episodes if str(e.index) == name), name)
        with self._guard:
            if name not in self._episodes:
                raise NotThere(f"there is no episode {name} here: it may have been deleted meanwhile")
            return self._episodes[name]

    def trash(self) -> list[dict[str, Any]]:
        """What can be restored, last deleted first. replaced: it is an older version of an episode that is in
        its place."""
        there = {e.path.name for e in self.episodes()}
        return [
            {
                "version": t.path.name,
                "episode": t.name,
                "deleted_s": t.deleted_s,
                "replaced": t.name in there,
            }
            for t in reversed(trash(self.store))
            if self._shown(t.name)
        ]

    def dataset(self) -> dict[str, Any]:
        """What the page's header says. hz: stream → the median rate by capture times, over a dozen
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

    def _shown(self, name: str) -> bool:
        return self._only is None or name in self._only


def row(e: Episode, fps: float) -> dict[str, Any]:
    """An episode in the list. seconds: at the nominal rate, for its times need not be read to list it."""
    dropped = e.attrs.get("dropped") or {}
    return {
        "name": e.path.name,
        "index": e.index,
        "number": e.path.name.split("-")[0],
        "task": e.task,
        "agent": str(e.attrs.get("agent", "")),
        "length": e.length,
        "seconds": round(e.length / fps, 3),
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
    return {key: round(float(np.median(found)), 3) for key, found in rates.items()}


class Kept[T]:
    """The last few results of something slow, one computation of each at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Hashable, T] = OrderedDict()
        self._guard = threading.Lock()
        self._busy: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._guard:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._guard:
                if key in self._found:
                    self._found.move_to_end(key)
                    return self._found[key]
            value = make()
            with self._guard:
                self._found[key] = value
                while len(self._found) > self._most:
                    gone, _ = self._found.popitem(last=False)
                    self._busy.pop(gone, None)
            return value

    def peek(self, key: Hashable) -> T | None:
        with self._guard:
            return self._found.get(key)


def cache_root() -> Path:
    """Where things may lie that can be made again."""
    import os

    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "ulna"
