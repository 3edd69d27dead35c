"""Episodes that are unlike the others: longer, faster, rougher, begun elsewhere, in another light.

A median and deviations' quantiles are not moved by the few odd ones, so an episode is measured in those.
Rates and lengths are compared by their logarithms: twice as long is as odd as half as long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..features import ACTION
from .findings import Finding, Recording, Stream, moved
from .vectors import still

ENOUGH = 8  # episodes; of fewer nobody can say what is usual
Z = 5.0  # robust deviations; of a normal distribution one value in two million lies beyond
Z_JOINT = 6.0  # there are many joints
LOG_FLOOR = 0.08  # deviations smaller than 8 % are no reason to call the next one odd
LIGHT_FLOOR = 3.0  # levels of 255
JOINT_FLOOR = 0.04  # of the joint's range over all episodes


@dataclass
class Traits:
    """What an episode is compared by, without its rows. logs: positive numbers, by name; light: by camera, of
    255; joints: what of the joints or the action `(D,)`, by name; of: the stream it comes from, emptied, and
    how far each joint went there."""

    recording: Recording
    logs: dict[str, float] = field(default_factory=dict)
    light: dict[str, float] = field(default_factory=dict)
    joints: dict[str, np.ndarray] = field(default_factory=dict)
    of: dict[str, tuple[Stream, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Oddity:
    """One trait of one episode. z: deviations from the median, held against threshold."""

    said: str
    stream: str
    z: float
    threshold: float


def traits(r: Recording, light: dict[str, float]) -> Traits:
    """light: the mean brightness of each camera."""
    found = Traits(replace(r, streams={}), light=light)
    if r.end_s > 0:
        found.logs["length"] = r.end_s
    joints, action = r.joints, r.streams.get(ACTION)
    if joints is not None and joints.values is not None and np.isfinite(joints.values).all():
        scaled = joints.values / still(joints)
        seconds = float(joints.t_s[-1] - joints.t_s[0])
        path = float(np.abs(np.diff(scaled, axis=0)).sum())
        if path > 0 and seconds > 0:
            found.logs["path length"] = path
            found.logs["mean speed"] = path / seconds
        if len(scaled) > 4 and (rough := float(np.sqrt(np.mean(np.diff(scaled, 3, axis=0) ** 2)))) > 0:
            found.logs["jerk"] = rough
        found.joints["start pose"] = joints.values[0].copy()
        found.of["start pose"] = _emptied(joints), moved(joints.values)
    sent = None if action is None else action.values
    if action is not None and sent is not None and len(sent) and np.isfinite(sent).all():
        for name, values in (("lowest action", sent.min(axis=0)), ("highest action", sent.max(axis=0))):
            found.joints[name] = values
            found.of[name] = _emptied(action), moved(sent)
    return found


def _emptied(stream: Stream) -> Stream:
    """Its names and units; rows of all episodes would not fit into memory."""
    assert stream.values is not None
    none = np.empty(0)
    empty = np.empty((0, stream.values.shape[1]))
    return replace(stream, t_s=none, received_s=none, flags=np.empty(0, np.uint8), values=empty)


def check_outliers(every: Sequence[Traits]) -> Iterator[Finding]:
    """One finding for each odd episode. Nothing with fewer than ENOUGH episodes."""
    if len(every) < ENOUGH:
        return
    odd: dict[int, list[Oddity]] = {}
    for i, oddity in [*_logs(every), *_light(every), *_joints(every)]:
        odd.setdefault(i, []).append(oddity)
    for i, found in sorted(odd.items()):
        found.sort(key=lambda o: -abs(o.z) / o.threshold)
        said = "; ".join(f"{o.said} ({abs(o.z):.1f} deviations)" for o in found[:4])
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        worst = found[0]
        yield every[i].recording.finding(
            "outlier",
            "warning",
            f"unlike the other episodes: {said}{more}",
            worst.stream,
            value=worst.z,
            threshold=worst.threshold,
        )


def _logs(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    for name in dict.fromkeys(name for t in every for name in t.logs):
        having = [i for i, t in enumerate(every) if name in t.logs]
        x = np.log([every[i].logs[name] for i in having])
        z, middle = robust_z(x, LOG_FLOOR)
        for k in np.flatnonzero(np.abs(z) > Z):
            said = f"{name} is {np.exp(x[k] - middle):.2g} times what is usual"
            yield having[k], Oddity(said, "", float(z[k]), Z)


def _light(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    for camera in dict.fromkeys(c for t in every for c in t.light):
        having = [i for i, t in enumerate(every) if camera in t.light]
        x = np.array([every[i].light[camera] for i in having])
        z, middle = robust_z(x, LIGHT_FLOOR)
        for k in np.flatnonzero(np.abs(z) > Z):
            said = f"brightness of {camera} is {x[k]:.0f} of 255, usually {middle:.0f}"
            yield having[k], Oddity(said, camera, float(z[k]), Z)


def _joints(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    """Of each episode and kind the joint that is furthest off."""
    for name in dict.fromkeys(n for t in every for n in t.joints):
        having = [i for i, t in enumerate(every) if name in t.joints]
        width = len(every[having[0]].joints[name])
        having = [i for i in having if len(every[i].joints[name]) == width]
        x = np.stack([every[i].joints[name] for i in having])
        stream, _ = every[having[0]].of[name]
        # the range of each joint, without the tenth of the episodes where it goes furthest
        span = np.quantile([every[i].of[name][1] for i in having], 0.9, axis=0)
        floor = JOINT_FLOOR * span
        z, middle = robust_z(x, np.maximum(floor, still(stream)))
        for k in np.flatnonzero((np.abs(z) > Z_JOINT).any(axis=1)):
            j = int(np.argmax(np.abs(z[k])))
            unit = stream.unit_of(j)
            said = f"{name} of {stream.name_of(j)} is {x[k, j]:.3g}{unit}, usually {middle[j]:.3g}{unit}"
            yield having[k], Oddity(said, stream.key, float(z[k, j]), Z_JOINT)


def robust_z(x: np.ndarray, floor: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(deviations from the median in robust standard deviations, the median) along the first axis of `(N,
    …)`. floor: the least deviation that counts as usual."""
    middle = np.median(x, axis=0)
    off = np.abs(x - middle)
    # both are 1 for a normal distribution; the second is larger where every fifth is far off, and so nothing
    # odd
    usual = np.maximum(1.4826 * np.median(off, axis=0), np.quantile(off, 0.8, axis=0) / 1.2816)
    usual = np.maximum(usual, floor)
    return (x - middle) / usual, middle
