"""What is wrong with a dataset: every episode by itself, and beside the others. What each check measures: docs/checks.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .camera_checks import Frames, lag, look
from .features import ACTION, is_depth, is_frames, is_image
from .findings import SEVERITIES, Finding, Report, Severity
from .store import Episode, EpisodeStore, StoreError
from .stream_checks import Streams, check_limits, check_motion, check_requested, check_times, check_vector

LAG_WARNING_S, LAG_SEVERE_S = 0.06, 0.15
DARK_SEVERE_S, FROZEN_SEVERE_S = 0.2, 0.5
DUPLICATES = DROPPED = 0.05
OUTLIER_Z, FEWEST_FOR_OUTLIERS = 6.0, 8


@dataclass(frozen=True)
class Looked:
    """What one episode gave: its findings, numbers to compare it with the others by, and of each camera how well it follows
    the joints at several lags."""

    findings: list[Finding]
    measures: dict[str, float]
    follows: dict[str, np.ndarray]


def check(
    store: EpisodeStore,
    episodes: Sequence[int] | None = None,
    fast: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """All findings, the severe ones first. fast: look at every tenth frame only, which finds no repeated frames and no lag."""
    chosen = list(range(len(store))) if episodes is None else list(episodes)
    if bad := [i for i in chosen if not 0 <= i < len(store)]:
        raise StoreError(f"{store.path} has episodes 0 to {len(store) - 1}, not {bad[0]}")
    looked = []
    for done, i in enumerate(chosen):
        looked.append(look_at(store, store.episodes[i], fast))
        progress(done + 1, len(chosen))
    findings = [f for one in looked for f in one.findings]
    findings += _lags(store, chosen, looked) + _outliers(store, chosen, looked)
    for path in store.interrupted():
        said = f"{path} was cut off and could not be recovered"
        findings.append(Finding(-1, path.name, "unrecovered", "severe", "", said))
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.episode, f.start_s or 0.0))


def check_episode(store: EpisodeStore, e: Episode, fast: bool = False) -> list[Finding]:
    """The findings of one episode, by their time."""
    looked = look_at(store, e, fast)
    return sorted(looked.findings + _lags(store, [e.index], [looked]), key=lambda f: f.start_s or 0.0)


def look_at(store: EpisodeStore, e: Episode, fast: bool = False) -> Looked:
    """Reads all of an episode once; what cannot be read is a finding, and the rest is looked at all the same."""
    report, streams = Report(e), Streams({}, {})
    for key in e.streams:
        try:
            streams.times[key] = e.times_ns(key)
            if not is_frames(key):
                streams.values[key] = e.read(key)
        except StoreError as error:
            report.add("damaged", "severe", key, _reason(error))
    for key in store.features:
        if key not in e.streams:
            report.add("missing", "severe", key, f"there is no stream {key}")
    if ACTION in streams.times and len(streams.times[ACTION][0]):
        report.zero_ns = int(streams.times[ACTION][0][0])
    _outcome(e, report)
    for key, (capture, receive) in streams.times.items():
        check_times(report, key, capture, receive, round(1e9 / store.fps) if key == ACTION else 0)
    for key, values in streams.values.items():
        try:
            flags = e.flags(key)
        except StoreError as error:
            report.add("damaged", "severe", key, _reason(error))
            flags = np.zeros(0, np.uint8)
        check_vector(report, store, key, values, streams.times.get(key), flags)
    check_limits(report, store, streams)
    check_requested(report, store, streams)
    measures = check_motion(report, store, streams)
    follows: dict[str, np.ndarray] = {}
    for key in e.streams:
        if is_frames(key) and key in streams.times:
            seen = look(e, key, streams.times[key][0], streams.speed(), fast)
            _camera(report, seen, key)
            if is_image(key) and seen.brightness is not None:
                measures[f"brightness of {key}"] = seen.brightness
            if seen.follows is not None:
                follows[key] = seen.follows
    return Looked(report.findings, measures, follows)


def _reason(error: StoreError) -> str:
    return str(error).split(": ", 2)[-1]


def _outcome(e: Episode, report: Report) -> None:
    """What the recorder itself noted."""
    if e.interrupted:
        report.add("interrupted", "warning", "", f"it was cut off: {e.attrs['interrupted']}")
    for key, lost in (e.attrs.get("dropped") or {}).items():
        try:
            there = e.rows(key)
        except StoreError:
            there = 0
        share = lost / max(1, lost + there)
        severity: Severity = "severe" if share > DROPPED else "warning"
        said = f"{lost} rows ({share:.1%}) were lost while recording"
        report.add("dropped", severity, key, said, None, share, DROPPED)


def _camera(report: Report, seen: Frames, key: str) -> None:
    for start, end, message in seen.damaged:
        report.add("damaged", "severe", key, message, (start, end))
    spans = (
        ("black", seen.dark, DARK_SEVERE_S, "it is black for {:.2f} s"),
        ("frozen", seen.frozen, FROZEN_SEVERE_S, "the picture stands for {:.2f} s while the joints move"),
    )
    for check_name, found, limit, words in spans:
        for start, end in found:
            seconds = (end - start) * 1e-9
            severity: Severity = "severe" if seconds > limit else "warning"
            report.add(check_name, severity, key, words.format(seconds), (start, end), seconds, limit)
    if seen.duplicates > DUPLICATES and not is_depth(key):
        said = f"{seen.duplicates:.0%} of the frames repeat the one before while the joints move"
        report.add("duplicates", "warning", key, said, None, seen.duplicates, DUPLICATES)


def _lags(store: EpisodeStore, chosen: Sequence[int], looked: Sequence[Looked]) -> list[Finding]:
    """Cameras behind (or ahead of) the joints, from all episodes together."""
    found = []
    for key in store.features:
        measured = lag([one.follows[key] for one in looked if key in one.follows])
        if measured is None:
            continue
        behind, margin = measured
        sure = abs(behind) - margin
        if sure < LAG_WARNING_S:
            continue
        severity: Severity = "severe" if sure > LAG_SEVERE_S else "warning"
        side = "behind" if behind > 0 else "ahead of"
        said = f"the picture is {abs(behind) * 1e3:.0f} ± {margin * 1e3:.0f} ms {side} the joints"
        i, name = (chosen[0], store.episodes[chosen[0]].path.name) if len(chosen) == 1 else (-1, "")
        found.append(
            Finding(i, name, "misaligned", severity, key, said, None, None, round(behind, 4), LAG_WARNING_S)
        )
    return found


def _outliers(store: EpisodeStore, chosen: Sequence[int], looked: Sequence[Looked]) -> list[Finding]:
    """Episodes unlike the others, by the distance to the median in median absolute deviations."""
    found: list[Finding] = []
    if len(chosen) < FEWEST_FOR_OUTLIERS:
        return found
    for what in dict.fromkeys(k for one in looked for k in one.measures):
        values = np.array([one.measures.get(what, np.nan) for one in looked])
        middle = float(np.nanmedian(values))
        spread = 1.4826 * float(np.nanmedian(np.abs(values - middle)))
        # deviations that do not matter, however alike the others are: radians, grey levels, a share of the whole
        floor = (
            0.05 if what.startswith("start") else 2.0 if what.startswith("brightness") else 0.05 * abs(middle)
        )
        z = (values - middle) / max(spread, floor, 1e-9)
        for at in np.flatnonzero(np.abs(z) > OUTLIER_Z).tolist():
            e = store.episodes[chosen[at]]
            said = f"its {what} is {values[at]:.3g}, that of the others {middle:.3g}"
            score = round(float(z[at]), 2)
            found.append(
                Finding(e.index, e.path.name, "outlier", "warning", "", said, None, None, score, OUTLIER_Z)
            )
    return found
