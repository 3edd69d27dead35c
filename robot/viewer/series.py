"""One episode on its time line: seconds from the capture of its first action, which is also the zero of
findings and trims."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...datasets.checks.findings import runs, zero_ns
from ...datasets.checks.times import GAP_PERIODS
from ...datasets.episode import Episode, StoreError
from ...datasets.features import ACTION, REQUESTED, STATE, Feature, Features, is_depth, is_frames
from ...datasets.flags import INTERVENTION, LIMITED
from ...datasets.reading.align import period
from .library import NotThere

CURVES_A_PANEL = 6


@dataclass(frozen=True)
class Vector:
    """A stream that can be plotted. t_s: capture times `(T,)` float64, ascending. values: `(T, D)` float64.
    names, units: of the D columns. gap_s: the curve is interrupted where rows are further apart."""

    key: str
    t_s: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]
    gap_s: float


@dataclass(frozen=True)
class Timeline:
    """times: stream → seconds `(T,)` float64, ascending. damage: stream → why it cannot be read.
    interventions: (start, end) of each, s, when a human overrode the policy; limited: when the safety filter
    changed what was asked for. start_s, end_s: first and last capture of any stream; start_s is
    at most 0, because cameras may begin before the control loop."""

    times: dict[str, np.ndarray]
    vectors: dict[str, Vector]
    damage: dict[str, str]
    interventions: list[tuple[float, float]]
    limited: list[tuple[float, float]]
    start_s: float
    end_s: float


def read_timeline(e: Episode, features: Features) -> Timeline:
    """Read all of an episode but its images. A stream that cannot be read is named in `damage`; the others
    are read all the same."""
    capture_ns: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    damage: dict[str, str] = {}
    for key in e.streams:
        try:
            times = e.times_ns(key)[0]
            if len(times) != e.rows(key):
                raise StoreError(f"stream {key} has {e.rows(key)} rows, but {len(times)} times")
            if not is_frames(key):
                data = e.read(key)
                values[key] = data.astype(np.float64).reshape(len(times), math.prod(data.shape[1:]))
            capture_ns[key] = times
        except (StoreError, ValueError, TypeError) as error:
            damage[key] = str(error)
    zero = zero_ns(capture_ns)
    # a device's clock may step back; on the page time must not
    times = {k: np.maximum.accumulate((t - zero) * 1e-9) for k, t in capture_ns.items()}
    vectors = {}
    for key, v in values.items():
        feature = features.get(ACTION if key == REQUESTED else key, Feature((), ""))
        fits = len(feature.names) == v.shape[1]
        names = feature.names if fits else tuple(f"element {i}" for i in range(v.shape[1]))
        units = feature.units if len(feature.units) == v.shape[1] else ("",) * v.shape[1]
        vectors[key] = Vector(key, times[key], v, names, units, GAP_PERIODS * period(times[key]))
    ends = [t for t in times.values() if len(t)]
    return Timeline(
        times,
        vectors,
        damage,
        _flagged(e, times, INTERVENTION),
        _flagged(e, times, LIMITED),
        min([0.0, *(float(t[0]) for t in ends)]),
        max([0.0, *(float(t[-1]) for t in ends)]),
    )


def describe(timeline: Timeline, e: Episode, features: Features) -> dict[str, Any]:
    """The description of an episode that the page needs before it requests rows, as JSON."""
    ticks = timeline.times.get(ACTION, np.zeros(0))
    streams = []
    for key in e.streams:
        t = timeline.times.get(key, np.zeros(0))
        kind = "depth" if is_depth(key) else "image" if is_frames(key) else "vector"
        interval = period(t)
        streams.append(
            {
                "key": key,
                "kind": kind,
                "rows": len(t),
                "hz": round(1 / interval, 3) if interval > 0 else None,
                "start_s": float(t[0]) if len(t) else None,
                "end_s": float(t[-1]) if len(t) else None,
                "shape": list(features[key].shape) if key in features else None,
                "error": timeline.damage.get(key, ""),
            }
        )
    return {
        "start_s": timeline.start_s,
        "end_s": timeline.end_s,
        "last_tick_s": float(ticks[-1]) if len(ticks) else 0.0,
        "streams": streams,
        "panels": panels(timeline.vectors),
        "interventions": timeline.interventions,
        "limited": timeline.limited,
        "attrs": {k: v for k, v in e.attrs.items() if k not in ("streams", "content")},
    }


def panels(vectors: dict[str, Vector]) -> list[dict[str, Any]]:
    """The plots of the page with their curves, as JSON. A joint's measured, sent and requested positions
    share a plot, matched by name and unit; columns of other streams share one when their names have the same
    part before the last dot."""
    plots: list[dict[str, Any]] = []
    state, action = vectors.get(STATE), vectors.get(ACTION)
    plotted_columns: set[tuple[str, int]] = set()

    def of_action(column: int) -> list[dict[str, Any]]:
        plotted_columns.add((ACTION, column))
        curves = [{"stream": ACTION, "column": column, "role": "sent", "label": "sent"}]
        if REQUESTED in vectors and column < vectors[REQUESTED].values.shape[1]:
            plotted_columns.add((REQUESTED, column))
            curves.append({"stream": REQUESTED, "column": column, "role": "requested", "label": "requested"})
        return curves

    def add(title: str, unit: str, group: str, curves: list[dict[str, Any]]) -> None:
        plots.append({"title": title, "unit": unit, "group": group, "curves": curves})

    if state:
        for column, name in enumerate(state.names):
            plotted_columns.add((STATE, column))
            curves = [{"stream": STATE, "column": column, "role": "state", "label": "measured"}]
            if action and name in action.names:
                same = action.names.index(name)
                if (
                    not (state.units[column] and action.units[same])
                    or state.units[column] == action.units[same]
                ):
                    curves += of_action(same)
            add(name, state.units[column], "joints", curves)
    for column, name in enumerate(action.names if action else ()):
        if action and (ACTION, column) not in plotted_columns:
            add(name, action.units[column], "actions", of_action(column))
    for key, vector in vectors.items():
        groups: dict[tuple[str, str], list[int]] = {}
        for column, name in enumerate(vector.names):
            if (key, column) not in plotted_columns:
                prefix = name.rpartition(".")[0] if "." in name else ""
                groups.setdefault((prefix, vector.units[column]), []).append(column)
        short = key.removeprefix("observation.")
        for (prefix, unit), columns in groups.items():
            for first in range(0, len(columns), CURVES_A_PANEL):
                part = columns[first : first + CURVES_A_PANEL]
                curves = [
                    {
                        "stream": key,
                        "column": c,
                        "role": f"other{i}",
                        "label": vector.names[c].removeprefix(f"{prefix}."),
                    }
                    for i, c in enumerate(part)
                ]
                title = prefix or (vector.names[part[0]] if len(part) == 1 else short)
                add(title, unit, short, curves)
    return plots


def series(timeline: Timeline, start_s: float, end_s: float, bins: int) -> dict[str, Any]:
    """The rows of every vector stream in a window of time, plus one row beyond either end, as JSON: stream →
    `t`, `columns`, `gap_s`, and whether the rows are `decimated`: more than 2 × `bins` rows are reduced to
    the least and the greatest value of each bin, in the order in which the curve rises or falls, so that no
    peak is lost."""
    streams = {}
    for key, vector in timeline.vectors.items():
        first = max(0, int(np.searchsorted(vector.t_s, start_s)) - 1)
        after = min(len(vector.t_s), int(np.searchsorted(vector.t_s, end_s, side="right")) + 1)
        t, values = vector.t_s[first:after], vector.values[first:after]
        decimated = len(t) > 2 * bins
        if decimated:
            t, values = decimate(t, values, bins)
        streams[key] = {
            "t": np.round(t, 6).tolist(),
            "columns": [numbers(values[:, d]) for d in range(values.shape[1])],
            "gap_s": round(vector.gap_s, 6),
            "decimated": decimated,
        }
    return streams


def decimate(t: np.ndarray, values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce times `(T,)` and values `(T, D)` to two rows per bin, its least and its greatest value:
    `(2·bins,)` and `(2·bins, D)`."""
    edges = np.linspace(0, len(t), bins + 1).astype(np.int64)
    starts, lasts = edges[:-1], edges[1:] - 1
    low, high = np.fmin.reduceat(values, starts, axis=0), np.fmax.reduceat(values, starts, axis=0)
    rising = values[lasts] >= values[starts]
    out = np.empty((2 * bins, values.shape[1]))
    out[0::2], out[1::2] = np.where(rising, low, high), np.where(rising, high, low)
    times = np.empty(2 * bins)
    times[0::2], times[1::2] = t[starts], t[lasts]
    return times, out


