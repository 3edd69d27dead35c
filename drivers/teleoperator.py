"""The contract of a teleoperator that moves the tip: a gamepad, a SpaceMouse, a keyboard, a phone.

A leader arm is an `Arm` instead: its joints are read, and never commanded. `robot.people` makes an agent of
either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from .screen import Screen

# Meanings of a button, on any device: end the episode; end it as a success or as a failure; do it again; drop
# the episode before it; record no more episodes; change who drives. `drivers.hands.keyboard` maps keys to
# them.
FINISH, SUCCESS, FAILURE, AGAIN = "finish", "success", "failure", "again"
DROP_LAST, QUIT = "drop last", "quit"
TAKE = "take over"  # from the policy, or give the robot back to it


@dataclass(frozen=True, slots=True)
class Hand:
    """What the operator's hand asks for now, in the robot's base frame (x ahead, y left, z up).

    active: whether the dead man's switch is held; while it is not, nothing moves. linear `(3,)` m/s and
    angular `(3,)` rad/s of the tip: for devices that give a speed. displacement `(3,)` m and rotation `(3,
    3)` since the clutch closed: for devices that give a pose; None for the others. gripper: requested
    opening, 0 closed to 1 open; None leaves the gripper as it is. events: which of the meanings above were
    pressed since the last read. t_receive_ns: arrival of the newest input."""

    active: bool
    linear: np.ndarray = field(default_factory=lambda: np.zeros(3))
    angular: np.ndarray = field(default_factory=lambda: np.zeros(3))
    displacement: np.ndarray | None = None
    rotation: np.ndarray | None = None
    gripper: float | None = None
    events: tuple[str, ...] = ()
    t_receive_ns: int = 0


class Teleoperator(Protocol):
    """`read` never blocks. A device that went away, or has been silent for `timeout_s`, reads as not
    active."""

    name: str

    def open(self) -> None:
        """Raises DeviceError when the device is missing or access is denied; the message says how to mend
        it."""
        ...

    def close(self) -> None: ...

    def read(self) -> Hand: ...


@runtime_checkable
class HasScreen(Protocol):
    """A teleoperator that shows its operator the robot, too."""

    screen: Screen
