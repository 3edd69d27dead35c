"""The keys of a terminal as teleoperator: for a robot reached over ssh, or when there is no better device.

A terminal reports keys that go down, and repeats the one held last; it never reports a key that is released.
So a key counts for `hold_s` after its last report, and then the robot stands still. Between a key and its
first repeat the terminal pauses, often for half a second: the tip makes a small step first, and goes on when
the repeats come. A short tap is thus a small step."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import time
import tty
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arm import DeviceError
from ..config import setting
from ..teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, QUIT, SUCCESS, TAKE, Hand

# key -> axis and sign. A small letter moves along the axis, its capital turns about one: I tilts the hand
# down, J turns it left, U rolls it
MOVES = {
    "i": (0, 1), "k": (0, -1), "j": (1, 1), "l": (1, -1), "u": (2, 1), "m": (2, -1),
    "I": (1, 1), "K": (1, -1), "J": (2, 1), "L": (2, -1), "U": (0, -1), "M": (0, 1),
}  # fmt: skip
# A key means the same for every teleoperator. Terminals send arrows in two spellings
EVENTS = {
    "\r": FINISH,
    "\n": FINISH,
    "s": SUCCESS,
    "f": FAILURE,
    "r": AGAIN,
    "x": DROP_LAST,
    "q": QUIT,
    "t": TAKE,
}
SEQUENCES = {"\x1b[C": FINISH, "\x1bOC": FINISH, "\x1b[D": AGAIN, "\x1bOD": AGAIN, "\x1b": QUIT}
GRIPPER = " "
HELP = (
    "hold to move: i/k ahead, back · j/l left, right · u/m up, down · with shift they tilt, turn and "
    "roll · space closes or opens the "
    "gripper\nthe episode: enter finish · s succeeded · f failed · r again · x drop the last one · q quit"
)

_KEY = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[A-Za-z])?|.", re.DOTALL)
ESCAPE_S = 0.05  # an escape followed by nothing is a key; otherwise it begins an arrow's sequence


@dataclass(frozen=True)
class Config:
    """The fields of `[teleoperators.keyboard]`."""

    speed_m_s: float = setting(0.08, 0.005, 1, "m/s")
    """Of the tip while a key is held."""
    turn_rad_s: float = setting(0.6, 0.05, 6, "rad/s")
    """Of the tip's turning while a key is held."""
    hold_s: float = setting(0.25, 0.05, 1, "s")
    """How long a key counts after it was last heard of; longer than the pause between two repeats, of which
    most terminals make 25 a second."""
    gripper_s: float = setting(1.0, 0.1, 5, "s")
    """How long one press of space may move the gripper."""


def make(name: str, config: Config) -> KeyboardTeleoperator:
    return KeyboardTeleoperator(name, config)


class KeyboardTeleoperator:
    """file: descriptor of the terminal, 0 for standard input. announce: called with the help on the keys."""

    def __init__(
        self,
        name: str,
        config: Config,
        file: int = 0,
        announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ) -> None:
        self.name, self.config = name, config
        self._file, self._announce = file, announce
        self._restore: weakref.finalize[..., KeyboardTeleoperator] | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._move: tuple[str, int] | None = None  # which key, and when it was heard
        self._gripper: float | None = None
        self._gripper_ns: int | None = None
        self._escape_ns: int | None = None  # when an escape came that nothing has followed yet
        self._read_ns = self._heard_ns = time.monotonic_ns()
        self._gone = False

    def open(self) -> None:
        if self._restore is not None:
            return
        if not os.isatty(self._file):
            raise DeviceError(
                f"{self.name}: the keyboard needs a terminal, and standard input is none: start this "
                "in a terminal, without a pipe, "
                "or use --agent browser"
            )
        attributes = termios.tcgetattr(self._file)
        # also when nobody calls `close`: a terminal that shows no letters is hard to recover
        self._restore = weakref.finalize(self, _put_back, self._file, attributes)
        termios.tcflush(self._file, termios.TCIFLUSH)  # what was typed before was not meant for the robot
        tty.setcbreak(self._file, termios.TCSANOW)  # flushing here would wait for whoever reads the output
        self._start_over()
        self._announce(HELP)

    def close(self) -> None:
        restore, self._restore = self._restore, None
        if restore is not None:
            restore()

    def read(self) -> Hand:
        if self._restore is None:
            return Hand(False)
        now, hold_ns = time.monotonic_ns(), round(self.config.hold_s * 1e9)
        # after a long time without a read it is not known how old the waiting keys are, so they move nothing
        fresh = now - self._read_ns <= hold_ns
        self._read_ns = now
        events = []
        for key in self._keys(now):
            self._heard_ns = now
            if word := EVENTS.get(key, SEQUENCES.get(key)):
                events.append(word)
            elif fresh and key in MOVES:
                self._move = key, now
            elif fresh and key == GRIPPER:
                self._gripper = 1.0 if self._gripper == 0.0 else 0.0
                self._gripper_ns = now
        linear, angular = np.zeros(3), np.zeros(3)
        moving = self._move is not None and now - self._move[1] <= hold_ns
        if self._move is not None and moving:
            axis, sign = MOVES[self._move[0]]
            if self._move[0].islower():
                linear[axis] = sign * self.config.speed_m_s
            else:
                angular[axis] = sign * self.config.turn_rad_s
        gripping = self._gripper_ns is not None and now - self._gripper_ns <= self.config.gripper_s * 1e9
        active = (moving or gripping) and not self._gone
        return Hand(
            active,
            linear,
            angular,
            gripper=self._gripper if active else None,
            events=tuple(events),
            t_receive_ns=self._heard_ns,
        )

    def _keys(self, now: int) -> list[str]:
        """The keys that were typed since the last call."""
        text = "\x1b" if self._escape_ns is not None else ""
        try:
            if not self._gone and select.select([self._file], [], [], 0)[0]:
                data = os.read(self._file, 4096)
                self._gone = not data
                text += data.decode("latin-1")
        except OSError:  # the window was closed, or the line is down
            self._gone = True
        if text == "\x1b":
            if self._escape_ns is None:
                self._escape_ns = now
            if now - self._escape_ns < ESCAPE_S * 1e9:
                return []
        self._escape_ns = None
        keys = _KEY.findall(text)
        if len(keys) > 1 and keys[-1] == "\x1b":
            keys.pop()
            self._escape_ns = now
        return keys


def _put_back(file: int, attributes: list[object]) -> None:
    with contextlib.suppress(termios.error):  # there is no terminal any more
        termios.tcflush(file, termios.TCIFLUSH)  # else the shell gets what was meant for the robot
        termios.tcsetattr(file, termios.TCSANOW, attributes)  # type: ignore[arg-type]
