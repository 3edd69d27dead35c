"""A gamepad as teleoperator, through SDL's game controllers: pads of all makers in the layout of an Xbox pad.

While a bumper is held: left stick ahead, back, left, right; right stick up, down, and turning; cross tilts
and rolls; right trigger closes the gripper as far as it is pulled, left trigger opens it. A success, B
failure, X again, Y takes over from a policy and gives back, Start finish, Back drops the last episode, Guide
quits. A pad sends nothing while nothing changes, so there is no timeout; the kernel notices a pad that goes
away."""

from __future__ import annotations

import os
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arm import DeviceError
from ..config import setting
from ..teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, QUIT, SUCCESS, TAKE, Hand

if TYPE_CHECKING:
    from collections.abc import Iterator

# numbers of SDL_GameControllerButton and SDL_GameControllerAxis, and what they mean
EVENTS = {0: SUCCESS, 1: FAILURE, 2: AGAIN, 3: TAKE, 4: DROP_LAST, 5: QUIT, 6: FINISH}
BUMPERS = {"left": (9,), "right": (10,), "either": (9, 10)}
UP, DOWN, LEFT, RIGHT = 11, 12, 13, 14
AXES, BUTTONS = 6, 15
FULL = 32767
RETRY_NS = 500_000_000
ENVIRONMENT = {
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "SDL_VIDEODRIVER": "dummy",  # SDL's events want a video driver, and robots often have no screen
    "SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS": "1",
    "SDL_NO_SIGNAL_HANDLERS": "1",  # SDL would take SIGTERM for itself, and the process could not be ended
}


@dataclass(frozen=True)
class Config:
    """The fields of `[teleoperators.gamepad]`."""

    device: str = ""
    """Part of the pad's name, or its GUID; empty: the only one."""
    speed_m_s: float = setting(0.15, 0.005, 2, "m/s")
    """Of the tip with the stick pushed all the way."""
    turn_rad_s: float = setting(1.0, 0.05, 6, "rad/s")
    """Of the tip's turning with the stick pushed all the way."""
    deadzone: float = setting(0.12, 0, 0.9)
    """Share of a stick's way that counts as its middle."""
    bumper: str = "either"
    """Which one must be held for anything to move: `left`, `right` or `either`."""


@dataclass(frozen=True)
class Pad:
    """State of a pad. sticks `(4,)`: left x, left y, right x, right y in [-1, 1], right and down positive.
    triggers `(2,)`: left, right in [0, 1]. buttons: numbers of those that are down."""

    sticks: np.ndarray
    triggers: np.ndarray
    buttons: frozenset[int] = frozenset()


def make(name: str, config: Config) -> GamepadTeleoperator:
    return GamepadTeleoperator(name, config)


def stick_response(v: float, deadzone: float) -> float:
    """The response in [-1, 1] to a stick's deflection in [-1, 1]: 0 within the deadzone, from its rim on
    growing continuously, odd, and finer for small deflections."""
    beyond = max(0.0, min(abs(v), 1.0) - deadzone) / (1.0 - deadzone)
    return float(np.copysign(beyond * (0.4 + 0.6 * beyond), v))


def opening(before: float | None, left: float, right: float) -> float | None:
    """The opening in [0, 1] to request from the gripper, None while no trigger was ever pulled. The right
    trigger only closes it and the left one only opens it; with both released it stays as it is, so that the
    object in it is not dropped. before: the last request. left, right: the triggers, in [0, 1]."""
    if right > 0.05 and right >= left:
        return min(1.0 if before is None else before, 1.0 - right)
    if left > 0.05:
        return max(1.0 if before is None else before, left)
    return before


def hand_of(pad: Pad, config: Config, gripper: float | None = None) -> Hand:
    """What the pad's state asks for, without events and times, which `read` adds. gripper: the last requested
    opening."""
    active = any(b in pad.buttons for b in BUMPERS[config.bumper])
    if not active:
        return Hand(False)
    lx, ly, rx, ry = (stick_response(float(v), config.deadzone) for v in pad.sticks)
    roll = (RIGHT in pad.buttons) - (LEFT in pad.buttons)
    tilt = (UP in pad.buttons) - (DOWN in pad.buttons)
    linear = np.array([-ly, -lx, -ry])
    linear *= config.speed_m_s / max(1.0, float(np.linalg.norm(linear)))  # corners are no faster
    angular = np.array([roll, tilt, -rx]) * config.turn_rad_s
    left, right = (float(v) for v in pad.triggers)
    return Hand(True, linear, angular, gripper=opening(gripper, left, right))


