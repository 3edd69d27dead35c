"""Calibration of an arm: LeRobot's calibration files, read and written, and servo counts to radians by them.

A file is `{joint: {"id", "drive_mode", "homing_offset", "range_min", "range_max"}}`, in counts of 1/4096
turn. The servo holds the homing offset too: it subtracts it (Feetech) or adds it (Dynamixel) before it
reports its position. The range is in reported counts; those of a Dynamixel go on over several turns, and
below 0. LeRobot's files of before May 2025 are of another form (`drivers.servos.old_calibration`)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import DeviceError, Joints
from .bus import COUNTS_PER_TURN

MIDDLE = 2047  # counts: what a servo should report in the middle of its joint's travel; LeRobot's choice
SHORTEST = 100  # counts, 9 degrees: a range below that was never swept
MOST_OFFSET = {"feetech": 2047, "dynamixel": 1_044_479}  # registers: 11 bits and a sign; the e-manual's limit
# counts a servo can report: one turn, or in extended mode 256 turns either way (e-Manual, operating mode)
REPORTED = {"feetech": (0, COUNTS_PER_TURN - 1), "dynamixel": (-1_048_575, 1_048_575)}
MOST_BYTES = 1 << 20  # of a file; longer is no calibration
AGAIN = "calibrate it again: ulna calibrate"


@dataclass(frozen=True)
class JointCalibration:
    """id: of the servo. drive_mode: 1 where the servo counts against the joint's positive sense.
    homing_offset, range_min, range_max: counts."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


Calibration = dict[str, JointCalibration]


def lerobot_path(device: str, name: str) -> Path:
    """Where LeRobot 0.6 keeps the calibration of its device (`robots/so_follower`, `teleoperators/so_leader`)
    called `name`."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is None:
        raise DeviceError(f"an arm's name is of letters, digits, _ . and -, not {name!r}")
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    home = Path(os.environ.get("HF_LEROBOT_HOME") or home / "lerobot")
    root = Path(os.environ.get("HF_LEROBOT_CALIBRATION") or home / "calibration")
    return root.expanduser() / device / f"{name}.json"


def load(path: str | Path, ids: Mapping[str, int], protocol: str) -> Calibration:
    """The calibration in `path` for an arm of these joints and servo ids, checked. protocol: feetech or
    dynamixel. DeviceError says what is wrong with it."""
    table = read_table(path)
    if is_old(table):
        raise DeviceError(
            f"{path} is in LeRobot's format before May 2025, whose offsets no servo holds: convert it with "
            f"`ulna calibrate --convert {path} --out NEW.json`, with the arm plugged in, or {AGAIN}"
        )
    if set(table) != set(ids):
        raise DeviceError(
            f"{path} is the calibration of another arm: its joints are "
            f"{', '.join(map(str, table)) or 'none'}, this one's {', '.join(ids)}"
        )
    calibration = {name: _joint(table[name], f"{path}: {name}") for name in ids}
    check(calibration, ids, protocol, str(path))
    return calibration


def read_table(path: str | Path) -> dict[str, Any]:
    """The JSON object in the file `path`. DeviceError: there is none."""
    path = Path(path).expanduser()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too long")
        table = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise DeviceError(
            f"there is no calibration {path}: make it with `ulna calibrate --out {path}`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceError(f"{path} cannot be read as a calibration: {error}") from None
    if not isinstance(table, dict):
        raise DeviceError(f"{path} is no calibration: it must be a JSON object of joints")
    return table


def is_old(table: Mapping[str, Any]) -> bool:
    """Whether it is in LeRobot's format before May 2025 (`drivers.servos.old_calibration`)."""
    return all(isinstance(table.get(field), list) for field in ("homing_offset", "drive_mode"))


