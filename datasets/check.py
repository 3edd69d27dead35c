"""What is wrong with a dataset, found by looking at every episode and at each beside the others. See docs/checks.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .check_times import check_times
from .check_vectors import check_vectors
from .findings import SEVERITIES, Finding, read_recording
from .store import Episode, EpisodeStore

__all__ = ["SEVERITIES", "Finding", "check", "check_episode"]


def check_episode(store: EpisodeStore, episode: Episode) -> list[Finding]:
    """What can be said of one episode by itself, the worst first, then by time."""
    r = read_recording(store, episode)
    return _sorted([*check_vectors(r, store), *check_times(r)])


def check(
    store: EpisodeStore,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Every finding of `episodes` (all by default). progress(done, total) is called after each."""
    chosen = [store.episodes[i] for i in (range(len(store)) if episodes is None else episodes)]
    found: list[Finding] = []
    for done, episode in enumerate(chosen, 1):
        found += check_episode(store, episode)
        progress(done, len(chosen))
    return found


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda f: (-SEVERITIES.index(f.severity), f.start_s, f.check, f.stream))