class GamepadTeleoperator:
    """A bumper that is already held when the pad is opened, or comes back, must be released once before it
    counts."""

    def __init__(self, name: str, config: Config) -> None:
        if config.bumper not in BUMPERS:
            raise DeviceError(f"{name}: bumper is {config.bumper!r}, it must be left, right or either")
        self.name, self.config = name, config
        self._pygame: ModuleType | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._pad: Any = None
        self._guid = ""  # of the pad that was opened; only that one is opened again
        self._gripper: float | None = None
        self._tried_ns = 0
        self._forget()

    def _forget(self) -> None:
        self._buttons: frozenset[int] | None = None
        self._let_go = False
        self._state: tuple[Any, ...] = ()
        self._heard_ns = time.monotonic_ns()

    def open(self) -> None:
        if self._pygame is not None:
            return
        self._start_over()
        pygame = self._pygame = _load()
        _users.append(self)
        try:
            pygame.event.clear()  # takes note of what is plugged in
            number = self._choose()
            self._pad = _controllers(pygame).Controller(number)
            self._guid = self._pad.as_joystick().get_guid()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        pygame, self._pygame = self._pygame, None
        if pygame is None:
            return
        self._drop()
        _users.remove(self)
        if not _users:  # another pad may still be read
            _controllers(pygame).quit()
            pygame.joystick.quit()
            pygame.display.quit()

    def read(self) -> Hand:
        pygame = self._pygame
        if pygame is None:
            return Hand(False)
        pygame.event.clear()  # SDL looks at its devices; the queue would only grow
        if self._pad is not None and not self._pad.attached():
            self._drop()
        if self._pad is None:
            self._come_back()
        pad = self._pad
        if pad is None:
            return Hand(False, t_receive_ns=self._heard_ns)
        state = (
            *(pad.get_axis(i) for i in range(AXES)),
            *(bool(pad.get_button(i)) for i in range(BUTTONS)),
        )
        if state != self._state:
            self._state, self._heard_ns = state, time.monotonic_ns()
        buttons = frozenset(i for i in range(BUTTONS) if state[AXES + i])
        axes = np.clip(np.array(state[:AXES], float) / FULL, -1, 1)
        before, self._buttons = self._buttons, buttons
        # a button already down when the pad came was pressed for something else
        events = () if before is None else tuple(EVENTS[i] for i in sorted(buttons - before) if i in EVENTS)
        hand = hand_of(Pad(axes[:4], np.maximum(axes[4:], 0), buttons), self.config, self._gripper)
        self._let_go |= not hand.active
        if not self._let_go:
            hand = Hand(False)
        if hand.active:
            self._gripper = hand.gripper
        return replace(hand, events=events, t_receive_ns=self._heard_ns)

    def _drop(self) -> None:
        if self._pad is not None:
            with suppress(Exception):  # it is gone: there may be nothing left to release
                self._pad.quit()
        self._pad = None
        self._forget()

    def _come_back(self) -> None:
        now = time.monotonic_ns()
        if now - self._tried_ns < RETRY_NS:
            return
        self._tried_ns = now
        for number, _, guid in _pads(self._pygame):
            if guid == self._guid:
                with suppress(Exception):  # it went away again, or may not be opened yet
                    self._pad = _controllers(self._pygame).Controller(number)

    def _choose(self) -> int:
        pads = _pads(self._pygame)
        if not pads:
            raise DeviceError(_nothing(self.name))
        query = self.config.device.lower()
        matches = [p for p in pads if query in p[1].lower() or query == p[2].lower()]
        listing = ", ".join(f"{title} ({guid})" for _, title, guid in pads)
        if not matches:
            raise DeviceError(f"{self.name}: no gamepad is called {self.config.device!r}; there is {listing}")
        if len(matches) > 1:
            raise DeviceError(
                f"{self.name}: several gamepads fit: {listing}; say which one with device, by a part "
                "of its name or its GUID"
            )
        return matches[0][0]


_users: list[GamepadTeleoperator] = []  # SDL is one for the whole process


@contextmanager
def _environment() -> Iterator[None]:
    """SDL's settings, only while SDL reads them: programs that we start must not inherit them."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _load() -> ModuleType:
    with _environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pygame looks for its own files in a way that is deprecated
        try:
            import pygame
        except ImportError as error:
            raise DeviceError(f"gamepads need pygame (pip install pygame): {error}") from None
        pygame.display.init()
        pygame.joystick.init()
        _controllers(pygame).init()
    return pygame


def _controllers(pygame: ModuleType | None) -> Any:
    import importlib

    assert pygame is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pygame._sdl2.controller")


def _pads(pygame: ModuleType | None) -> list[tuple[int, str, str]]:
    """Number, name and GUID of each plugged-in device with the layout of a gamepad."""
    assert pygame is not None
    controllers = _controllers(pygame)
    pads = []
    for number in range(pygame.joystick.get_count()):
        if controllers.is_controller(number):
            stick = pygame.joystick.Joystick(number)
            pads.append((number, stick.get_name(), stick.get_guid()))
    return pads


def _nothing(name: str) -> str:
    from ..devices import gamepads

    pads = gamepads()
    for pad in pads:
        if pad.problem:  # SDL does not see what it may not open
            return f"{name}: {pad.title}: {pad.problem} (gamepads belong to the group input)"
    if pads:
        titles = ", ".join(pad.title for pad in pads)
        return f"{name}: {titles} has not the layout of a gamepad; use another one"
    return (
        f"{name}: there is no gamepad: plug one in, and if it is in, see that `ulna devices` lists it "
        "and that you are in the group "
        "input (`sudo usermod -aG input $USER`, then log in again)"
    )
