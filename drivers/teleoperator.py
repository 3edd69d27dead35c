"""The contract of a teleoperator that moves the tip: a gamepad, a SpaceMouse, a keyboard, a phone.

A leader arm is an `Arm` instead: its joints are read, and never commanded. `robot.people` makes an agent of
either."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

# What a button of any device may mean: the episode is over, over with this outcome, to be done again; the one
# before it is to be dropped; no more episodes. `drivers.hands.keyboard` says which keys mean which.
FINISH, SUCCESS, FAILURE, AGAIN = "finish", "success", "failure", "again"
DROP_LAST, QUIT = "drop last", "quit"


@dataclass(frozen=True, slots=True)
class Hand:
    """What the hand asks for now, in the robot's base frame (x ahead, y left, z up).

    active: the dead man's switch is held; without it nothing moves, whatever else is said. linear `(3,)` m/s
    and angular `(3,)` rad/s of the tip: for devices that give a speed. displacement `(3,)` m and rotation
    `(3, 3)` since the clutch closed: for devices that give a pose; None for the others. gripper: opening
    wanted, 0 closed to 1 open; None leaves it. events: of the words above, those pressed since the last read.
    t_receive_ns: when the newest input came in."""

    active: bool
    linear: np.ndarray = field(default_factory=lambda: np.zeros(3))
    angular: np.ndarray = field(default_factory=lambda: np.zeros(3))
    displacement: np.ndarray | None = None
    rotation: np.ndarray | None = None
    gripper: float | None = None
    events: tuple[str, ...] = ()
    t_receive_ns: int = 0


class Teleoperator(Protocol):
    """`read` never blocks. A device that went away, or was not heard of for `timeout_s`, reads as not
    active."""

    name: str

    def open(self) -> None:
        """DeviceError: not there, or not permitted, and how to mend it."""
        ...

    def close(self) -> None: ...

    def read(self) -> Hand: ...
