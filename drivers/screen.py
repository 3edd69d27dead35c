"""What a robot's operator sees of it on a page: a picture of each camera, the joints, and what goes on.

The robot's loop writes, pages read, in threads of their own. Nobody waits and nothing is copied: what is
written takes the place of what was there as a whole."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FROZEN_S = 1.0  # a picture that is older than this is called old
WATCHED_S = 1.5  # who has not asked for longer looks no more

Phase = Literal["free", "waiting", "recording", "busy"]


@dataclass(frozen=True, slots=True)
class Picture:
    """rgb: `(H, W, 3)` uint8. number: another one for another picture of the same camera. t_capture_ns: on
    `time.monotonic_ns`. t_robot_ns: the same on the robot's clock."""

    rgb: np.ndarray
    number: int
    t_capture_ns: int
    t_robot_ns: int


@dataclass(frozen=True)
class Description:
    """What stays the same. names, units, lower, upper: of the joints, all of the same length; a limit that is
    not finite is none. stand: from where the first camera sees the robot, degrees: 0 behind it, 180 facing
    it; who looks through it moves the robot from there, unless they say otherwise."""

    robot: str = ""
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()
    cameras: tuple[str, ...] = ()
    stand: Literal[0, 180] = 0

    def to_json(self) -> dict[str, Any]:
        limits = zip(_finite(self.lower), _finite(self.upper), strict=True)
        joints = [
            {"name": name, "unit": unit, "lower": low, "upper": high}
            for name, unit, (low, high) in zip(self.names, self.units, limits, strict=True)
        ]
        return {"name": self.robot, "joints": joints, "cameras": list(self.cameras), "stand": self.stand}


@dataclass(frozen=True, slots=True)
class _Status:
    phase: Phase = "free"
    note: str = ""
    buttons: Mapping[str, str] = field(default_factory=dict)
    since_ns: int = 0


class Screen:
    """`describe`, `show` and `say` are the robot's; `picture` and `state` the pages'.

    must_let_go: whether the operator holds a switch that does not count before it was let go."""

    def __init__(self) -> None:
        self.description = Description()
        self.must_let_go = False
        self._status = _Status()
        self._joints: tuple[np.ndarray, bool] | None = None
        self._pictures: dict[str, Picture] = {}
        self._looked_s: dict[str, float] = {}

    def describe(self, description: Description) -> None:
        self.description = description

    def say(self, phase: Phase, note: str, buttons: Mapping[str, str] | None = None) -> None:
        """phase: `recording` an episode, `waiting` for the operator, `busy` with something else than the
        operator, or `free` to be moved without being recorded. buttons: what an event of
        `drivers.teleoperator` is called on the page now; no other is taken."""
        before = self._status
        goes_on = phase == before.phase == "recording"
        since = before.since_ns if goes_on else time.monotonic_ns()
        self._status = _Status(phase, note[:200], dict(buttons or {}), since)

    def show(
        self, joints: np.ndarray, are_valid: bool, pictures: Mapping[str, tuple[np.ndarray, int, int]]
    ) -> None:
        """What the robot measures now. joints: `(J,)`, rad or m. pictures: by camera the pixels `(H, W, 3)`
        uint8 RGB, their capture on the robot's clock and their age, ns. The arrays must not be written to
        afterwards."""
        now = time.monotonic_ns()
        self._joints = joints, are_valid
        for camera, (rgb, t_robot_ns, age_ns) in pictures.items():
            before = self._pictures.get(camera)
            number = 0 if before is None else before.number + (before.t_robot_ns != t_robot_ns)
            self._pictures[camera] = Picture(rgb, number, now - age_ns, t_robot_ns)

    def is_watched(self, camera: str = "") -> bool:
        """Whether a page has lately asked for pictures of this camera; without one, for anything."""
        return time.monotonic() - self._looked_s.get(camera, -math.inf) < WATCHED_S

    def picture(self, camera: str) -> Picture | None:
        """The newest of `camera`, None before the first; and it counts as watched."""
        self._looked_s[camera] = time.monotonic()
        return self._pictures.get(camera)

    @property
    def phase(self) -> Phase:
        return self._status.phase

    @property
    def buttons(self) -> Mapping[str, str]:
        return self._status.buttons

    def state(self) -> dict[str, Any]:
        """What changes, for a page. joints: positions, rounded. doubtful: whether the arm was not heard of.
        old: age in whole seconds of the pictures that are old. seconds: of the present episode."""
        self._looked_s[""] = time.monotonic()
        status, joints, now = self._status, self._joints, time.monotonic_ns()
        ages_s = {c: (now - p.t_capture_ns) * 1e-9 for c, p in list(self._pictures.items())}
        return {
            "phase": status.phase,
            "note": status.note,
            "buttons": status.buttons,
            "seconds": (now - status.since_ns) // 1_000_000_000 if status.phase == "recording" else None,
            "joints": None if joints is None else _finite(joints[0]),
            "doubtful": joints is not None and not joints[1],
            "old": {c: int(age) for c, age in ages_s.items() if age > FROZEN_S},
            "must_let_go": self.must_let_go,
        }


def _finite(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """As JSON has numbers."""
    return [round(float(v), 4) if math.isfinite(v) else None for v in values]
