"""The contract of an arm: joint positions in, joint targets out, limits always on.

Any implementation, simulated, twin or real, is put through `tests/contracts/arm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np

from .sample import Sample


@dataclass(frozen=True)
class Joints:
    """The joints of an arm in command order; the gripper is a joint like the others.

    names: `(J,)` joint names. units: `(J,)` `"rad"` or `"m"`.
    lower, upper: `(J,)` position limits. max_velocity: `(J,)` unit/s. max_effort: `(J,)` N·m or N.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    max_velocity: np.ndarray
    max_effort: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


class DeviceError(RuntimeError):
    """A device is missing, refused or failed; the message is one sentence: which, and how to mend it."""


class CommandRefused(DeviceError):
    """An arm took no command, for a reason that may be over by the time that anybody looks for it."""


class ArmState(Enum):
    CLOSED = "closed"
    TORQUE_OFF = "torque off"
    ACTIVE = "active"  # torque on, takes commands
    STOPPED = "stopped"  # latched until `enable`
    RECONNECTING = "reconnecting"  # the device is gone; when it is back its torque stays off until `enable`


@dataclass(frozen=True)
class ArmHealth:
    """age_s: age of the newest reading (inf before the first). rate_hz: measured rate of readings. retries,
    reconnects: counts since `open`."""

    state: ArmState
    age_s: float
    rate_hz: float
    retries: int = 0
    reconnects: int = 0
    message: str = ""


class Arm(Protocol):
    """Position-controlled arm. Life: `open` → `enable` → (`read` | `command`)* → `disable` → `close`.

    - `open` connects and reads; it never moves the arm nor enables torque. A missing device raises
      `DeviceError`.
    - `command` clips the target to the limits and to what `max_velocity` allows since the last command, sends
      it, and returns what it really sent. A joint that an obstacle blocks is sent no further than the driver
      lets it press against that obstacle. A non-finite target raises `ValueError` and sends nothing.
    - The first command after `enable` is refused with `DeviceError` when any joint of it is further than
      `max_first_step` (rad or m) from where the arm is; the message says which joint and how far. Nothing is
      sent.
    - The arm's own watchdog calls `hold` when no command comes for `watchdog_s`.
    - A device that goes away never raises out of `read`: the last values come back with `valid` false, their
      old capture time, and the same `seq`; `command` raises `DeviceError` meanwhile. The device is reopened
      in the background, with growing pauses, and then waits, torque off, for `enable`.
    - `stop` latches: commands raise `DeviceError` until the user calls `enable`. Torque never comes back by
      itself.

    A driver that reads its arm at a rate of its own may keep a `drivers.sample.Backlog`: the recording then
    holds every reading. Of an arm without one it holds one row per control tick. An arm may also be
    `Calibrated` and `Strained`, and a leader `Sprung` or one that `Follows`; one that stays up when it is
    closed has `falls` false."""

    joints: Joints
    watchdog_s: float
    max_first_step: float

    def open(self) -> None: ...

    def close(self) -> None:
        """Release the device; safe to call twice, and before `open`. A DeviceError comes after the release
        and means that torque which `enable` switched on may still be on."""
        ...

    def read(self) -> Sample:
        """Joint positions `(J,)` float64, rad or m, with per-joint validity."""
        ...

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        """Move towards `target` `(J,)`, to be there at `t_target_ns`. Returns the target sent `(J,)`
        float64."""
        ...

    def hold(self) -> None:
        """Keep the present position, torque on."""
        ...

    def stop(self) -> None:
        """Hold, and refuse commands until `enable`."""
        ...

    def enable(self) -> None:
        """Torque on, at the present position."""
        ...

    def disable(self) -> None:
        """Torque off."""
        ...

    def faults(self) -> tuple[str, ...]:
        """Present faults in words, with what to do about each; empty when healthy."""
        ...

    def health(self) -> ArmHealth: ...


@runtime_checkable
class Calibrated(Protocol):
    """An arm whose joint positions depend on a calibration, which recordings store."""

    @property
    def calibration(self) -> Mapping[str, Mapping[str, int]]:
        """Joint name → LeRobot's fields of a motor's calibration; available from `open` on."""
        ...


@runtime_checkable
class Sprung(Protocol):
    """A leader arm that may have a spring in its gripper. sprung: whether it has one."""

    sprung: bool

    def spring(self) -> None:
        """Torque in the spring, and in no other joint. DeviceError: others may still have torque."""
        ...


@runtime_checkable
class Follows(Protocol):
    """A leader arm that may have torque. follows: the joints, by their place in `joints`, that its user asked
    to go where those of its follower are while nobody leads; none without being asked. `enable` gives them
    torque."""

    follows: tuple[int, ...]


@dataclass(frozen=True)
class Strain:
    """load: `(J,)`, with which the motors push, signed, 1 is the full load. temperature_c: `(J,)` °C, nan
    before the first reading. limit_c: `(J,)` °C, where the motors switch themselves off."""

    load: np.ndarray
    temperature_c: np.ndarray
    limit_c: np.ndarray


@runtime_checkable
class Strained(Protocol):
    """An arm whose motors tell how hard they push and how hot they are."""

    def strain(self) -> Strain: ...


def falls(arm: Arm) -> bool:
    """Whether closing `arm` takes away what holds it up. An arm that stays says so by `falls = False`."""
    return getattr(arm, "falls", True)


def joints_of(arms: Mapping[str, Arm]) -> Joints:
    """The joints of all arms, one arm after the other; with several arms a joint is named `arm.joint`."""
    joints = [arm.joints for arm in arms.values()]
    return Joints(
        tuple(n if len(arms) == 1 else f"{a}.{n}" for a, arm in arms.items() for n in arm.joints.names),
        tuple(unit for j in joints for unit in j.units),
        np.concatenate([j.lower for j in joints]),
        np.concatenate([j.upper for j in joints]),
        np.concatenate([j.max_velocity for j in joints]),
        np.concatenate([j.max_effort for j in joints]),
    )


def check_target(target: np.ndarray, joints: Joints) -> np.ndarray:
    """`target` as float64 `(J,)`. ValueError names the first wrong joint. Drivers call it before sending."""
    target = np.asarray(target, np.float64)
    if target.shape != (len(joints),):
        raise ValueError(
            f"a command has shape {target.shape}, but the arm has joints {', '.join(joints.names)}"
        )
    if not np.isfinite(target).all():
        bad = joints.names[int(np.flatnonzero(~np.isfinite(target))[0])]
        raise ValueError(f"a command for joint {bad} is not finite; nothing was sent")
    return target


def check_first(target: np.ndarray, here: np.ndarray, most: float, joints: Joints) -> None:
    """DeviceError when a first command would throw the arm across: any joint further than `most` rad or m
    from `here`."""
    away = np.abs(np.clip(target, joints.lower, joints.upper) - here)
    worst = int(np.argmax(away))
    if away[worst] > most:
        raise DeviceError(
            f"the first command is {away[worst]:.2f} {joints.units[worst]} away from where joint "
            f"{joints.names[worst]} is (at most {most:g}): nothing was sent; bring the arm, or the "
            "leader, nearer, or raise max_first_step"
        )


def limit_target(target: np.ndarray, previous: np.ndarray, dt_s: float, joints: Joints) -> np.ndarray:
    """Clip `target` to the position limits and to `max_velocity · dt_s` away from `previous`, all `(J,)`."""
    step = joints.max_velocity * max(dt_s, 0.0)
    return np.clip(np.clip(target, joints.lower, joints.upper), previous - step, previous + step)
