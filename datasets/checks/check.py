"""Checks a dataset: each episode by itself, and each against the others. docs/checks.md says why, and what to
do about a finding."""

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
from .lag import LAGS_S, Lag, Pair, Sums, episode_lag, pair, pooled_lag, sums
from .outliers import Traits, check_outliers, traits
from .times import check_times
from .units import Apart, apart, check_apart, check_stated, check_units
from .vectors import check_vectors

__all__ = ["SEVERITIES", "Finding", "check", "check_episode"]

LAG_INFO_S, LAG_WARNING_S, LAG_SEVERE_S = 0.06, 0.12, 0.25
LAG_CORRELATION = 0.4  # less, and the images move for other reasons
LAG_EDGE = 0.04  # a curve flatter than that has no place where it is highest
LAG_ODD_S, LAG_ODD_Z = 0.1, 2.5  # one episode against the others


@dataclass
class EpisodeCheck:
    """The result for one episode: its findings, and what it is compared with other episodes by."""

    findings: list[Finding]
    traits: Traits
    pairs: dict[str, Pair] = field(default_factory=dict)
    apart: Apart | None = None


def check_episode(store: EpisodeStore, episode: Episode, fast: bool = False) -> list[Finding]:
    """The findings of one episode by itself, the worst first, then by time. fast: decode only a few
    images."""
    return _worst_first(_check_one(store, episode, fast).findings)


def check(
    store: EpisodeStore,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda count, total: None,
    fast: bool = False,
) -> list[Finding]:
    """Every finding of `episodes` (all by default), by episode, the worst first. A finding about
    all of them has episode -1.

    progress(count, total) is called after each episode. fast: check only checksums and repeats of images, and
    the brightness of a few; do not compare them with the joints. A damaged episode is a finding; the others
    are checked."""
    readable = [e for e in store.episodes if not e.damage]
    findings = [
        Finding(e.index, e.path.name, "damaged", "severe", "", 0.0, 0.0, e.damage)
        for e in store.episodes
        if e.damage
    ]
    if episodes is not None:
        total = len(readable) + len(findings)
        if unknown := [i for i in episodes if not 0 <= i < total]:
            raise StoreError(f"{store.path} has episodes 0 to {total - 1}, not {unknown[0]}")
        readable = [e for e in readable if e.index in set(episodes)]
        findings = [f for f in findings if f.episode in set(episodes)]
    checks: list[EpisodeCheck] = []
    for count, episode in enumerate(readable, 1):
        checks.append(_check_one(store, episode, fast))
        progress(count, len(readable))
    if findings:
        progress(len(readable) + len(findings), len(readable) + len(findings))
    findings += [f for s in checks for f in s.findings]
    findings += check_outliers([s.traits for s in checks])
    findings += _misalignments(checks)
    if not any((f.check, f.severity) == ("units", "severe") for f in findings):
        findings += check_apart([c.apart for c in checks if c.apart is not None])
    findings += check_stated(store.features)
    return sorted(_worst_first(findings), key=lambda f: f.episode)


def _check_one(store: EpisodeStore, episode: Episode, fast: bool) -> EpisodeCheck:
    r = read_recording(store, episode)
    scans: list[Scan] = []
    for stream in frame_streams(r):
        try:
            scans.append(scan_frames(r, stream, fast))
        except DamagedFrames as error:
            r.read_errors[stream.key] = str(error)
            del r.streams[stream.key]
    findings = [*check_vectors(r, store), *check_units(r), *check_times(r)]
    for scan in scans:
        findings += check_frames(r, scan)
    light = {
        s.key: float(np.nanmean(s.light)) for s in scans if is_image(s.key) and np.isfinite(s.light).any()
    }
    result = EpisodeCheck(findings, traits(r, light), apart=apart(r))
    if r.joints is not None and not fast:
        for scan in scans:
            if is_image(scan.key) and (part := pair(scan, r.joints)) is not None:
                result.pairs[scan.key] = part
    return result


def _misalignments(checks: Sequence[EpisodeCheck]) -> Iterator[Finding]:
    """The lag of each camera against the joints over all episodes, and episodes with another lag."""
    for camera in dict.fromkeys(c for s in checks for c in s.pairs):
        group = [s for s in checks if camera in s.pairs]
        widths = [s.pairs[camera].values.shape[1] for s in group]
        group = [s for s, w in zip(group, widths, strict=True) if w == max(set(widths), key=widths.count)]
        lag = pooled_lag([s.pairs[camera] for s in group])
        if lag is None or lag.correlation < LAG_CORRELATION or lag.edge < LAG_EDGE:
            continue
        surely = abs(lag.lag_s) - 2 * lag.error_s
        if surely > 0 and abs(lag.lag_s) > LAG_INFO_S:
            yield _lag_of_all(camera, lag, len(group))
        for s in group:
            yield from _odd_lag(s.traits.recording, camera, sums(s.pairs[camera]), lag)


def _lag_of_all(camera: str, lag: Lag, count: int) -> Finding:
    size = abs(lag.lag_s)
    severity: Severity = "severe" if size > LAG_SEVERE_S else "warning" if size > LAG_WARNING_S else "info"
    message = (
        f"images move {1000 * size:.0f} ± {1000 * lag.error_s:.0f} ms "
        f"{'after' if lag.lag_s > 0 else 'before'} the joints, over {count} episodes (correlation "
        f"{lag.correlation:.2f})"
    )
    return Finding(-1, "", "misaligned", severity, camera, 0.0, 0.0, message, round(lag.lag_s, 4), LAG_INFO_S)


def _odd_lag(r: Recording, camera: str, part: Sums, lag: Lag) -> Iterator[Finding]:
    own_lag, curve = episode_lag(part, lag.weights)
    top, at_common = float(curve.max()), float(np.interp(lag.lag_s, LAGS_S, curve))
    independent = max(part.seconds / 0.26 - 3, 1.0)  # motion over a baseline says little new sooner
    z = (np.arctanh(min(top, 0.999)) - np.arctanh(min(max(at_common, 0.0), 0.999))) * np.sqrt(independent)
    off = own_lag - lag.lag_s
    if top < LAG_CORRELATION or abs(off) < LAG_ODD_S or z < LAG_ODD_Z:
        return
    yield r.finding(
        "misaligned",
        "severe" if abs(off) > LAG_SEVERE_S else "warning",
        f"images move {1000 * abs(off):.0f} ms {'later' if off > 0 else 'earlier'} against the joints than "
        "in "
        f"the other episodes (correlation {top:.2f} instead of {at_common:.2f})",
        camera,
        value=off,
        threshold=LAG_ODD_S,
    )


def _worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.start_s, f.check, f.stream))
