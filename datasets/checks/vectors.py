"""Checks of joints and commands: complete, finite, within limits, moving, and sent as requested."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import numpy as np

from ..features import ACTION, REQUESTED, STATE
from ..store import EpisodeStore
from .findings import Finding, Recording, Severity, Stream, travel

LIMIT_SHARE = 0.01  # of a joint's range; controllers overshoot by that much
SHORT_S = 1.0  # shorter than any task
IDLE_S = 3.0  # a policy that learns from stillness learns to stand still
STILL = {"rad": 0.02, "deg": 1.0, "m": 0.005}  # less than this is noise of the encoder and sag
STILL_OTHERWISE = 0.02
CLIPPED_SHARE = 0.2  # of the ticks; limits on speed change the first ticks of every fast motion
CLIPPED_SEVERE = 0.6
DIFFERENT = 1e-3  # of a joint's range
LATE_S = 0.3  # what limits of acceleration and jerk make later than asked for is not further behind
GRIPPER = re.compile("gripper|finger|jaw|hand", re.IGNORECASE)
JUMP_SHARE = 0.2  # of the joint's range from one row to the next
JUMP_ALONE = 4  # times the steps before and after in its direction


def check_vectors(r: Recording, store: EpisodeStore) -> Iterator[Finding]:
    yield from _whole(r, store)
    for stream in r.streams.values():
        if stream.values is not None:
            yield from _finite(r, stream)
            if stream.key in (STATE, ACTION):
                yield from _limits(r, stream)
            if stream.key == STATE:
                yield from _jumps(r, stream)
                yield from _held_readings(r, stream)
    yield from _motion(r)
    if ACTION in r.streams and REQUESTED in r.streams:
        yield from _as_requested(r, r.streams[ACTION], r.streams[REQUESTED])


def _whole(r: Recording, store: EpisodeStore) -> Iterator[Finding]:
    for key, why in r.read_errors.items():
        yield r.finding("damaged", "severe", f"it cannot be read: {why}", key)
    for key in store.features:
        if key not in r.episode.streams:
            yield r.finding("missing", "severe", "the episode lacks this stream of the store's features", key)
    for key, why in r.mismatches.items():
        yield r.finding("features", "severe", why, key)
    counts = r.episode.attrs.get("streams")
    for key, stream in r.streams.items():
        said = (
            counts[key].get("rows")
            if isinstance(counts, dict) and isinstance(counts.get(key), dict)
            else None
        )
        if not len(stream.t_s):
            yield r.finding("missing", "severe", "the stream has no rows", key)
        elif said is not None and said != len(stream.t_s):
            yield r.finding(
                "damaged", "severe", f"{said} rows were written, {len(stream.t_s)} are there", key
            )
    if ACTION in r.streams and len(r.streams[ACTION].t_s) != r.episode.length:
        ticks = len(r.streams[ACTION].t_s)
        yield r.finding("damaged", "severe", f"{r.episode.length} ticks were said, {ticks} are there", ACTION)
    if said := r.episode.attrs.get("damaged"):
        yield r.finding(
            "damaged",
            "warning",
            f"its recording was damaged before it was recovered: {said}; the rest is whole",
        )
    if r.episode.interrupted:
        reason = r.episode.attrs["interrupted"]
        why = f" ({reason})" if isinstance(reason, str) else ""
        yield r.finding("interrupted", "warning", f"the recording was cut off{why}: its task was not ended")
    for note in r.episode.attrs.get("notes") or ():
        yield r.finding("noted", "warning", str(note))


def _finite(r: Recording, stream: Stream) -> Iterator[Finding]:
    assert stream.values is not None
    nonfinite = ~np.isfinite(stream.values)
    if nonfinite.any():
        rows = np.flatnonzero(nonfinite.any(axis=1))
        columns = ", ".join(stream.name_of(c) for c in np.flatnonzero(nonfinite.any(axis=0))[:4])
        span = float(stream.t_s[rows[0]]), float(stream.t_s[rows[-1]])
        yield r.finding(
            "nan", "severe", f"{len(rows)} rows are not finite ({columns})", stream.key, span, len(rows), 0
        )


def _limits(r: Recording, stream: Stream) -> Iterator[Finding]:
    """Compare values with attrs["limits"], {joint: [lower, upper]}, which the recorder takes from the
    robot."""
    limits = r.episode.attrs.get("limits")
    if not isinstance(limits, dict) or stream.values is None:
        return
    for column in range(stream.values.shape[1]):
        name = stream.name_of(column)
        try:
            low, high = (float(v) for v in limits[name])
        except (KeyError, TypeError, ValueError):
            continue
        values = stream.values[:, column]
        over = np.maximum(low - values, values - high)
        margin = LIMIT_SHARE * (high - low)
        beyond = over > margin
        if beyond.any():
            worst = int(np.nanargmax(over))
            span = [float(stream.t_s[i]) for i in np.flatnonzero(beyond)[[0, -1]]]
            yield r.finding(
                "limits",
                "severe" if stream.key == ACTION else "warning",
                f"{name} is at {values[worst]:.4g}{stream.unit_of(column)}, its limits are {low:.4g} to "
                f"{high:.4g} ({beyond.sum()} rows beyond)",
                stream.key,
                (span[0], span[1]),
                float(over[worst]),
                margin,
            )


def _jumps(r: Recording, stream: Stream) -> Iterator[Finding]:
    """Single large steps of a measured joint, with small steps before and after: a wrong reading, or an angle
    that wraps. An arm cannot move so; a command may, so `action` is not checked."""
    if stream.values is None or not np.isfinite(stream.values).all():
        return
    floor = 2 * still(stream)
    for column, values in enumerate(stream.values.T):
        rows = np.flatnonzero(np.diff(values)) + 1  # a reading that repeats for several rows makes one step
        if len(rows) < 20:
            continue
        steps = values[rows] - values[rows - 1]
        size, along = np.abs(steps), np.sign(steps)
        span = np.quantile(values, 0.98) - np.quantile(values, 0.02)
        limit = max(JUMP_SHARE * span, 5 * np.quantile(size, 0.97), floor[column])
        before = np.concatenate([[0], steps[:-1]]) * along
        after = np.concatenate([steps[1:], [0]]) * along
        jumps = np.flatnonzero((size > limit) & (size > JUMP_ALONE * np.maximum(before, after)))
        if not len(jumps):
            continue
        worst = float(size[jumps].max())
        first, last = rows[jumps[0]], rows[jumps[-1]]
        yield r.finding(
            "jump",
            "warning",
            f"{stream.name_of(column)} jumps by {worst:.4g}{stream.unit_of(column)} from one row to the next "
            f"({len(jumps)} such steps)",
            stream.key,
            (float(stream.t_s[first - 1]), float(stream.t_s[last])),
            worst,
            float(limit),
        )


def _held_readings(r: Recording, stream: Stream) -> Iterator[Finding]:
    """Joints whose readings stay equal to the last bit for several rows and then change by much: a device, or
    a part of it, that measures more slowly than it is read."""
    values = stream.values
    if values is None or stream.period_s <= 0:
        return
    periods: dict[int, float] = {}
    for column, x in enumerate(values.T):
        changes = np.flatnonzero(np.diff(x))
        if len(changes) < 15:
            continue
        steps, apart = np.abs(x[changes + 1] - x[changes]), np.diff(changes)
        usual = float(np.median(apart))
        regular = np.abs(apart - usual) <= max(1.0, 0.3 * usual)
        # a slow joint with a coarse encoder also repeats readings, but then changes by the smallest step
        if (
            usual > 1
            and np.mean(apart == 1) < 0.05
            and regular.mean() > 0.7
            and np.median(steps) > 3 * steps.min()
        ):
            periods[column] = float(apart[regular].mean())
    if periods:
        names = ", ".join(stream.name_of(c) for c in list(periods)[:4]) + (" …" if len(periods) > 4 else "")
        rows = float(np.median(list(periods.values())))
        yield r.finding(
            "held",
            "info",
            f"{len(periods)} of {values.shape[1]} readings change only every {rows:.1f} rows, at about "
            f"{1 / (rows * stream.period_s):.2g} Hz in a stream of {1 / stream.period_s:.3g} Hz: {names}",
            stream.key,
            value=rows,
            threshold=1,
        )


def still(stream: Stream) -> np.ndarray:
    """How far each column `(D,)` may travel and still count as standing still."""
    assert stream.values is not None
    units = stream.feature.units if stream.feature else ()
    width = stream.values.shape[1]
    margins = [STILL.get(u, STILL_OTHERWISE) for u in units] if len(units) == width else []
    return np.array(margins or [STILL_OTHERWISE] * width)


def _motion(r: Recording) -> Iterator[Finding]:
    joints = r.joints
    if ACTION in r.streams and r.end_s < SHORT_S:
        severity: Severity = "severe" if r.episode.length < 2 else "warning"
        yield r.finding(
            "short",
            severity,
            f"it lasts {r.end_s:.2f} s, {r.episode.length} ticks",
            value=r.end_s,
            threshold=SHORT_S,
        )
    if joints is None or joints.values is None or not np.isfinite(joints.values).all():
        return
    distances = travel(joints.values) / still(joints)
    if distances.max(initial=0) < 1:
        yield r.finding(
            "static",
            "severe",
            f"nothing moves: no joint of {joints.key} goes further than noise",
            joints.key,
            value=float(distances.max(initial=0)),
            threshold=1.0,
        )
        return
    for start, end in idle(joints):
        yield r.finding(
            "idle",
            "info" if end - start < r.end_s / 2 else "warning",
            f"no joint moves for {end - start:.1f} s",
            joints.key,
            (start, end),
            end - start,
            IDLE_S,
        )


def idle(joints: Stream) -> list[tuple[float, float]]:
    """Stretches (start_s, end_s) of more than IDLE_S in which every joint stays where it was at the start."""
    assert joints.values is not None
    stretches, begin = [], 0
    positions = joints.values / still(joints)
    low = high = positions[0]
    for i in range(1, len(positions) + 1):
        if i < len(positions):
            low, high = np.minimum(low, positions[i]), np.maximum(high, positions[i])
            if (high - low).max() < 1:
                continue
        if joints.t_s[i - 1] - joints.t_s[begin] > IDLE_S:
            stretches.append((float(joints.t_s[begin]), float(joints.t_s[i - 1])))
        begin = i
        if i < len(positions):
            low = high = positions[i]
    return stretches


def _as_requested(r: Recording, command: Stream, request: Stream) -> Iterator[Finding]:
    """Commands that limits and safety changed. A policy that is trained on `action` learns what was sent, and
    where that only came a little later, it is the same motion."""
    if command.values is None or request.values is None or command.values.shape != request.values.shape:
        return
    difference = np.abs(command.values - request.values)
    differs = difference > DIFFERENT * _scale(r, request)
    held = differs & _held_back(r, command)
    if held.any():
        of_joint = held.mean(axis=0)
        joints = [
            f"{command.name_of(c)} {of_joint[c]:.0%}" for c in np.flatnonzero(held.any(axis=0)).tolist()
        ]
        rows = np.flatnonzero(held.any(axis=1))
        yield r.finding(
            "held-back",
            "info",
            f"{', '.join(joints[:6])} of the ticks asked for more than was sent, and it stood: as a gripper "
            "that holds something does",
            ACTION,
            (float(command.t_s[rows[0]]), float(command.t_s[rows[-1]])),
            len(rows) / len(held),
        )
    differs &= ~held
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return
    ticks, near = round(LATE_S * r.control_hz), 10 * DIFFERENT * _scale(r, request)
    changed = (differs & ~_late(command.values, request.values, ticks, near)).any(axis=1)
    share = float(changed.mean())
    worst = np.nanmax(np.where(differs, difference, 0), axis=0)
    of_joint = differs.mean(axis=0)
    order = [c for c in np.argsort(-of_joint).tolist() if differs[:, c].any()]
    joints = [
        f"{command.name_of(c)} {of_joint[c]:.0%} by up to {worst[c]:.3g}{command.unit_of(c)}" for c in order
    ]
    severity: Severity = (
        "info" if share < CLIPPED_SHARE else "warning" if share < CLIPPED_SEVERE else "severe"
    )
    more = f", and {len(joints) - 6} more" if len(joints) > 6 else ""
    late = len(rows) - int(changed.sum())
    yield r.finding(
        "clipped",
        severity,
        f"{len(rows)} of {len(differs)} ticks ({len(rows) / len(differs):.0%}) were sent otherwise than "
        f"asked for{f', {late} of them only later' if late else ''}: {', '.join(joints[:6])}{more}",
        ACTION,
        (float(command.t_s[rows[0]]), float(command.t_s[rows[-1]])),
        share,
        CLIPPED_SHARE,
    )


def _late(sent: np.ndarray, asked: np.ndarray, rows: int, near: np.ndarray) -> np.ndarray:
    """Which commands `(T, D)` are where, within so many rows before, a joint was asked to be or to pass."""
    padded = np.concatenate([asked[:1].repeat(rows, 0), asked])
    windows = np.lib.stride_tricks.sliding_window_view(padded, rows + 1, axis=0)
    return (sent >= windows.min(axis=-1) - near) & (sent <= windows.max(axis=-1) + near)


def _held_back(r: Recording, command: Stream) -> np.ndarray:
    """Which commands `(T, D)`, of grippers, neither move nor stand at a limit. Where more is asked for, it
    holds something, and its driver lets it push no harder; a limit on speed would let it move."""
    assert command.values is not None
    near = DIFFERENT * _scale(r, command)
    stands = np.abs(np.diff(command.values, axis=0, prepend=command.values[:1])) <= 2 * near
    limits = r.episode.attrs.get("limits") or {}
    for column in range(command.values.shape[1]):
        if not GRIPPER.search(command.name_of(column)):
            stands[:, column] = False
            continue
        with contextlib.suppress(KeyError, TypeError, ValueError):
            low, high = (float(v) for v in limits[command.name_of(column)])
            at = command.values[:, column]
            stands[:, column] &= (at > low + near[column]) & (at < high - near[column])
    return stands


def _scale(r: Recording, stream: Stream) -> np.ndarray:
    """The range of each joint `(D,)`: from its limits, else the range that it travelled."""
    assert stream.values is not None
    limits = r.episode.attrs.get("limits") or {}
    scale = np.maximum(travel(stream.values), still(stream))
    for column in range(len(scale)):
        try:
            low, high = limits[stream.name_of(column)]
            scale[column] = float(high) - float(low)
        except (KeyError, TypeError, ValueError):
            continue
    return scale
