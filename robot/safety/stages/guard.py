"""What recordings never did, where the arm is, is not done: a guard (`policies.guard`) between whoever
commands and the limits. After offline guarded safe reinforcement learning (OGSRL), whose guard of states and
actions this is at run time.

Each request is judged with what was measured: the joints where they are, and the way from there to where they
would be asked to be one period of the recordings later, if it went on so. What is not supported by the data
is exchanged for the nearest request that is, if that lies within `reach`; else the arm brakes and holds,
until something else is asked. Nobody is excepted: neither a person nor homing. So three things always pass:
what is slower than `slow`, with which a person leads it back; the straight way to where the data's episodes
began; and that to the rest pose.

What it cannot do: it sees joints only, no objects; and of what is supported some was unlucky to be rare, by
the share that the guard was learned with (5 %)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....datasets.features import ACTION, STATE, Feature, FeatureMismatch
from ....drivers.arm import DeviceError, Joints
from ....drivers.config import parse, setting
from ..filter import Bodies
from ..limits import Safety
from ..stage import Seen

if TYPE_CHECKING:
    from ....policies.guard import Guard

UNSUPPORTED = "unsupported"
ASIDE = 0.2  # of what is gone of a straight way, by which it may be left
ROUNDING = 1e-3  # rad (m)
THERE = 0.05  # rad (m): a pose is not the same in every episode, and what is followed lags


@dataclass(frozen=True)
class Config:
    """The fields of `[safety.guard]`."""

    checkpoint: str
    """Folder that `ulna guard` made, of the joints only (--observe observation.state)."""
    reach: float = setting(0.1, 0.0, 3.0, "rad")
    """How far from what was asked, in any joint, the nearest supported request may lie."""
    slow: float = setting(0.25, 0.0, 3.0, "rad/s")
    """What moves every joint more slowly passes."""


class GuardStage:
    """guard: of the joints, in order. home: poses `(A,)` to which the straight way is free. speed: `(A,)`,
    the limits, which nothing goes beyond."""

    def __init__(
        self, guard: Guard, home: list[np.ndarray], speed: np.ndarray, reach: float, slow: float
    ) -> None:
        self._guard, self._home, self._speed, self._reach, self._slow = guard, home, speed, reach, slow
        self._period_s = 1 / guard.control_hz
        self._last = np.zeros(len(speed))

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        self._last = np.where(moved, q, self._last)

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        last, self._last = self._last, asked.copy()
        slow = np.abs(asked - last).max() <= self._slow * dt_s
        if slow and np.abs(asked - seen.command).max() <= THERE:  # not a jump that is waited for
            return asked, ""
        velocity = np.clip((asked - last) / dt_s, -self._speed, self._speed)
        ahead = asked + velocity * max(self._period_s - dt_s, 0.0)
        values = {STATE: seen.q}
        if self._guard.supports(values, ahead) or any(
            _leads(seen.command, asked, pose) for pose in self._home
        ):
            return asked, ""
        instead = self._guard.nearest(values, ahead)
        if instead is None or np.abs(instead - ahead).max() > self._reach:
            return None, UNSUPPORTED
        return seen.command + (instead - seen.command) * min(dt_s / self._period_s, 1.0), UNSUPPORTED


def _leads(command: np.ndarray, asked: np.ndarray, pose: np.ndarray) -> bool:
    """Whether `asked` lies on the straight way from `command` to `pose`, or all but there."""
    way, step = pose - command, asked - command
    if np.abs(asked - pose).max() <= THERE:
        return True
    length = float(np.linalg.norm(way))
    along = float(step @ way) / length
    aside = float(np.linalg.norm(step - along / length * way))
    return 0 <= along <= length and aside <= ROUNDING + ASIDE * along


def guard_of(
    table: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Bodies, where: str
) -> GuardStage:
    """The stage that the table `[safety.guard]` asks for. DeviceError: there is no such guard, or it is of
    other joints."""
    from ....policies.guard import Guard
    from ....policies.hashed import CheckpointError

    c = parse(Config, table, where)
    arms = Feature((len(joints),), "float32", joints.names, joints.units)
    try:
        guard = Guard(Path(c.checkpoint).expanduser())
        if more := [k for k in guard.keys if k != STATE]:
            raise DeviceError(
                f"{where}: the guard {c.checkpoint} sees {more[0]}, and the filter knows the joints only: "
                f"learn one with --observe {STATE}"
            )
        guard = Guard(Path(c.checkpoint).expanduser(), {STATE: arms, ACTION: arms})
    except (CheckpointError, FeatureMismatch) as error:
        raise DeviceError(f"{where}: {error}") from None
    home = [guard.begin, *([] if safety.rest is None else [safety.rest])]
    return GuardStage(guard, home, safety.speed, c.reach, c.slow)
