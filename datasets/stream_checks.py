"""Checks of times and vectors: clocks, gaps, rates, limits, what was asked against what was sent, motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .align import period_ns
from .features import ACTION, STATE
from .findings import Report, Severity
from .flags import INVALID, STALE
from .store import REQUESTED, EpisodeStore

GAP_PERIODS, GAP_SEVERE_PERIODS, GAP_SEVERE_S, JUMP_S = 2.5, 10, 0.5, 60
RATE_WARNING, RATE_SEVERE = 0.05, 0.2
STALE_SHARE = 0.05
SHORT_S, SHORT_TICKS = 0.5, 5
STATIC = 0.01
NOT_SENT_WARNING = 0.2


@dataclass(frozen=True)
class Streams:
    """What could be read of an episode. values: the vectors. times: (t_capture_ns, t_receive_ns)."""

    values: dict[str, np.ndarray]
    times: dict[str, tuple[np.ndarray, np.ndarray]]

    def speed(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(moments ns, how fast the joints move, per second), between rows of the state; of the action where there is none."""
        key = STATE if STATE in self.values else ACTION
        values, times = self.values.get(key), self.times.get(key)
        if values is None or times is None or len(values) < 5 or len(times[0]) != len(values):
            return None
        dt = np.maximum(np.diff(times[0]), 1) * 1e-9
        steps = np.diff(values.reshape(len(values), -1).astype(float), axis=0)
        steps = np.where(np.isfinite(steps), steps, 0.0)
        return (times[0][:-1] + times[0][1:]) // 2, np.linalg.norm(steps, axis=1) / dt


def check_times(report: Report, key: str, capture: np.ndarray, receive: np.ndarray, nominal_ns: int) -> None:
    """Order, gaps, and the loop's rate where `nominal_ns` is given."""
    if len(early := np.flatnonzero(receive < capture)):
        at = int(capture[early[0]])
        most = float((capture - receive).max()) * 1e-9
        said = f"{len(early)} rows were received before they were captured, up to {most:.3f} s"
        report.add("clock", "severe", key, said, (at, at), most, 0.0)
    if len(capture) < 2:
        return
    steps, period = np.diff(capture), period_ns(capture)
    for row in np.flatnonzero(steps < 0)[:20].tolist():
        back, at = -float(steps[row]) * 1e-9, int(capture[row])
        report.add("clock", "severe", key, f"the clock steps back by {back:.3f} s", (at, at), back, 0.0)
    limit = max(GAP_PERIODS * period, 1)
    for row in np.flatnonzero(steps > limit)[:100].tolist():
        gap, span = float(steps[row]) * 1e-9, (int(capture[row]), int(capture[row + 1]))
        if gap > JUMP_S:
            report.add("clock", "severe", key, f"the clock jumps ahead by {gap:.0f} s", span, gap, JUMP_S)
            continue
        severe = gap > max(GAP_SEVERE_S, GAP_SEVERE_PERIODS * period * 1e-9)
        said = f"nothing for {gap:.3f} s, {gap / (period * 1e-9):.1f} periods"
        report.add("gap", "severe" if severe else "warning", key, said, span, gap, limit * 1e-9)
    if nominal_ns and period and (off := abs(period / nominal_ns - 1)) > RATE_WARNING:
        said = f"the loop ran at {1e9 / period:.2f} Hz instead of {1e9 / nominal_ns:.2f} Hz"
        report.add("rate", "severe" if off > RATE_SEVERE else "warning", key, said, None, off, RATE_WARNING)


def check_vector(
    report: Report,
    store: EpisodeStore,
    key: str,
    values: np.ndarray,
    times: tuple[np.ndarray, np.ndarray] | None,
    flags: np.ndarray,
) -> None:
    """Shape, finiteness, and what the recorder marked."""
    feature = store.features[ACTION] if key == REQUESTED else store.features.get(key)
    if feature is not None and (values.shape[1:] != feature.shape or values.dtype != feature.dtype):
        said = (
            f"it is {values.dtype} {values.shape[1:]}, the dataset's feature {feature.dtype} {feature.shape}"
        )
        report.add("shape", "severe", key, said)
    if times is not None and len(times[0]) != len(values):
        report.add("shape", "severe", key, f"it has {len(values)} rows but {len(times[0])} times")
    good = (
        np.isfinite(values.reshape(len(values), -1)).all(1) if values.dtype.kind == "f" else np.ones(1, bool)
    )
    if not good.all():
        first, count = int(np.flatnonzero(~good)[0]), int((~good).sum())
        at = int(times[0][first]) if times is not None and first < len(times[0]) else None
        said = f"{count} rows are not finite, the first is row {first}"
        report.add("nan", "severe", key, said, None if at is None else (at, at))
    if not len(flags):
        return
    stale, invalid = (float((flags & bit > 0).mean()) for bit in (STALE, INVALID))
    if stale > STALE_SHARE and key in (STATE, ACTION):  # trackers and the like may be slower than the loop
        said = f"{stale:.1%} of the rows are older than their tick"
        report.add("stale", "warning", key, said, None, stale, STALE_SHARE)
    if invalid:
        said = f"{invalid:.1%} of the rows were doubted by the device"
        report.add("invalid", "warning", key, said, None, invalid, 0.0)


