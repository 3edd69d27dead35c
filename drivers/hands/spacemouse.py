"""A 3Dconnexion SpaceMouse as teleoperator: its cap moves and turns the tip while the left button is held;
the right one closes and opens the gripper. Read as raw HID reports, without 3Dconnexion's own driver.

Reports, by their first byte: 1 and 2 push and turn, three little-endian int16 each, or 1 alone with all six;
3 buttons, one bit each. Axes of the device: x right, y towards the person, z down, and right-handed turns
about them; about ±350 is the end of the way. While the cap is out of its middle the device repeats them some
60 times a second or more."""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..config import setting
from ..teleoperator import Hand
from .spacemouse_ids import is_spacemouse

MULTI_AXIS = (0x01, 0x08)  # usage page and usage, of the HID usage tables
FULL = 350.0
LEFT, RIGHT = 1, 2
MOST_REPORTS = 256  # in one read; more wait only when nobody looked for long
RETRY_NS = 500_000_000


@dataclass(frozen=True)
class Config:
    """The fields of `[teleoperators.spacemouse]`."""

    device: str = ""
    """Part of its name or of its serial number; empty: the only one."""
    speed_m_s: float = setting(0.15, 0.005, 2, "m/s")
    """Of the tip with the cap pushed all the way."""
    turn_rad_s: float = setting(1.0, 0.05, 6, "rad/s")
    """Of the tip's turning with the cap pushed all the way."""
    deadzone: float = setting(0.06, 0, 0.9)
    """Share of the cap's way that counts as its middle."""
    dead_man: str = "left"
    """`left`: nothing moves unless the left button is held; `none`: any motion of the cap moves the arm."""
    timeout_s: float = setting(0.25, 0.05, 5, "s")
    """A cap that is out of its middle and was not heard of for longer has been let go."""
    gripper_s: float = setting(1.0, 0.1, 5, "s")
    """With `dead_man = "none"`: how long the right button may move the gripper after it was pressed."""


@dataclass(frozen=True)
class Report:
    """The content of one report: push or turn, 3 counts each, buttons as bits; None for what the report does
    not hold."""

    push: tuple[int, int, int] | None = None
    turn: tuple[int, int, int] | None = None
    buttons: int | None = None


def parse_report(report: bytes) -> Report | None:
    """The content of a report; None when it is of another kind (battery, lights) or too short."""
    if not report:
        return None
    kind, body = report[0], report[1:]
    if kind == 1 and len(body) >= 12:
        six = struct.unpack("<6h", body[:12])
        return Report(push=six[:3], turn=six[3:])
    if kind in (1, 2) and len(body) >= 6:
        three = struct.unpack("<3h", body[:6])
        return Report(push=three) if kind == 1 else Report(turn=three)
    if kind == 3 and body:
        return Report(buttons=int.from_bytes(body[:4], "little"))
    return None


def deflection(counts: tuple[int, int, int], deadzone: float) -> np.ndarray:
    """Three counts of the device's axes as shares of the full travel `(3,)` in [-1, 1], in the robot's axes
    (x ahead, y left, z up); 0 within the deadzone."""
    x, y, z = (float(c) / FULL for c in counts)
    v = np.array([-y, -x, -z])
    beyond = np.clip(np.abs(v) - deadzone, 0.0, 1.0 - deadzone) / (1.0 - deadzone)
    return np.copysign(beyond, v)


def make(name: str, config: Config) -> SpaceMouseTeleoperator:
    return SpaceMouseTeleoperator(name, config)


@dataclass
class Puck:
    """State of the device by its reports so far, and the `Hand` that follows from it. No input or output:
    `SpaceMouseTeleoperator` does that."""

    config: Config
    push: np.ndarray = field(default_factory=lambda: np.zeros(3))
    turn: np.ndarray = field(default_factory=lambda: np.zeros(3))
    buttons: int = 0
    gripper: float | None = None
    moved_ns: int = 0
    heard_ns: int = 0
    gripped_ns: int | None = None

    def hear(self, report: bytes, now_ns: int) -> None:
        content = parse_report(report)
        if content is None:
            return
        self.heard_ns = now_ns
        if content.push is not None:
            self.push, self.moved_ns = deflection(content.push, self.config.deadzone), now_ns
        if content.turn is not None:
            self.turn, self.moved_ns = deflection(content.turn, self.config.deadzone), now_ns
        if content.buttons is not None:
            presses, self.buttons = content.buttons & ~self.buttons, content.buttons
            if presses & RIGHT and self._permitted:
                self.gripper = 1.0 if self.gripper == 0.0 else 0.0
                self.gripped_ns = now_ns

    @property
    def _permitted(self) -> bool:
        return self.config.dead_man == "none" or bool(self.buttons & LEFT)

    def hand(self, now_ns: int) -> Hand:
        is_fresh = now_ns - self.moved_ns <= self.config.timeout_s * 1e9
        linear = self.push * self.config.speed_m_s if is_fresh else np.zeros(3)
        angular = self.turn * self.config.turn_rad_s if is_fresh else np.zeros(3)
        active = self._permitted
        if self.config.dead_man == "none":
            gripping = self.gripped_ns is not None and now_ns - self.gripped_ns <= self.config.gripper_s * 1e9
            active = gripping or bool(linear.any() or angular.any())
        if not active:
            return Hand(False, t_receive_ns=self.heard_ns)
        return Hand(True, linear, angular, gripper=self.gripper, t_receive_ns=self.heard_ns)


