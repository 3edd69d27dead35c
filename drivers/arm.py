"""The contract of an arm: joint positions in, joint targets out, limits always on.

Any implementation, simulated, twin or real, is put through `tests/contracts/arm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
    """A device is missing, refused or failed; the message is one sentence that says which and how to mend it."""


class Arm(Protocol):
    """Position-controlled arm. Life: `open` → `enable` → (`read` | `command`)* → `disable` → `close`.

    - `open` connects and reads; it never moves the arm nor enables torque. A missing device raises `DeviceError`.
    - `command` clips to the limits and to what `max_velocity` allows since the last command, sends, and
      returns what it really sent; a non-finite target raises `ValueError` and sends nothing.
    - The arm's own watchdog calls `hold` when no command comes for `watchdog_s`.
    - `stop` latches: commands raise `DeviceError` until the user calls `enable`. Torque never comes back by itself.
    """

    joints: Joints
    watchdog_s: float

    def open(self) -> None: ...

    def close(self) -> None:
        """Release the device; safe to call twice, and on one never opened."""
        ...

    def read(self) -> Sample:
        """Joint positions `(J,)` float64, rad or m, with per-joint validity."""
        ...

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        """Move towards `target` `(J,)`, to be there at `t_target_ns`. Returns the target sent `(J,)` float64."""
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


def check_target(target: np.ndarray, joints: Joints) -> np.ndarray:
    """`target` as float64 `(J,)`, or ValueError naming the first wrong joint. Drivers call it before sending."""
    target = np.asarray(target, np.float64)
    if target.shape != (len(joints),):
        raise ValueError(
            f"a command has shape {target.shape}, but the arm has joints {', '.join(joints.names)}"
        )
    if not np.isfinite(target).all():
        bad = joints.names[int(np.flatnonzero(~np.isfinite(target))[0])]
        raise ValueError(f"a command for joint {bad} is not finite; nothing was sent")
    return target


def limit_target(target: np.ndarray, previous: np.ndarray, dt_s: float, joints: Joints) -> np.ndarray:
    """Clip `target` to the position limits and to `max_velocity · dt_s` away from `previous`, all `(J,)`."""
    step = joints.max_velocity * max(dt_s, 0.0)
    return np.clip(np.clip(target, joints.lower, joints.upper), previous - step, previous + step)
