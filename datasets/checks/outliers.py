"""Episodes unlike the others: longer, faster, rougher, with another start pose, in another light.

The median, and quantiles of the deviations from it, hardly depend on a few odd episodes, so they are the
scale. Rates and lengths are compared by their logarithms: twice as long is as odd as half as long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..features import ACTION
from .findings import Finding, Recording, Stream, travel
from .vectors import still

ENOUGH = 8  # episodes; fewer do not show what is usual
Z = 5.0  # robust deviations; of a normal distribution one value in two million lies beyond
Z_JOINT = 6.0  # there are many joints
LOG_FLOOR = 0.08  # the least deviation that counts as usual, of a logarithm: 8 %
LIGHT_FLOOR = 3.0  # levels of 255
JOINT_FLOOR = 0.04  # of the joint's range over all episodes


@dataclass
class Traits:
    """What an episode is compared by, without its rows. logs: positive numbers, by name. light: brightness of
    each camera, of 255. joints: a value of each joint or action dimension `(D,)`, by name. sources: for each
    name in `joints` the stream that it comes from, without rows, and the travel of each joint there."""

    recording: Recording
    logs: dict[str, float] = field(default_factory=dict)
    light: dict[str, float] = field(default_factory=dict)
    joints: dict[str, np.ndarray] = field(default_factory=dict)
    sources: dict[str, tuple[Stream, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Oddity:
    """One odd trait of one episode, in words. z: robust deviations from the median; threshold: their
    limit."""

    text: str
    stream: str
    z: float
    threshold: float


def traits(r: Recording, light: dict[str, float]) -> Traits:
    """The traits of one episode. light: the mean brightness of each camera."""
    result = Traits(replace(r, streams={}), light=light)
    if r.end_s > 0:
        result.logs["length"] = r.end_s
    joints, action = r.joints, r.streams.get(ACTION)
    if joints is not None and joints.values is not None and np.isfinite(joints.values).all():
        positions = joints.values / still(joints)
        seconds = float(joints.t_s[-1] - joints.t_s[0])
        path = float(np.abs(np.diff(positions, axis=0)).sum())
        if path > 0 and seconds > 0:
            result.logs["path length"] = path
            result.logs["mean speed"] = path / seconds
        if len(positions) > 4 and (rough := float(np.sqrt(np.mean(np.diff(positions, 3, axis=0) ** 2)))) > 0:
            result.logs["jerk"] = rough
        result.joints["start pose"] = joints.values[0].copy()
        result.sources["start pose"] = _without_rows(joints), travel(joints.values)
    commands = None if action is None else action.values
    if action is not None and commands is not None and len(commands) and np.isfinite(commands).all():
        for name, values in (
            ("lowest action", commands.min(axis=0)),
            ("highest action", commands.max(axis=0)),
        ):
            result.joints[name] = values
            result.sources[name] = _without_rows(action), travel(commands)
    return result


def _without_rows(stream: Stream) -> Stream:
    """`stream` with only its names and units; the rows of all episodes would not fit into memory."""
    assert stream.values is not None
    none = np.empty(0)
    empty = np.empty((0, stream.values.shape[1]))
    return replace(stream, t_s=none, receive_s=none, flags=np.empty(0, np.uint8), values=empty)


def check_outliers(every: Sequence[Traits]) -> Iterator[Finding]:
    """One finding for each odd episode. Nothing with fewer than ENOUGH episodes."""
    if len(every) < ENOUGH:
        return
    odd: dict[int, list[Oddity]] = {}
    for i, oddity in [*_logs(every), *_light(every), *_joints(every)]:
        odd.setdefault(i, []).append(oddity)
    for i, oddities in sorted(odd.items()):
        oddities.sort(key=lambda o: -abs(o.z) / o.threshold)
        text = "; ".join(f"{o.text} ({abs(o.z):.1f} deviations)" for o in oddities[:4])
        more = f"; and {len(oddities) - 4} more" if len(oddities) > 4 else ""
        worst = oddities[0]
        yield every[i].recording.finding(
            "outlier",
            "warning",
            f"unlike the other episodes: {text}{more}",
            worst.stream,
            value=worst.z,
            threshold=worst.threshold,
        )


def _logs(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    for name in dict.fromkeys(name for t in every for name in t.logs):
        members = [i for i, t in enumerate(every) if name in t.logs]
        x = np.log([every[i].logs[name] for i in members])
        z, middle = robust_z(x, LOG_FLOOR)
        for k in np.flatnonzero(np.abs(z) > Z):
            text = f"{name} is {np.exp(x[k] - middle):.2g} times what is usual"
            yield members[k], Oddity(text, "", float(z[k]), Z)


def _light(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    for camera in dict.fromkeys(c for t in every for c in t.light):
        members = [i for i, t in enumerate(every) if camera in t.light]
        x = np.array([every[i].light[camera] for i in members])
        z, middle = robust_z(x, LIGHT_FLOOR)
        for k in np.flatnonzero(np.abs(z) > Z):
            text = f"brightness of {camera} is {x[k]:.0f} of 255, usually {middle:.0f}"
            yield members[k], Oddity(text, camera, float(z[k]), Z)


def _joints(every: Sequence[Traits]) -> Iterator[tuple[int, Oddity]]:
    """For each episode and kind of value, the joint that deviates most."""
    for name in dict.fromkeys(n for t in every for n in t.joints):
        members = [i for i, t in enumerate(every) if name in t.joints]
        width = len(every[members[0]].joints[name])
        members = [i for i in members if len(every[i].joints[name]) == width]
        x = np.stack([every[i].joints[name] for i in members])
        stream, _ = every[members[0]].sources[name]
        # the travel of each joint, without the tenth of the episodes in which it is largest
        span = np.quantile([every[i].sources[name][1] for i in members], 0.9, axis=0)
        floor = JOINT_FLOOR * span
        z, middle = robust_z(x, np.maximum(floor, still(stream)))
        for k in np.flatnonzero((np.abs(z) > Z_JOINT).any(axis=1)):
            j = int(np.argmax(np.abs(z[k])))
            unit = stream.unit_of(j)
            text = f"{name} of {stream.name_of(j)} is {x[k, j]:.3g}{unit}, usually {middle[j]:.3g}{unit}"
            yield members[k], Oddity(text, stream.key, float(z[k, j]), Z_JOINT)


def robust_z(x: np.ndarray, floor: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(deviations from the median in robust standard deviations, the median) along the first axis of `(N,
    …)`. floor: the least deviation that counts as usual."""
    middle = np.median(x, axis=0)
    off = np.abs(x - middle)
    # both are 1 for a normal distribution; the second is larger where every fifth value is far off, which
    # then is nothing odd
    usual = np.maximum(1.4826 * np.median(off, axis=0), np.quantile(off, 0.8, axis=0) / 1.2816)
    usual = np.maximum(usual, floor)
    return (x - middle) / usual, middle
