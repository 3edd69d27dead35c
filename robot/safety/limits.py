"""The table `[safety]` of a robot's file: how fast its arms may move, and where.

Without it the defaults hold. They fit a hobby arm that stands on a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...drivers.arm import DeviceError, Joints
from ...drivers.config import parse, require_known, setting

GRIPPER = "gripper"
# speed, acceleration, jerk where the file says nothing, by kind of joint: (rad or m)/s, /s², /s³
ARM, RAD_GRIPPER, SLIDE = (1.5, 10.0, 500.0), (3.0, 30.0, 1500.0), (0.2, 2.0, 100.0)
QUANTITIES = ("speed", "acceleration", "jerk")
LONGEST_STOP_S = 2.0
NO_WORKSPACE = "give its corners as [[x, y, z], [x, y, z]], in m, the lower one first"


@dataclass(frozen=True)
class Config:
    """The fields of `[safety]`."""

    speed: float = setting(ARM[0], 0.01, 20, "rad/s")
    """Of each joint that turns. A slower arm keeps its own."""
    acceleration: float = setting(ARM[1], 0.1, 500, "rad/s²")
    """Of each joint that turns."""
    jerk: float = setting(ARM[2], 1, 50_000, "rad/s³")
    """Of each joint that turns."""
    joints: dict = field(default_factory=dict)
    """Tables `[safety.joints.NAME]` with speed, acceleration and jerk of one joint, in rad or m."""
    table: float | bool | dict = 0.0
    """Height of the table in the arm's base frame, m; false: there is none. By arm: { left = 0.01 }; one that
    is left out has the default."""
    workspace: tuple | dict | None = None
    """Corners of the box that the tip stays in, in the arm's base frame, m. By arm: { left = [...] }."""
    self_collision: bool = True
    """Whether to keep the arm's parts off each other."""
    self_distance: float = setting(0.01, 0.0, 0.1, "m")
    """How near they may come."""
    table_distance: float = setting(0.002, 0.0, 0.1, "m")
    """How near to the table they may come."""
    arm_distance: float = setting(0.01, 0.0, 0.1, "m")
    """How near to each other several arms may come."""
    bases: dict | None = None
    """Where the base of each arm is, of several: { left = [x, y, z, yaw], … }, in m and rad, in one frame."""
    rest: tuple | None = None
    """Where the arms are put before their torque goes off, a position of each joint."""
    tracking_error: float = setting(0.5, 0.02, 4, "rad")
    """An arm that is further than this from where it was sent is stopped."""
    stale_s: float = setting(0.5, 0.02, 10, "s")
    """Readings, images or requests that are older stop the arm."""
    smoothing: dict | None = None
    """The table `[safety.smoothing]`: how far a request may run ahead of the arm."""
    guard: dict | None = None
    """The table `[safety.guard]`: recordings, beyond which nothing is done."""
    barrier: dict | None = None
    """The table `[safety.barrier]`: obstacles that the arm goes around."""
    tank: dict | None = None
    """The table `[safety.tank]`: how much energy the arm may give away."""


@dataclass(frozen=True)
class JointConfig:
    """The fields of `[safety.joints.NAME]`, in rad or m."""

    speed: float | None = setting(None, 0.001, 20, "/s")
    acceleration: float | None = setting(None, 0.01, 500, "/s²")
    jerk: float | None = setting(None, 0.1, 50_000, "/s³")


@dataclass(frozen=True, eq=False)
class Safety:
    """speed, acceleration, jerk: `(A,)`. table, workspace: by arm ("" where the robot has one), m in its base
    frame; arms without are not in them. workspace: `(2, 3)`. bases: by arm, x, y, z in m and yaw in rad; {}:
    not known. rest: `(A,)`. self_distance: below zero where self-collision is allowed. given: whether the
    file has the table."""

    speed: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    table: Mapping[str, float]
    workspace: Mapping[str, np.ndarray]
    self_distance: float
    table_distance: float
    arm_distance: float
    bases: Mapping[str, tuple[float, float, float, float]]
    rest: np.ndarray | None
    tracking_error: float
    stale_s: float
    given: bool

    @staticmethod
    def of(config: Mapping[str, Any], joints: Joints, where: str = "[safety]") -> Safety:
        """What the robot's file `config` says for `joints`, of all arms. where: for messages. DeviceError
        says what is wrong, or contradicts the robot."""
        table = config.get("safety", {})
        c = parse(Config, table, where)
        limits = _limits(c, table, joints, where)
        arms = groups(joints)
        heights = {
            arm: float(height)
            for arm, height in _by_arm(c.table, arms, Config.table, f"{where}: table").items()
            if height is not False
        }
        boxes = {
            arm: _box(corners, f"{where}: workspace")
            for arm, corners in _by_arm(c.workspace, arms, Config.workspace, f"{where}: workspace").items()
            if corners is not None
        }
        for arm, box in boxes.items():
            if arm in heights and box[1, 2] <= heights[arm]:
                raise DeviceError(
                    f"{where}: the workspace ends at {box[1, 2]:g} m, which is under the table at "
                    f"{heights[arm]:g} m"
                )
        return Safety(
            *limits,
            heights,
            boxes,
            c.self_distance if c.self_collision else -1.0,
            c.table_distance,
            c.arm_distance,
            {} if c.bases is None else _bases(c.bases, arms, f"{where}: bases"),
            None if c.rest is None else _rest(c.rest, joints, where),
            c.tracking_error,
            c.stale_s,
            "safety" in config,
        )

    def summary(self) -> str:
        """In a few words, for the screen."""
        tables = sorted(set(self.table.values()))
        words = [
            f"{self.speed[0]:g} rad/s" if len(self.speed) else "",
            f"{self.acceleration[0]:g} rad/s²" if len(self.acceleration) else "",
            f"the table at {', '.join(f'{t:g}' for t in tables)} m" if tables else "no table",
        ]
        return ", ".join(filter(None, words))


