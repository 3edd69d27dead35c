"""Calibration files that LeRobot wrote before May 2025, and what they become.

Such a file is `{"homing_offset", "drive_mode", "start_pos", "end_pos", "calib_mode", "motor_names"}`, each
a list by motor. LeRobot applied it in software: degrees = (±count + homing_offset) · 360/4096, the sign
negative where drive_mode is 1; the servos' own offsets were 0. A gripper went from start_pos (closed) to
end_pos (open). It does not say how far the other joints go. (LeRobot's `robot_devices/motors` and its
documentation, "Backward compatibility".)"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..arm import DeviceError, Joints
from .bus import COUNTS_PER_TURN
from .calibration import MIDDLE, Calibration, JointCalibration, half_turn, is_old, read_table

PER_MOTOR = ("homing_offset", "drive_mode", "start_pos", "end_pos", "calib_mode")
LARGEST = 1 << 31  # counts; a register has 32 bits
# degrees that LeRobot showed then where a joint stands in the middle of its travel; 0 where not named
MIDDLE_DEGREES = {"shoulder_lift": 90, "elbow_flex": 90}
ASSUMED = (
    "the servos held no offsets of their own when the old file was made",
    "the middle of a joint's travel is its 0 degrees of then, of shoulder_lift and elbow_flex its 90 "
    + "degrees (LeRobot's notes on backward compatibility)",
    "the joints go as far as the published model says, since the old file does not say it",
    "joints turn the way their servos count, as in LeRobot now: the old drive_mode is left out",
)


def convert(
    path: str | Path,
    ids: Mapping[str, int],
    joints: Joints,
    protocol: str,
    backwards: Collection[str] = (),
    ends: Collection[str] = ("gripper",),
) -> Calibration:
    """The calibration for these servos that means the same as the old file at `path`, under what `ASSUMED`
    says; the servos have yet to get its offsets.

    joints: of the arm's model. protocol: feetech or dynamixel. backwards: joints whose servos count
    backwards by a register of theirs. ends: joints that go from start_pos to end_pos. DeviceError: the file
    is of another form or arm, or cannot be expressed."""
    motors = read_old(path)
    if set(motors) != set(ids):
        raise DeviceError(
            f"{path} is the calibration of another arm: its joints are {', '.join(motors) or 'none'}, this "
            f"one's {', '.join(ids)}"
        )
    calibration: Calibration = {}
    for j, name in enumerate(joints.names):
        motor, drive_mode = motors[name], int(name in backwards)
        sense, counting = -1 if motor["drive_mode"] else 1, -1 if name in backwards else 1
        if name in ends:
            # where drive_mode is 1, LeRobot wrote this one negated
            opened = -motor["end_pos"] if sense < 0 and motor["end_pos"] < 0 else motor["end_pos"]
            travel = counting * half_turn(opened - motor["start_pos"])
            middle, half = counting * motor["start_pos"] + travel // 2, abs(travel) // 2
            if travel < 0 and protocol == "dynamixel":
                raise DeviceError(
                    f"{path}: {name} counts down as it opens, which its servo cannot be told here: calibrate "
                    "the arm anew (ulna calibrate)"
                )
            drive_mode = max(drive_mode, int(travel < 0))
        else:
            degrees = MIDDLE_DEGREES.get(name, 0)
            middle = counting * sense * (degrees * COUNTS_PER_TURN // 360 - motor["homing_offset"])
            radians = float(joints.upper[j] - joints.lower[j]) / 2
            half = round(radians * COUNTS_PER_TURN / (2 * math.pi))
        offset = half_turn(middle - MIDDLE if protocol == "feetech" else MIDDLE - middle)
        if protocol == "feetech":
            offset = max(offset, 1 - COUNTS_PER_TURN // 2)  # half a turn has no place in the register
        low, high = max(0, MIDDLE - half), min(COUNTS_PER_TURN - 1, MIDDLE + half)
        calibration[name] = JointCalibration(ids[name], drive_mode, offset, low, high)
    return calibration


def read_old(path: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of each motor by its name. DeviceError: the file is of another form, or entries are missing
    or no numbers."""
    table = read_table(path)
    if not is_old(table):
        raise DeviceError(
            f"{path} is not in LeRobot's format before May 2025 (lists of homing_offset and drive_mode): "
            "a newer file needs no conversion"
        )
    names = table.get("motor_names")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DeviceError(f"{path} does not name its motors (motor_names), as LeRobot's old files do")
    for field in PER_MOTOR:
        values = table.get(field)
        if not isinstance(values, list) or len(values) != len(names):
            raise DeviceError(f"{path}: {field} must be a list with one entry for each of its motors")
        if field != "calib_mode" and not all(_is_count(v) for v in values):
            raise DeviceError(f"{path}: {field} must be whole numbers, not {values}")
    return {
        name: {
            field: table[field][k] if field == "calib_mode" else int(table[field][k]) for field in PER_MOTOR
        }
        for k, name in enumerate(names)
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST and int(value) == value