def half_turn[T: (int, np.ndarray)](counts: T) -> T:
    """The same angle in -2048..2047."""
    return (counts + COUNTS_PER_TURN // 2) % COUNTS_PER_TURN - COUNTS_PER_TURN // 2


def save(path: str | Path, calibration: Calibration) -> None:
    """Write so that a killed process leaves the old file or the new one."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps({name: asdict(c) for name, c in calibration.items()}, indent=4) + "\n")
    new.replace(path)


def _joint(table: Any, where: str) -> JointCalibration:
    names = [f.name for f in fields(JointCalibration)]
    if not isinstance(table, dict) or set(table) != set(names):
        raise DeviceError(f"{where} must have the fields {', '.join(names)}")
    for name in names:
        if not isinstance(table[name], int) or isinstance(table[name], bool):
            raise DeviceError(f"{where}: {name} must be a whole number, not {table[name]!r}")
    return JointCalibration(**table)


def check(calibration: Calibration, ids: Mapping[str, int], protocol: str, where: str) -> None:
    """DeviceError unless every joint's numbers fit this arm and its servos. where: the file, for messages."""
    limit = MOST_OFFSET[protocol]
    for name, c in calibration.items():
        if c.id != ids[name]:
            raise DeviceError(
                f"{where} is the calibration of another arm: {name} is servo {c.id} there and {ids[name]} "
                "here"
            )
        if c.drive_mode not in (0, 1):
            raise DeviceError(f"{where}: {name}: drive_mode is 0 or 1, not {c.drive_mode}")
        if abs(c.homing_offset) > limit:
            raise DeviceError(
                f"{where}: {name}: the homing offset {c.homing_offset} does not fit into the servo "
                f"(Magnitude exceeds {limit}): the joint stood more than half a turn from its middle when "
                f"it was homed; {AGAIN}"
            )
        lowest, highest = REPORTED[protocol]
        if c.range_min < lowest or c.range_max > highest:
            wraps = ": the servo's count wraps inside the joint's travel" if protocol == "feetech" else ""
            raise DeviceError(
                f"{where}: {name}: the range {c.range_min}..{c.range_max} leaves {lowest}..{highest}{wraps}; "
                f"{AGAIN}"
            )
        if c.range_max - c.range_min > COUNTS_PER_TURN:
            raise DeviceError(
                f"{where}: {name}: the range {c.range_min}..{c.range_max} is more than a turn, so that its "
                f"angle would not be known after a power-up; {AGAIN}"
            )
        if c.range_max - c.range_min < SHORTEST:
            raise DeviceError(
                f"{where}: {name}: the range {c.range_min}..{c.range_max} is too short to be this joint's: "
                f"{AGAIN}, and move each joint through all of its travel"
            )


def check_servos(
    calibration: Calibration, offsets: Mapping[str, int], drive_modes: Mapping[str, int] | None, where: str
) -> None:
    """DeviceError when the servos hold other numbers than the file: every angle would be wrong by the
    difference.

    offsets: homing offset by joint, read from the servos. drive_modes: drive mode by joint, None for servos
    without that register."""
    for name, c in calibration.items():
        if offsets[name] != c.homing_offset:
            raise DeviceError(
                f"{where} is not this arm's calibration, or is older than what its servos hold: the homing "
                f"offset of {name} (servo {c.id}) is {offsets[name]} in the servo and {c.homing_offset} in "
                f"the file; give the right file, or {AGAIN}"
            )
        if drive_modes is not None and drive_modes[name] != c.drive_mode:
            raise DeviceError(
                f"{where}: {name} (servo {c.id}) counts the other way round than the file says (drive mode "
                f"{drive_modes[name]}, not {c.drive_mode}); give the right file, or {AGAIN}"
            )


@dataclass(frozen=True)
class Scale:
    """Counts to radians and back, each `(J,)`: `angle = at_rad + (counts - at_counts) · rad_per_count`.

    at_counts, at_rad: the middle of the calibrated range. reach: `(J,)` rad, half of that range. lower,
    upper: `(J,)` rad, the limits that respect both the joints' limits and the calibrated range."""

    at_counts: np.ndarray
    at_rad: np.ndarray
    rad_per_count: np.ndarray
    reach: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def radians(self, counts: np.ndarray) -> np.ndarray:
        return self.at_rad + (counts - self.at_counts) * self.rad_per_count

    def counts(self, radians: np.ndarray) -> np.ndarray:
        """The nearest whole counts, `(J,)` int64."""
        return np.rint((radians - self.at_rad) / self.rad_per_count + self.at_counts).astype(np.int64)

    def turns(self, counts: np.ndarray) -> np.ndarray:
        """Whole turns `(J,)` int64 by which `counts` `(J,)` are away from the calibrated range. A servo that
        counts turns may report a position that differs by a multiple of 4096 after every power-up. Its joint
        travels less than a turn, which tells the turns from the position."""
        return np.rint((counts - self.at_counts) / COUNTS_PER_TURN).astype(np.int64)


def scale(
    calibration: Calibration,
    joints: Joints,
    ends: Iterable[str] = ("gripper",),
    inverted_in_servo: bool = False,
) -> Scale:
    """The scale of each joint. The middle of its range becomes the middle of its limits, and a count is
    2π/4096 rad. The joints in `ends` go from limit to limit over their range instead: of a gripper only the
    ends are known. drive_mode 1 inverts a joint, unless its servo does so itself (`inverted_in_servo`)."""
    c = [calibration[name] for name in joints.names]
    low, high = np.array([[j.range_min, j.range_max] for j in c], np.float64).T
    sign = np.array([-1.0 if j.drive_mode and not inverted_in_servo else 1.0 for j in c])
    span = joints.upper - joints.lower
    by_ends = np.isin(joints.names, list(ends))
    per_count = sign * np.where(by_ends, span / (high - low), 2 * np.pi / COUNTS_PER_TURN)
    at_counts, at_rad = (low + high) / 2, (joints.lower + joints.upper) / 2
    reach = (high - low) / 2 * np.abs(per_count)
    lower, upper = np.maximum(joints.lower, at_rad - reach), np.minimum(joints.upper, at_rad + reach)
    return Scale(at_counts, at_rad, per_count, reach, lower, upper)