class SpaceMouseTeleoperator:
    def __init__(self, name: str, config: Config) -> None:
        if config.dead_man not in ("left", "none"):
            raise DeviceError(f"{name}: dead_man is {config.dead_man!r}, it must be left or none")
        self.name, self.config = name, config
        self._open = False
        self._device: Any = None
        self._serial: tuple[int, int, str] | None = None
        self._tried_ns = self._read_ns = 0
        self._puck = Puck(config)

    def open(self) -> None:
        if self._open:
            return
        entry = self._choose(_candidates())
        self._device = _open_device(entry["path"])
        if self._device is None:
            raise DeviceError(_why_not(self.name))
        self._serial = _identity(entry)
        self._puck, self._open = Puck(self.config), True

    def close(self) -> None:
        self._open = False
        self._drop()

    def read(self) -> Hand:
        if not self._open:
            return Hand(False)
        now = time.monotonic_ns()
        # The kernel keeps 64 reports and then throws new ones away, a button's release among them. So after a
        # pause the reports that came meanwhile do not count, and the button must be pressed anew.
        if now - self._read_ns > self.config.timeout_s * 1e9:
            self._listen(now)
            self._puck = Puck(self.config, gripper=self._puck.gripper)
        self._read_ns = now
        if self._device is None:
            self._come_back(now)
        self._listen(now)
        return self._puck.hand(now)

    def _listen(self, now: int) -> None:
        if self._device is not None:
            try:
                for _ in range(MOST_REPORTS):
                    report = self._device.read(64)
                    if not report:
                        break
                    self._puck.hear(bytes(report), now)
            except (OSError, ValueError):  # unplugged
                self._drop()

    def _drop(self) -> None:
        """Close a device that is gone; all its buttons count as released."""
        if self._device is not None:
            self._device.close()
        self._device, self._puck = None, Puck(self.config, gripper=self._puck.gripper)

    def _come_back(self, now: int) -> None:
        if now - self._tried_ns < RETRY_NS:
            return
        self._tried_ns = now
        for entry in _candidates():
            if self._device is None and _identity(entry) == self._serial:
                self._device = _open_device(entry["path"])

    def _choose(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        if not candidates:
            raise DeviceError(_why_not(self.name))
        query = self.config.device.lower()
        matches = [
            f
            for f in candidates
            if query in str(f["product_string"]).lower() or query in str(f["serial_number"] or "").lower()
        ]
        listing = ", ".join(
            f"{f['product_string']} ({f['serial_number'] or 'no serial number'})" for f in candidates
        )
        if not matches:
            raise DeviceError(
                f"{self.name}: no SpaceMouse is called {self.config.device!r}; there is {listing}"
            )
        if len({_identity(f) for f in matches}) > 1:
            raise DeviceError(
                f"{self.name}: several SpaceMice fit: {listing}; say which one with device, by a part "
                "of its name or serial number"
            )
        return matches[0]  # a wireless receiver shows itself several times; the first is the one that speaks


def _identity(entry: dict[str, Any]) -> tuple[int, int, str]:
    return entry["vendor_id"], entry["product_id"], str(entry["serial_number"] or "")


def _candidates() -> list[dict[str, Any]]:
    """hidapi's entries of 3Dconnexion's devices whose cap has six axes (they also sell mice and keypads)."""
    try:
        import hidraw
    except ImportError as error:
        raise DeviceError(f"a SpaceMouse needs hidapi (pip install hidapi): {error}") from None
    ours = [d for d in hidraw.enumerate() if is_spacemouse(d["vendor_id"], d["product_id"])]
    caps = [d for d in ours if (d["usage_page"], d["usage"]) == MULTI_AXIS]
    return caps or [d for d in ours if not d["usage_page"]]  # old kernels do not tell the usage


def _open_device(path: bytes) -> Any:
    """The open device, None when it cannot be opened."""
    import hidraw

    device = hidraw.device()
    with suppress(OSError):
        device.open_path(path)
        device.set_nonblocking(True)
        return device
    device.close()
    return None


def _why_not(name: str) -> str:
    from ..devices import SPACEMOUSE_RULE, SPACEMOUSE_RULE_FILE, spacemice

    there = spacemice()
    for mouse in there:
        if mouse.problem:
            return f"{name}: {mouse.title}: {mouse.problem}"
    if there:
        titles = ", ".join(mouse.title for mouse in there)
        return f"{name}: {titles} is there but does not open, or is no SpaceMouse: plug it in again"
    return (
        f"{name}: there is no SpaceMouse: plug one in; it must show as a /dev/hidraw device, and who "
        "is not root needs the udev rule "
        f"{SPACEMOUSE_RULE} in {SPACEMOUSE_RULE_FILE}"
    )