def groups(joints: Joints) -> dict[str, tuple[list[int], list[int]]]:
    """By arm, "" where the robot has one: its joints, and those of them that are its gripper's."""
    arms: dict[str, tuple[list[int], list[int]]] = {}
    for j, name in enumerate(joints.names):
        arm, _, joint = name.rpartition(".")
        columns, grippers = arms.setdefault(arm, ([], []))
        columns.append(j)
        if joint == GRIPPER or joints.units[j] == "m":
            grippers.append(j)
    return arms


def _limits(
    c: Config, table: Mapping[str, Any], joints: Joints, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own: dict[str, JointConfig] = {}
    short = {name.rpartition(".")[2] for name in joints.names}
    for name, values in c.joints.items():
        require_known(f"joint for [safety.joints] in {where}:", name, {*joints.names, *short})
        own[name] = parse(JointConfig, values, f"{where}, [safety.joints.{name}]")
    rows = np.empty((3, len(joints)))
    for j, (name, unit) in enumerate(zip(joints.names, joints.units, strict=True)):
        bare = name.rpartition(".")[2]
        turns = unit == "rad" and bare != GRIPPER
        defaults = ARM if turns else RAD_GRIPPER if unit == "rad" else SLIDE
        fastest = float(joints.max_velocity[j])
        for k, quantity in enumerate(QUANTITIES):
            value = next(
                (v for n in (name, bare) if n in own and (v := getattr(own[n], quantity)) is not None), None
            )
            if value is None and turns and quantity in table:
                value = getattr(c, quantity)
            if quantity == "speed":
                if value is not None and value > fastest * (1 + 1e-9):
                    raise DeviceError(
                        f"{where}: the speed of {name} is {value:g} {unit}/s, and it goes at most "
                        f"{fastest:g} {unit}/s: lower it, or leave it out"
                    )
                rows[k, j] = min(defaults[k], fastest) if value is None else value
            else:
                rows[k, j] = defaults[k] if value is None else value
        speed, acceleration, jerk = rows[:, j]
        if (stop_s := speed / acceleration + acceleration / jerk) > LONGEST_STOP_S:
            raise DeviceError(
                f"{where}: from {speed:g} {unit}/s {name} takes {stop_s:.1f} s to stop, which is too long: "
                "raise its acceleration or jerk, or lower its speed"
            )
    return rows[0], rows[1], rows[2]


def _by_arm(value: Any, arms: Mapping[str, Any], default: Any, where: str) -> dict[str, Any]:
    """What is said once counts for every arm; an arm that is left out has the `default`."""
    if not isinstance(value, Mapping):
        if value is True:
            raise DeviceError(f"{where} is true: give its height in m, or false where there is none")
        return dict.fromkeys(arms, value)
    if "" in arms:
        raise DeviceError(f"{where} is a table by arm, and this robot has one arm: give the value itself")
    for arm, one in value.items():
        require_known(f"arm for {where}:", arm, arms)
        if where.endswith("table") and (
            one is True or not isinstance(one, int | float) or not -10 <= one <= 10
        ):
            raise DeviceError(f"{where} of {arm} is {one!r}: give its height in m, or false for none")
    return {arm: value.get(arm, default) for arm in arms}


def _bases(
    bases: Mapping[str, Any], arms: Mapping[str, Any], where: str
) -> dict[str, tuple[float, float, float, float]]:
    if "" in arms:
        raise DeviceError(f"{where} are for several arms, and this robot has one: leave them out")
    for arm, base in bases.items():
        require_known(f"arm for {where}:", arm, arms)
        numbers = isinstance(base, list | tuple) and len(base) == 4
        if not numbers or not all(isinstance(x, int | float) and abs(x) <= 10 for x in base):
            raise DeviceError(f"{where} of {arm} is {base!r}: give its [x, y, z, yaw], in m and rad")
    if lacking := [arm for arm in arms if arm not in bases]:
        raise DeviceError(f"{where} do not say where {lacking[0]} is: give the [x, y, z, yaw] of every arm")
    return {arm: tuple(map(float, bases[arm])) for arm in arms}  # pyright: ignore[reportReturnType]


def _box(corners: Any, where: str) -> np.ndarray:
    try:
        box = np.array(corners, np.float64)
    except (TypeError, ValueError):
        raise DeviceError(f"{where} is {corners!r}: {NO_WORKSPACE}") from None
    if box.shape != (2, 3) or not np.isfinite(box).all():
        raise DeviceError(f"{where} is {corners!r}: {NO_WORKSPACE}")
    if (narrow := box[0] >= box[1]).any():
        axis = int(np.argmax(narrow))
        raise DeviceError(
            f"{where} goes from {box[0, axis]:g} to {box[1, axis]:g} m along {'xyz'[axis]}: {NO_WORKSPACE}"
        )
    return box


def _rest(rest: Sequence[Any], joints: Joints, where: str) -> np.ndarray:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in rest)
    if len(rest) != len(joints) or not numbers:
        raise DeviceError(
            f"{where}: rest is {list(rest)!r}, it must be a position for each of {', '.join(joints.names)}"
        )
    q = np.array(rest, np.float64)
    if (outside := (q < joints.lower) | (q > joints.upper)).any():
        j = int(np.argmax(outside))
        raise DeviceError(
            f"{where}: rest has {joints.names[j]} at {q[j]:g} {joints.units[j]}, outside its limits "
            f"{joints.lower[j]:.3g} to {joints.upper[j]:.3g}"
        )
    return q
