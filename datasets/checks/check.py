"""What is wrong with a dataset: every episode by itself, and each beside the others. docs/checks.md says why
and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..episode import Episode, StoreError
from ..features import is_image
from ..frames import DamagedFrames
from ..store import EpisodeStore
from .findings import SEVERITIES, Finding, Recording, Severity, read_recording
from .frames import Scan, check_frames, frame_streams, scan_frames
from .lag import LAGS_S, Lag, Pair, Sums, of_episode, pair, pooled, sums
from .outliers import Traits, check_outliers, traits
from .times import check_times
from .vectors import check_vectors

__all__ = ["SEVERITIES", "Finding", "check", "check_episode"]

LAG_INFO_S, LAG_WARNING_S, LAG_SEVERE_S = 0.06, 0.12, 0.25
LAG_CORRELATION = 0.4  # less, and the images move for other reasons
LAG_EDGE = 0.04  # a curve flatter than that has no place where it is highest
LAG_ODD_S, LAG_ODD_Z = 0.1, 2.5  # one episode against the others


@dataclass
class Seen:
    """One episode: its findings, and what it is compared by."""

    findings: list[Finding]
    traits: Traits
    pairs: dict[str, Pair] = field(default_factory=dict)


def check_episode(store: EpisodeStore, episode: Episode, fast: bool = False) -> list[Finding]:
    """What can be said of one episode by itself, the worst first, then by time. fast: decodes a few images
    only."""
    return _sorted(_look(store, episode, fast).findings)


def check(
    store: EpisodeStore,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    fast: bool = False,
) -> list[Finding]:
    """Every finding of `episodes` (all by default), by episode, the worst first. What holds of all of them
    has episode -1.

    progress(done, total) is called after each. fast: of images only checksums and repeats, and a few for
    their brightness; no comparison with the joints. A damaged episode is a finding; the rest is checked."""
    known = [e for e in store.episodes if not e.damage]
    found = [
        Finding(e.index, e.path.name, "damaged", "severe", "", 0.0, 0.0, e.damage)
        for e in store.episodes
        if e.damage
    ]
    if episodes is not None:
        total = len(known) + len(found)
        if bad := [i for i in episodes if not 0 <= i < total]:
            raise StoreError(f"{store.path} has episodes 0 to {total - 1}, not {bad[0]}")
        known = [e for e in known if e.index in set(episodes)]
        found = [f for f in found if f.episode in set(episodes)]
    seen: list[Seen] = []
    for done, episode in enumerate(known, 1):
        seen.append(_look(store, episode, fast))
        progress(done, len(known))
    if found:
        progress(len(known) + len(found), len(known) + len(found))
    found += [f for s in seen for f in s.findings]
    found += check_outliers([s.traits for s in seen])
    found += _misaligned(seen)
    return sorted(_sorted(found), key=lambda f: f.episode)


def _look(store: EpisodeStore, episode: Episode, fast: bool) -> Seen:
    r = read_recording(store, episode)
    scans: list[Scan] = []
    for stream in frame_streams(r):
        try:
            scans.append(scan_frames(r, stream, fast))
        except DamagedFrames as error:
            r.unreadable[stream.key] = str(error)
            del r.streams[stream.key]
    found = [*check_vectors(r, store), *check_times(r)]
    for scan in scans:
        found += check_frames(r, scan)
    light = {
        s.key: float(np.nanmean(s.light)) for s in scans if is_image(s.key) and np.isfinite(s.light).any()
    }
    seen = Seen(found, traits(r, light))
    if r.joints is not None and not fast:
        for scan in scans:
            if is_image(scan.key) and (part := pair(scan, r.joints)) is not None:
                seen.pairs[scan.key] = part
    return seen


def _misaligned(seen: Sequence[Seen]) -> Iterator[Finding]:
    """A camera against the joints, over all episodes; and episodes whose lag is another."""
    for camera in dict.fromkeys(c for s in seen for c in s.pairs):
        having = [s for s in seen if camera in s.pairs]
        widths = [s.pairs[camera].values.shape[1] for s in having]
        having = [s for s, w in zip(having, widths, strict=True) if w == max(set(widths), key=widths.count)]
        lag = pooled([s.pairs[camera] for s in having])
        if lag is None or lag.correlation < LAG_CORRELATION or lag.edge < LAG_EDGE:
            continue
        surely = abs(lag.lag_s) - 2 * lag.error_s
        if surely > 0 and abs(lag.lag_s) > LAG_INFO_S:
            yield _lag_of_all(camera, lag, len(having))
        for s in having:
            yield from _odd_lag(s.traits.recording, camera, sums(s.pairs[camera]), lag)


def _lag_of_all(camera: str, lag: Lag, count: int) -> Finding:
    size = abs(lag.lag_s)
    severity: Severity = "severe" if size > LAG_SEVERE_S else "warning" if size > LAG_WARNING_S else "info"
    message = (
        f"images move {1000 * size:.0f} ± {1000 * lag.error_s:.0f} ms {'after' if lag.lag_s > 0 else 'before'} the joints, over "
        f"{count} episodes (correlation {lag.correlation:.2f})"
    )
    return Finding(-1, "", "misaligned", severity, camera, 0.0, 0.0, message, round(lag.lag_s, 4), LAG_INFO_S)


def _odd_lag(r: Recording, camera: str, part: Sums, lag: Lag) -> Iterator[Finding]:
    own, curve = of_episode(part, lag.weights)
    top, there = float(curve.max()), float(np.interp(lag.lag_s, LAGS_S, curve))
    independent = max(part.seconds / 0.26 - 3, 1.0)  # motion over a baseline says little new sooner
    z = (np.arctanh(min(top, 0.999)) - np.arctanh(min(max(there, 0.0), 0.999))) * np.sqrt(independent)
    off = own - lag.lag_s
    if top < LAG_CORRELATION or abs(off) < LAG_ODD_S or z < LAG_ODD_Z:
        return
    yield r.finding(
        "misaligned",
        "severe" if abs(off) > LAG_SEVERE_S else "warning",
        f"images move {1000 * abs(off):.0f} ms {'later' if off > 0 else 'earlier'} against the joints than in the other episodes "
        f"(correlation {top:.2f} instead of {there:.2f})",
        camera,
        value=off,
        threshold=LAG_ODD_S,
    )


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda f: (-SEVERITIES.index(f.severity), f.start_s, f.check, f.stream))
