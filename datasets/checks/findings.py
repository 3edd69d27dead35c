"""Findings, and one episode as the checks read it: every stream in seconds from the episode's start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..episode import Episode, StoreError
from ..features import ACTION, REQUESTED, STATE, Feature, is_frames
from ..reading.align import period_ns
from ..store import EpisodeStore

Severity = Literal["info", "warning", "severe"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")
SINGLE = 12  # findings of one kind in one stream; if there are more, they are summed up in one


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing. episode, name: its number and its folder. start_s, end_s:
    seconds from the capture of the episode's first action. stream: "" for the whole episode. value,
    threshold: the measured number and its limit, in the unit that the message names; None where there is no
    number."""

    episode: int
    name: str
    check: str
    severity: Severity
    stream: str
    start_s: float
    end_s: float
    message: str
    value: float | None = None
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Stream:
    """One stream that could be read. t_s, receive_s `(T,)` float64; flags `(T,)` uint8; values `(T, D)`
    float64 of a vector, None of images and depth; period_s: its median interval, 0 where there is none."""

    key: str
    feature: Feature | None
    t_s: np.ndarray
    receive_s: np.ndarray
    flags: np.ndarray
    values: np.ndarray | None
    period_s: float

    def name_of(self, column: int) -> str:
        names = self.feature.names if self.feature else ()
        return names[column] if column < len(names) else f"element {column}"

    def unit_of(self, column: int) -> str:
        units = self.feature.units if self.feature else ()
        return f" {units[column]}" if column < len(units) and units[column] else ""


@dataclass
class Recording:
    """One episode, read. end_s: the time of the last action. read_errors: stream → why it could not be read;
    such streams are not in `streams`. mismatches: stream → how it differs from the store's features."""

    episode: Episode
    control_hz: float
    end_s: float
    streams: dict[str, Stream] = field(default_factory=dict)
    read_errors: dict[str, str] = field(default_factory=dict)
    mismatches: dict[str, str] = field(default_factory=dict)

    @property
    def joints(self) -> Stream | None:
        """The stream that tells where the arm is: its state, else the actions that it was sent."""
        for key in (STATE, ACTION):
            if key in self.streams and len(self.streams[key].t_s) > 1:
                return self.streams[key]
        return None

    def finding(
        self,
        check: str,
        severity: Severity,
        message: str,
        stream: str = "",
        span_s: tuple[float, float] | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> Finding:
        start, end = span_s if span_s is not None else (0.0, self.end_s)
        number = None if value is None or not np.isfinite(value) else round(float(value), 6)
        e = self.episode
        at = round(float(start), 4), round(float(max(start, end)), 4)
        return Finding(e.index, e.path.name, check, severity, stream, *at, message, number, threshold)


def read_recording(store: EpisodeStore, episode: Episode) -> Recording:
    """Read everything but images and depth. A damaged stream raises nothing: it is named in `read_errors`."""
    recording = Recording(episode, store.control_hz, episode.length / store.control_hz)
    times: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key in episode.streams:
        try:
            times[key] = episode.times_ns(key)
        except StoreError as error:
            recording.read_errors[key] = str(error)
    zero = zero_ns({key: capture for key, (capture, _) in times.items()})
    for key, (capture, receive) in times.items():
        feature = store.features[ACTION] if key == REQUESTED else store.features.get(key)
        try:
            rows, flags = episode.rows(key), episode.flags(key)
            values = None
            if is_frames(key):
                shape, dtype = _shape_of_frames(episode, key)
            else:
                rows_array = episode.read(key)
                shape, dtype = rows_array.shape[1:], rows_array.dtype.name
                values = np.asarray(rows_array, np.float64).reshape(rows, -1)
            if not rows == len(capture) == len(receive) == len(flags):
                raise StoreError(f"it has {rows} rows, {len(capture)} times and {len(flags)} flags")
        except (StoreError, ValueError, TypeError) as error:
            recording.read_errors[key] = str(error)
            continue
        if feature is not None and (shape != feature.shape or dtype != feature.dtype):
            recording.mismatches[key] = (
                f"it holds {dtype} {shape}, the store's features say {feature.dtype} {feature.shape}"
            )
        seconds, receive_s = (capture - zero) * 1e-9, (receive - zero) * 1e-9
        recording.streams[key] = Stream(
            key, feature, seconds, receive_s, flags, values, period_ns(capture) * 1e-9
        )
        if key == ACTION and rows:
            recording.end_s = float(seconds[-1])
    return recording


def runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of every unbroken run of True in `mask` `(N,)`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    for first, after in edges.reshape(-1, 2).tolist():
        yield first, after - 1


def travel(values: np.ndarray) -> np.ndarray:
    """How far each column of `(T, D)` travels within its range, `(D,)`."""
    return np.nanmax(values, axis=0) - np.nanmin(values, axis=0) if len(values) else np.zeros(values.shape[1])


def _shape_of_frames(episode: Episode, key: str) -> tuple[tuple[int, ...], str]:
    empty = episode.read_frames(key, [])
    return empty.shape[1:], empty.dtype.name


def zero_ns(capture_ns: Mapping[str, np.ndarray]) -> int:
    """The zero of an episode's time line in ns: the first action, or without one the earliest row.

    capture_ns: the capture times `(T,)` of each stream."""
    if ACTION in capture_ns and len(capture_ns[ACTION]):
        return int(capture_ns[ACTION][0])
    return min((int(t.min()) for t in capture_ns.values() if len(t)), default=0)
