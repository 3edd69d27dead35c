"""What somebody says of the vectors of a dataset: their names, and what they are in. Degrees and percent
become radians as LeRobot's calibrations and our drivers count them, so that an arm goes where it went.

LeRobot's motors (its `motors_bus.py`): degrees are `(counts - middle) · 360 / 4095`, percent -100 to 100 (of
a gripper 0 to 100) between the ends of the calibrated range, the other way round where a Feetech servo has
drive_mode 1. What counts are in radians is `drivers.servos.calibration.scale`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..datasets.features import ACTION, POSITION, STATE, Feature, Features, bare
from ..datasets.units import UNITS, Element, Restate, Restated
from ..drivers.servos import koch, so101
from ..drivers.servos.calibration import lerobot_path, load, scale

WORDS = {"radians": "rad", "degrees": "deg", "percent": "%"}
STATED = ("rad", "deg", "%", "m", "mm", "1", "rad/s", "deg/s", "m/s", "N", "Nm", "A")
SI = {
    "deg": ("rad", np.pi / 180),
    "deg/s": ("rad/s", np.pi / 180),
    "mm": ("m", 1e-3),
    "%": ("1", 0.01),
}
DEGREES_A_COUNT = 360 / 4095  # as LeRobot has it; a turn is 4096 counts
ARMS = {"so101": so101.JOINTS, "koch": koch.JOINTS}
GRIPPER = so101.NAMES[-1]
LEROBOTS = {"so101": "robots/so_follower", "koch": "robots/koch_follower"}  # where it keeps calibrations
SWEPT = 30.0  # degrees beyond the calibrated range that a hand may have left out, or a leader may ask for
PERCENT = ("percent", -101.0, 101.0)  # LeRobot gives none beyond the ends of the range
ASSUMED = "taken as LeRobot's since May 2025: 0 in the middle of a joint's range, grippers in percent"
HANDS = ("grip", "finger", "thumb", "hand", "jaw", "claw")  # which are often not in what the joints are in


@dataclass(frozen=True)
class Statement:
    """units: radians, degrees or percent for all joints, then `NAME=UNIT` for single ones, with commas; ""
    says nothing; NAME may be a pattern. names: of the elements of state and action. calibrations: LeRobot's
    files by the arm's prefix in the names (`left`; "" for all). arm: `so101` or `koch`, where the source does
    not say."""

    units: str = ""
    names: tuple[str, ...] = ()
    calibrations: Mapping[str, Path] = field(default_factory=dict)
    arm: str = ""
    first_of_chunk: bool = False

    @property
    def restate(self) -> Restate:
        """What it makes of a source. ValueError or DeviceError in one sentence where it does not fit."""
        return lambda features, robot: self.applied(features, robot)

    def applied(self, features: Features, robot: str, convert: bool = True) -> Restated:
        """As `restate`; without `convert` the units are written down as they are stated."""
        default, single = self._units()
        _require_silence(features, default)
        elements, notes = {}, {}
        named = False
        for key in (STATE, ACTION):
            f = features.get(key)
            if f is None or not f.shape:
                continue
            width = f.shape[-1]
            names = f.names if len(f.names) == width else ()
            if self.names and len(self.names) == width:
                names, named = self.names, True
            if not names and (single or self.calibrations):
                raise ValueError(f"{key} has no names: state them with --names, {width} with commas")
            elements[key] = self._elements(f, names, width, default, single, robot, convert)
        if self.names and not named:
            widths = [f.shape[-1] for k, f in features.items() if k in (STATE, ACTION) and f.shape]
            raise ValueError(
                f"--names gives {len(self.names)} names, and the vectors have "
                f"{' and '.join(map(str, widths))} elements"
            )
        everything = {n for k in elements for n in self.names or bare(features[k].names)}
        if unknown := [p for p in single if not any(_matches(p, n, n + POSITION) for n in everything)]:
            raise ValueError(
                f"--units names {unknown[0]}, and there is "
                f"{', '.join(e.name for e in next(iter(elements.values()), ()))}"
            )
        if self.units:
            by = ", ".join(p.name for p in self.calibrations.values())
            notes["units"] = f"stated: {self.units}" + (f", by the calibration {by}" if by else "")
            if any(arms_in([e.name for e in es], "") for es in elements.values()) and default == "deg":
                notes["units"] += f"; {ASSUMED}"
        if self.names:
            notes["names"] = f"stated: {','.join(self.names)}"
        if self.first_of_chunk:
            notes["first_of_chunk"] = "each action is the first of the source's chunk"
        return Restated(elements, self.first_of_chunk, notes)

    def _units(self) -> tuple[str, dict[str, str]]:
        default, single = "", {}
        for part in filter(None, (p.strip() for p in self.units.split(","))):
            name, equals, word = part.rpartition("=")
            unit = WORDS.get(word.strip(), word.strip())
            if unit not in STATED or (not equals and (default or unit not in WORDS.values())):
                raise ValueError(
                    f"--units is radians, degrees or percent, and for single elements NAME=UNIT with one of "
                    f"{', '.join((*WORDS, *STATED))}; not {part!r}"
                )
            if equals:
                single[name.strip()] = unit
            else:
                default = unit
        return default, single

    def _elements(
        self,
        f: Feature,
        names: Sequence[str],
        width: int,
        default: str,
        single: Mapping[str, str],
        robot: str,
        convert: bool,
    ) -> tuple[Element, ...]:
        units = f.units if len(f.units) == width else ("",) * width
        short = bare(tuple(names)) if names else ("",) * width
        suffixed = any(n.endswith(POSITION) for n in names)
        arms = arms_in(short, self.arm or robot)
        elements = []
        for i, name in enumerate(short):
            full = names[i] if names else ""
            unit = next((u for p, u in single.items() if _matches(p, name, full)), units[i])
            prefix, joint = _arm_and_joint(name)
            of_arm = prefix in arms
            if not unit and default and (not suffixed or full.endswith(POSITION) or "." not in full):
                if of_arm:
                    unit = "%" if joint == GRIPPER and default == "deg" else default
                elif any(word in name.lower() for word in HANDS):
                    raise ValueError(
                        f"say what {name} is in, which is of a hand: --units {self.units},{name}=UNIT with "
                        f"one of {', '.join(STATED)}"
                    )
                elif default == "%" and convert:
                    raise ValueError(
                        "percent are of a servo's calibrated range: only joints of an SO-100, SO-101 or Koch "
                        f"({', '.join(so101.NAMES)}) can be converted, and this is {name or 'without names'}"
                    )
                else:
                    unit = default
            if not convert or not unit or not (self.units or unit != units[i]):
                element = Element(name, unit)
            elif of_arm and unit in ("deg", "%"):
                element = self._servo(name, prefix, joint, unit, arms[prefix])
            else:
                si, factor = SI.get(unit, (unit, 1.0))
                element = Element(name, si, factor)
            if unit in ("rad", "deg") and not element.stated:
                word, most = {"rad": "radians", "deg": "degrees"}[unit], UNITS[unit].largest
                element = replace(element, stated=word, lowest=-most, highest=most)
            elements.append(element)
        return tuple(elements)

    def _servo(self, name: str, prefix: str, joint: str, unit: str, kind: str) -> Element:
        """A joint of an SO-101 or Koch, whose file there may be; of several arms it is then called as our
        robots call it, `left.elbow_flex`."""
        name = f"{prefix.rstrip('_.')}.{joint}" if prefix else joint
        joints = ARMS[kind or "so101"]
        j = joints.names.index(joint)
        lower, upper = joints.lower[j], joints.upper[j]
        middle = (lower + upper) / 2
        path = self.calibrations.get(prefix.strip("_."), self.calibrations.get(""))
        if path is None:
            if self.calibrations:
                raise ValueError(
                    f"there is no calibration for {name}: --calibration {prefix.strip('_.') or 'ARM'}=FILE"
                )
            if joint == GRIPPER and unit == "%":
                return Element(name, "rad", (upper - lower) / 100, lower, *PERCENT)
            if unit == "%":
                kept = lerobot_path(LEROBOTS[kind or "so101"], "NAME")
                raise ValueError(
                    f"{name} is in percent of its calibrated range: give LeRobot's calibration of the arm "
                    "that was moved (the follower) with --calibration FILE; LeRobot keeps it as "
                    f"{_short(kept)}, NAME being the robot's id"
                )
            return Element(name, "rad", 2 * np.pi / 4096 / DEGREES_A_COUNT, middle)
        dynamixel = kind == "koch"
        calibration = load(path, _ids(path), "dynamixel" if dynamixel else "feetech")
        if set(calibration) != set(joints.names):
            raise ValueError(
                f"{path} is the calibration of another arm: its joints are {', '.join(calibration)}, these "
                f"are {', '.join(joints.names)}"
            )
        c = calibration[joint]
        if c.drive_mode and not kind:
            raise ValueError(
                f"{path} turns {joint} round (drive_mode 1), which Feetech and Dynamixel arms do in "
                "different ways: say which it is with --arm so101 or --arm koch"
            )
        per_count = scale(calibration, joints, inverted_in_servo=dynamixel).rad_per_count[j]
        if unit == "deg":
            reach = (c.range_max - c.range_min) / 2 * DEGREES_A_COUNT + SWEPT
            return Element(name, "rad", per_count / DEGREES_A_COUNT, middle, "degrees", -reach, reach)
        turned = -1 if c.drive_mode and not dynamixel else 1
        span = turned * (c.range_max - c.range_min) * per_count
        if joint == GRIPPER:
            return Element(name, "rad", span / 100, middle - span / 2, *PERCENT)
        return Element(name, "rad", span / 200, middle, *PERCENT)


def _short(path: Path) -> str:
    """With `~` for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _matches(pattern: str, *names: str) -> bool:
    """`gripper`, or of many `*Hand*`."""
    return any(fnmatchcase(n, pattern) for n in names if n)


