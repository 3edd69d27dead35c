"""Keys pressed on the terminal while a loop runs. Nothing waits for them."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from typing import Self

from ..drivers.hands.keyboard import EVENTS, SEQUENCES

KEYS = {key.encode(): word for key, word in (EVENTS | SEQUENCES).items()}
HELP = "keys: enter finish · s succeeded · f failed · r again · x drop the last one · q quit"
TAKE_HELP = "t takes over from the policy, and gives the arm back"


class Keys:
    """`with Keys() as keys: keys.pressed()`. Where standard input is no terminal, no key is ever pressed."""

    def __init__(self, file: int = 0) -> None:
        self._file = file

    def __enter__(self) -> Self:
        self.is_terminal = os.isatty(self._file)
        if self.is_terminal:
            self._saved = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_terminal:
            with contextlib.suppress(termios.error):  # it was closed
                termios.tcsetattr(self._file, termios.TCSADRAIN, self._saved)

    def pressed(self) -> str | None:
        """The word of the oldest key pressed since the last call; keys without a meaning are skipped. None:
        no such key was pressed."""
        while self.is_terminal and select.select([self._file], [], [], 0)[0]:
            if not (key := os.read(self._file, 1)):
                break
            if key == b"\x1b" and select.select([self._file], [], [], 0.001)[0]:
                key += os.read(self._file, 2)
            if (word := KEYS.get(key.lower() if len(key) == 1 else key)) is not None:
                return word
        return None