def check_limits(report: Report, store: EpisodeStore, streams: Streams) -> None:
    """Joint limits that the recorder noted in the episode's attribute `limits`: {name: [low, high]}."""
    limits = report.episode.attrs.get("limits")
    if not isinstance(limits, dict):
        return
    levels: tuple[tuple[str, float, Severity], ...] = ((ACTION, 0.001, "severe"), (STATE, 0.03, "warning"))
    for key, slack, severity in levels:
        values, feature = streams.values.get(key), store.features.get(key)
        if values is None or feature is None or len(feature.names) != values.shape[-1]:
            continue
        for j, name in enumerate(feature.names):
            if name not in limits:
                continue
            low, high = limits[name]
            margin = slack * (high - low)
            beyond = np.maximum(low - values[:, j], values[:, j] - high)
            rows = np.flatnonzero(beyond > margin)
            if len(rows):
                worst, unit = float(beyond.max()), feature.units[j] if j < len(feature.units) else ""
                span = int(streams.times[key][0][rows[0]]), int(streams.times[key][0][rows[-1]])
                said = f"{name} is beyond its limits [{low:.3f}, {high:.3f}] by up to {worst:.4f} {unit} in {len(rows)} rows"
                report.add("limit", severity, key, said, span, worst, margin)


def check_requested(report: Report, store: EpisodeStore, streams: Streams) -> None:
    """What was asked for against what was sent."""
    asked, sent = streams.values.get(REQUESTED), streams.values.get(ACTION)
    if asked is None or sent is None or asked.shape != sent.shape or not len(sent):
        return
    sent = sent.reshape(len(sent), -1).astype(float)
    difference = np.abs(asked.reshape(len(sent), -1).astype(float) - sent)
    differs = (difference > np.maximum(0.01 * np.ptp(sent, axis=0), 1e-4)).any(1)
    share = float(differs.mean())
    if share > 0.01:
        rows, joint, feature = (
            np.flatnonzero(differs),
            int(difference.max(0).argmax()),
            store.features[ACTION],
        )
        name = feature.names[joint] if joint < len(feature.names) else f"element {joint}"
        unit = feature.units[joint] if joint < len(feature.units) else ""
        span = int(streams.times[ACTION][0][rows[0]]), int(streams.times[ACTION][0][rows[-1]])
        most = difference.max()
        said = f"in {share:.0%} of the ticks another action was sent than asked for, most for {name}: {most:.4f} {unit}"
        severity: Severity = "warning" if share > NOT_SENT_WARNING else "info"
        report.add("not sent", severity, ACTION, said, span, share, NOT_SENT_WARNING)


def check_motion(report: Report, store: EpisodeStore, streams: Streams) -> dict[str, float]:
    """Too short, or still; and numbers to compare episodes by."""
    ticks = streams.times[ACTION][0] if ACTION in streams.times else np.zeros(0, np.int64)
    seconds = float(ticks[-1] - ticks[0]) * 1e-9 if len(ticks) else 0.0
    if len(ticks) < SHORT_TICKS or seconds < SHORT_S:
        severity: Severity = "severe" if len(ticks) < SHORT_TICKS else "warning"
        said = f"it lasts {seconds:.2f} s, {len(ticks)} ticks"
        report.add("short", severity, ACTION, said, None, seconds, SHORT_S)
    measures = {"length": seconds}
    key = STATE if STATE in streams.values else ACTION
    values = streams.values.get(key)
    if values is None or len(values) < SHORT_TICKS or not np.isfinite(values).all():
        return measures
    values = values.reshape(len(values), -1).astype(float)
    path = float(np.linalg.norm(np.diff(values, axis=0), axis=1).sum())
    reach = float(np.ptp(values, axis=0).max())
    if reach < STATIC:
        said = f"nothing moves by more than {reach:.4f}"
        report.add("static", "severe", key, said, None, reach, STATIC)
    names = store.features[key].names if key in store.features else ()
    names = names if len(names) == values.shape[1] else tuple(f"element {j}" for j in range(values.shape[1]))
    starts = {f"start of {name}": v for name, v in zip(names[:64], values[0].tolist(), strict=False)}
    return measures | {"path length": path, "mean speed": path / max(seconds, 1e-9)} | starts
