"""Streams of different rates on one time line: which row of a stream belongs to each moment."""

from __future__ import annotations

from typing import Literal

import numpy as np

Mode = Literal["seen", "nearest"]
Alignment = Literal[Mode, "interpolate"]
NONE = -1


def align(
    base_ns: np.ndarray,
    t_capture_ns: np.ndarray,
    t_receive_ns: np.ndarray,
    tolerance_ns: int,
    mode: Mode = "seen",
) -> np.ndarray:
    """The row `(N,)` int64 of a stream for each moment `base_ns` `(N,)` ascending; -1 where none is within
    tolerance.

    mode "seen": the newest row received by then, which is what the control loop could know; tolerance limits
    its age by capture. nearest: the row captured nearest, which may lie after the moment (good for viewing
    and for labels)."""
    base_ns = np.asarray(base_ns, np.int64)
    if len(t_capture_ns) == 0:
        return np.full(len(base_ns), NONE, np.int64)
    if mode == "seen":
        # receive times can be slightly out of order; what counts is when a row and all before it had arrived
        arrival = np.maximum.accumulate(t_receive_ns)
        rows = np.searchsorted(arrival, base_ns, side="right") - 1
        distance = base_ns - t_capture_ns[np.maximum(rows, 0)]
    else:
        after = np.clip(np.searchsorted(t_capture_ns, base_ns), 0, len(t_capture_ns) - 1)
        before = np.maximum(after - 1, 0)
        earlier = base_ns - t_capture_ns[before] <= t_capture_ns[after] - base_ns
        rows = np.where(earlier, before, after)
        distance = np.abs(base_ns - t_capture_ns[rows])
    return np.where((rows >= 0) & (distance <= tolerance_ns), rows, NONE).astype(np.int64)


def interpolate(
    base_ns: np.ndarray, t_capture_ns: np.ndarray, values: np.ndarray, tolerance_ns: int
) -> tuple[np.ndarray, np.ndarray]:
    """`values` `(T, *shape)` interpolated linearly at each of `base_ns` `(N,)`, and whether each `(N,)` bool
    has rows within tolerance on both sides (or a row at that very moment). Before the first and after the
    last row, that row is repeated."""
    base_ns = np.asarray(base_ns, np.int64)
    if len(t_capture_ns) == 0:
        return np.zeros((len(base_ns), *values.shape[1:]), values.dtype), np.zeros(len(base_ns), bool)
    last = len(t_capture_ns) - 1
    after = np.clip(np.searchsorted(t_capture_ns, base_ns), 0, last)
    before = np.maximum(after - 1, 0)
    before = np.where(t_capture_ns[after] <= base_ns, after, before)
    gap = (t_capture_ns[after] - t_capture_ns[before]).astype(np.float64)
    share = np.where(gap > 0, (base_ns - t_capture_ns[before]) / np.where(gap > 0, gap, 1.0), 0.0)
    share = np.clip(share, 0.0, 1.0).reshape(-1, *(1,) * (values.ndim - 1))
    blend = (values[before] * (1 - share) + values[after] * share).astype(values.dtype)
    near = (
        np.maximum(np.abs(base_ns - t_capture_ns[before]), np.abs(t_capture_ns[after] - base_ns))
        <= tolerance_ns
    )
    return blend, near


def period(times: np.ndarray) -> float:
    """The median interval of a stream in the unit of its `times` `(T,)`, 0 for fewer than two rows."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def period_ns(t_capture_ns: np.ndarray) -> int:
    """`period`, in whole nanoseconds."""
    return int(period(t_capture_ns))


def row_per_tick(by_tick: bool | None, ticks: np.ndarray, capture: np.ndarray, receive: np.ndarray) -> bool:
    """Whether row i of a stream was written for tick i: there are as many rows as ticks, and `by_tick` is
    true. Where `by_tick` is None, each row must be received before the next tick and captured after the tick
    before the previous one. ticks, capture, receive `(T,)` int64 ns."""
    if len(ticks) != len(capture):
        return False
    if by_tick is not None:
        return by_tick
    return bool((receive[:-1] < ticks[1:]).all() and (capture[2:] > ticks[:-2]).all())
