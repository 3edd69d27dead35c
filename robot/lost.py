"""Devices that are lost while episodes are taken: what is said, and the wait until they are back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ..drivers.arm import ArmState, CommandRefused, DeviceError
from ..drivers.camera import StaleFrame
from ..drivers.teleoperator import FINISH, QUIT
from .robot import Robot

POLL_S = 0.05
LONGEST_WAIT_S = 600.0  # where nobody is asked; a person may stop the wait at any time
AT_ONCE = 3  # episodes in a row that broke off at their first tick: then waiting does not help


def is_loss(error: Exception, robot: Robot, began: bool) -> bool:
    """Whether an episode ended by `error` because a device of the robot was lost; it may be back by now.
    began: whether its arms had taken a command before, in this episode."""
    if isinstance(error, StaleFrame) or (began and isinstance(error, CommandRefused)):
        return True
    return isinstance(error, DeviceError) and bool(robot.troubles() or without_torque(robot))


def without_torque(robot: Robot) -> list[str]:
    """Names of the arms that take no command before they are enabled again."""
    return [name for name, arm in robot.arms.items() if arm.health().state is not ArmState.ACTIVE]


def wait_until_back(
    robot: Robot, pressed: Callable[[], list[str]], asks: bool, seconds: float, error: Exception
) -> bool:
    """Wait until every device works again, and give arms that lost it their torque back. Returns False where
    the operator quits.

    pressed: the operator's words since its last call. asks: whether there is somebody to ask; without, arms
    get their torque `seconds` after that was said, and `error` is raised after `LONGEST_WAIT_S`. DeviceError:
    a device that cannot come back."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    said: set[str] = set()
    quits = "; q quits" if asks else ""
    while True:
        while troubles := robot.troubles():
            if troubles.keys() != said:
                said = set(troubles)
                _say(f"waiting for {', '.join(f'{n} ({text})' for n, text in troubles.items())}{quits}")
            if QUIT in pressed():
                return False
            if not asks and time.monotonic() > deadline:
                raise error
            time.sleep(POLL_S)
        if said:
            _say(f"{', '.join(said)} back")
            said = set()
        if not (limp := without_torque(robot)):
            return True
        pressed()  # what was pressed before the question is no answer to it
        if asks:
            _say(f"press enter to give {', '.join(limp)} torque again, where it stands{quits}")
        else:
            _say(f"{', '.join(limp)} gets its torque again in {seconds:g} s, where it stands")
        until = time.monotonic() + seconds
        while not robot.troubles():
            words = pressed()
            if QUIT in words:
                return False
            if (asks and FINISH in words) or (not asks and time.monotonic() >= until):
                break
            time.sleep(POLL_S)
        if robot.troubles():
            continue
        try:
            for name in limp:
                robot.arms[name].enable()
        except DeviceError as refusal:
            _say(str(refusal))
            if not asks and time.monotonic() > deadline:
                raise


def _say(text: str) -> None:
    print(text, file=sys.stderr)
