"""Findings of the checks for the page: of the episode that it shows, and of all episodes on request. They are
cached while the viewer runs."""

from __future__ import annotations

import threading
from typing import Any

from ...datasets.checks.check import SEVERITIES, check_episode
from ...datasets.episode import Episode, StoreError
from .library import Cache, Library, NotThere

CACHED_EPISODES = 100_000  # a handful of sentences each


class Findings:
    """Usable from several threads; each episode is checked once, until its rows change."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._cache: Cache[list[dict[str, Any]]] = Cache(CACHED_EPISODES)
        self._guard = threading.Lock()
        self._sweep: threading.Thread | None = None
        self._stop = threading.Event()

    def of(self, e: Episode) -> list[dict[str, Any]]:
        """Findings of an episode as JSON, the worst first, then by time."""
        return self._cache.get(_key(e), lambda: self._check(e))

    def check_all(self) -> None:
        """Start to check every episode in a thread; `summary` gives the progress."""
        with self._guard:
            if self._sweep is None or not self._sweep.is_alive():
                self._sweep = threading.Thread(target=self._check_all, name="checks", daemon=True)
                self._sweep.start()

    def summary(self) -> dict[str, Any]:
        """Progress of `check_all`. counts: episode → number of findings of each severity, of those episodes
        that were checked."""
        counts = {}
        for e in (episodes := self._library.episodes()):
            findings = self._cache.peek(_key(e))
            if findings is not None:
                counts[e.path.name] = {s: sum(f["severity"] == s for f in findings) for s in SEVERITIES}
        running = self._sweep is not None and self._sweep.is_alive()
        return {"counts": counts, "checked": len(counts), "episodes": len(episodes), "running": running}

    def close(self) -> None:
        self._stop.set()
        if self._sweep is not None:
            self._sweep.join()

    def _check(self, e: Episode) -> list[dict[str, Any]]:
        return [f.to_json() for f in check_episode(self._library.store, e)]

    def _check_all(self) -> None:
        for name in [e.path.name for e in self._library.episodes()]:
            if self._stop.is_set():
                return
            try:
                self.of(self._library.episode(name))
            except (NotThere, StoreError, OSError):
                continue  # deleted meanwhile; the page says so where it is opened


def _key(e: Episode) -> tuple[str, str]:
    return e.path.name, e.content
