"""Numbers that cannot be in the unit that is stated, and commands that stand apart from their joints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..features import ACTION, STATE, Features, bare, moves_an_arm, units_of
from ..units import LARGEST, UNITS
from .findings import Finding, Recording, Severity, Stream

TURN = 7.0  # rad; arms' wrists turn once either way, 2π
FASTEST = 25.0  # rad/s; the joints of fast arms reach 10
# a leader or a calibration that is off; what gravity makes a small arm sag is less
APART = {"rad": 0.12, "deg": 7.0, "%": 5.0}
APART_SEVERE = {"rad": 0.25, "deg": 14.0, "%": 12.0}
APART_SHARE, APART_SHARE_SEVERE = 0.08, 0.2  # of the largest joint's travel, where no unit is stated
TOGETHER = 20  # neighbouring ticks say nearly the same
FEWEST = 4  # rows of an episode that tell a speed
GRIPPERS = ("grip", "finger", "jaw", "claw", "hand")  # what they hold keeps them from where they are sent


def check_units(r: Recording) -> Iterator[Finding]:
    """What one episode's numbers cannot be."""
    for stream in r.streams.values():
        if stream.values is None or not len(stream.values):
            continue
        with np.errstate(invalid="ignore"):
            worst = np.nan_to_num(np.abs(stream.values), nan=0.0, posinf=0.0).max(axis=0)
        for column, size in enumerate(worst.tolist()):
            unit = _unit(stream, column)
            most = UNITS[unit].largest if unit in UNITS else LARGEST
            if size > most:
                yield _impossible(r, stream, column, size, most, "severe")
            elif unit == "rad" and size > TURN and moves_an_arm(stream.key):
                yield _impossible(r, stream, column, size, TURN, "warning")
        if stream.key == STATE:
            yield from _too_fast(r, stream)


def _impossible(
    r: Recording, stream: Stream, column: int, size: float, most: float, severity: Severity
) -> Finding:
    unit = _unit(stream, column)
    guess = (
        "degrees taken for radians" if unit == "rad" and size < 1e4 else "another unit, or a wrong reading"
    )
    text = (
        f"{stream.name_of(column)} reaches {size:.4g}{stream.unit_of(column)}, more than {most:g}: {guess}?"
    )
    return r.finding("units", severity, text, stream.key, value=size, threshold=most)


def _too_fast(r: Recording, stream: Stream) -> Iterator[Finding]:
    """Joints that stay within a turn, but move as only degrees do."""
    if stream.values is None or len(stream.t_s) < 20 or stream.period_s <= 0:
        return
    speed = np.abs(np.diff(stream.values, axis=0)) / stream.period_s
    for column in range(speed.shape[1]):
        if _unit(stream, column) != "rad" or not np.isfinite(speed[:, column]).all():
            continue
        fast = float(np.quantile(speed[:, column], 0.9))
        if fast > FASTEST and np.abs(stream.values[:, column]).max() <= TURN:
            text = (
                f"{stream.name_of(column)} moves at {fast:.3g} rad/s in a tenth of the rows, as no arm does: "
                "degrees taken for radians?"
            )
            yield r.finding("units", "severe", text, stream.key, value=fast, threshold=FASTEST)


def check_stated(features: Features) -> Iterator[Finding]:
    """What moves an arm and does not say what it is measured in."""
    silent = [
        k for k in (STATE, ACTION) if k in features and not (features[k].names and units_of(features[k]))
    ]
    if silent:
        text = (
            f"{' and '.join(silent)} do not state their names or units, and no robot takes a policy of them "
            "before: state them with `ulna data units`"
        )
        yield Finding(-1, "", "units", "info", "", 0.0, 0.0, text)