def values_at(timeline: Timeline, t_s: float) -> dict[str, Any]:
    """Of every vector stream the newest row captured by the moment `t_s`, as JSON: stream → `row`, `t`,
    `values`."""
    streams = {}
    for key, vector in timeline.vectors.items():
        if len(vector.t_s):
            row = row_at(vector.t_s, t_s)
            streams[key] = {"row": row, "t": float(vector.t_s[row]), "values": numbers(vector.values[row])}
    return streams


def row_at(t_s: np.ndarray, moment_s: float) -> int:
    """The newest row captured by a moment, or the first row when the moment lies before it. NotThere: the
    stream is empty."""
    if not len(t_s):
        raise NotThere("the stream has no rows")
    # a time that the page got as text may be rounded to slightly before its row
    return max(0, int(np.searchsorted(t_s, moment_s + 1e-6, side="right")) - 1)


def numbers(values: np.ndarray) -> list[float | None]:
    """Values for JSON: finite ones rounded to seven digits, None for the others."""
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max(initial=0.0))
    digits = 6 - int(np.floor(np.log10(largest))) if largest > 0 else 6
    rounded = np.round(np.where(finite, values, 0.0), min(max(digits, 0), 300)).tolist()
    if finite.all():
        return rounded
    return [v if ok else None for v, ok in zip(rounded, finite.tolist(), strict=True)]


def _flagged(e: Episode, times: dict[str, np.ndarray], bit: int) -> list[tuple[float, float]]:
    """(Start, end) in seconds of each time when actions had this flag."""
    if ACTION not in times:
        return []
    try:
        flags = e.flags(ACTION)
    except StoreError:
        return []
    t_s = times[ACTION]
    return [(float(t_s[first]), float(t_s[last])) for first, last in runs((flags & bit) > 0)]