def _require_silence(features: Features, default: str) -> None:
    """ValueError where the source states its units, and they are others."""
    for key in (STATE, ACTION):
        units = features[key].units if key in features else ()
        if default and units and all(units) and default not in units:
            raise ValueError(
                f"{key} states its units already, {', '.join(dict.fromkeys(units))}: state single elements "
                "with --units NAME=UNIT"
            )


def _arm_and_joint(name: str) -> tuple[str, str]:
    """`left_elbow_flex` → ("left_", "elbow_flex"); ("", name) for what is no joint of these arms."""
    for joint in so101.NAMES:
        if name == joint or name.endswith(("_" + joint, "." + joint)):
            return name[: -len(joint)], joint
    return "-", name


def arms_in(names: Sequence[str], robot: str) -> dict[str, str]:
    """The arms by their prefix that have all joints of an SO-101 or Koch, with which of the two it is; ""
    where the source does not say."""
    joints: dict[str, set[str]] = {}
    for name in names:
        prefix, joint = _arm_and_joint(name)
        joints.setdefault(prefix, set()).add(joint)
    robot = robot.lower()
    kind = "koch" if "koch" in robot else "so101" if "so10" in robot or "so_" in robot else ""
    return {prefix: kind for prefix, of_arm in joints.items() if of_arm == set(so101.NAMES)}


def _ids(path: Path) -> dict[str, int]:
    """The servo ids in a calibration: which they are is the arm's matter, not the dataset's."""
    try:
        table = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
        return {name: joint["id"] for name, joint in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # `load` says what is wrong


def calibration_files(text: str) -> dict[str, Path]:
    """`FILE`, or `left=FILE,right=FILE`. ValueError in one sentence."""
    files: dict[str, Path] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        arm, equals, path = part.partition("=")
        files[arm.strip() if equals else ""] = Path(path if equals else part)
    if "" in files and len(files) > 1:
        raise ValueError("--calibration is one FILE, or ARM=FILE for each arm, with commas")
    return files