@dataclass(frozen=True)
class Apart:
    """Of one episode, for the joints that are both commanded and measured: the sums of a line `d =
    command - state = offset + delay · v`. names, units: of those joints. sums: `(8, J)`: n, Σv, Σv², Σd, Σvd,
    Σd², Σs, Σs² of the state s. travel: `(J,)`. named: whether the dataset gives the names."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    sums: np.ndarray
    travel: np.ndarray
    named: bool


def apart(r: Recording) -> Apart | None:
    """None where commands and joints do not speak of the same, or say too little."""
    action, state = r.streams.get(ACTION), r.streams.get(STATE)
    if action is None or state is None or action.values is None or state.values is None:
        return None
    pairs = _pairs(action, state)
    if not pairs or min(len(action.t_s), len(state.t_s)) < FEWEST or state.period_s <= 0:
        return None
    if not (np.isfinite(action.values).all() and np.isfinite(state.values).all()):
        return None
    if (np.diff(state.t_s) <= 0).any():
        return None
    columns = [j for _, j in pairs]
    commands = action.values[:, [i for i, _ in pairs]]
    measured = state.values[:, columns]
    speeds = np.gradient(measured, state.t_s, axis=0)
    here, v = (np.stack([np.interp(action.t_s, state.t_s, x) for x in t.T], 1) for t in (measured, speeds))
    d = commands - here
    with np.errstate(over="ignore", invalid="ignore"):
        parts = (np.ones_like(d), v, v * v, d, v * d, d * d, here, here * here)
        sums = np.stack([x.sum(0) for x in parts])
    names = tuple(state.name_of(j) for j in columns)
    named = bool(state.feature and state.feature.names)
    return Apart(names, tuple(_unit(state, j) for j in columns), sums, np.ptp(measured, axis=0), named)


def _pairs(action: Stream, state: Stream) -> list[tuple[int, int]]:
    """(column of the command, column of the state) of each joint that is no gripper."""
    commanded, measured = (bare(s.feature.names) if s.feature else () for s in (action, state))
    assert action.values is not None
    assert state.values is not None
    if bool(commanded) != bool(measured):
        return []
    if not commanded:
        same = action.values.shape[1] == state.values.shape[1]
        return [(i, i) for i in range(action.values.shape[1] if same else 0)]
    return [
        (i, measured.index(name))
        for i, name in enumerate(commanded)
        if name in measured
        and _unit(action, i) == _unit(state, measured.index(name))
        and not any(word in name.lower() for word in GRIPPERS)
    ]


def check_apart(every: Sequence[Apart]) -> Iterator[Finding]:
    """Joints that are not where they were sent, by the same in all episodes: the leader stands otherwise than
    the follower, or one of the two was calibrated anew."""
    if not every:
        return
    first = every[0]
    group = [a for a in every if (a.names, a.units) == (first.names, first.units)]
    n, v, vv, d, vd, dd, s, ss = np.sum([a.sums for a in group], axis=0)
    travel = np.max([a.travel for a in group], axis=0)
    with np.errstate(all="ignore"):
        var_v = np.maximum(vv / n - (v / n) ** 2, 0.0)
        cov = vd / n - v * d / n**2
        delay = np.where(var_v > 1e-12, cov / var_v, 0.0)
        offset = d / n - delay * v / n
        spread = np.sqrt(np.maximum(dd / n - (d / n) ** 2 - delay * cov, 0.0))
        error = spread * np.sqrt((1 + np.where(var_v > 1e-12, (v / n) ** 2 / var_v, 0.0)) / (n / TOGETHER))
        moved = np.sqrt(np.maximum(ss / n - (s / n) ** 2, 0.0))
    if not spread[most := int(np.argmax(travel))] < moved[most] / 2:
        return  # the joint that moves most does not follow its commands: they are no targets, or differences
    for j, name in enumerate(first.names):
        unit, size = first.units[j], abs(float(offset[j]))
        least = APART.get(unit, APART_SHARE * float(travel.max()))
        severe = APART_SEVERE.get(unit, APART_SHARE_SEVERE * float(travel.max()))
        if not np.isfinite(size) or (unit and unit not in APART) or least <= 0:
            continue
        if size - 2 * error[j] > least and spread[j] < size / 2:
            degrees = f" ({np.degrees(size):.0f}°)" if unit == "rad" else ""
            text = (
                f"{name} is sent {size:.3g}{unit and ' ' + unit}{degrees} "
                f"{'beyond' if offset[j] > 0 else 'short of'} where it is, over {len(group)} episodes: the "
                "leader stands otherwise than the follower"
            )
            level: Severity = "severe" if size > severe else "warning"
            if not first.named:
                level = "info"  # it may be a gripper, which what it holds keeps from where it is sent
            at = round(float(offset[j]), 4)
            yield Finding(-1, "", "offset", level, ACTION, 0.0, 0.0, text, at, round(least, 4))


def _unit(stream: Stream, column: int) -> str:
    return stream.unit_of(column).strip()
