"""What a guided set-up says and asks, on standard error. Questions can be answered beforehand, so that a
script can take a person's place."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ...drivers.arm import DeviceError

POLL_S = 0.1


class Guide:
    """yes: every question is answered with yes, unasked. patience_s: how long to wait for what a hand must
    do. place: where the set-up stands, for whoever interrupts it."""

    def __init__(self, yes: bool, patience_s: float) -> None:
        self.yes, self.patience_s, self.place = yes, patience_s, ""
        self._last = ""

    def say(self, text: str) -> None:
        """Print `text`, unless it was the last that was said."""
        if text != self._last:
            print(text, file=sys.stderr, flush=True)
        self._last = text

    def begin(self, place: str) -> None:
        self.place = place
        self.say(f"\n== {place}")

    def confirm(self, question: str) -> bool:
        """Whether the answer is yes. DeviceError: nobody is there to answer."""
        if self.yes:
            self.say(f"{question} Yes (--yes).")
            return True
        print(f"{question} [y/n] ", end="", file=sys.stderr, flush=True)
        self._last = ""
        while True:
            line = sys.stdin.readline()
            if not line:
                raise DeviceError(f"nobody answers ({question}): answer yes to all questions with --yes")
            if (answer := line.strip().lower()) in ("y", "yes", "n", "no"):
                return answer.startswith("y")
            print("y or n? ", end="", file=sys.stderr, flush=True)

    def wait[T](self, step: Callable[[], T | None], what: str) -> T:
        """The first result of `step` that is not None. what: what is waited for. DeviceError: none for
        `patience_s`."""
        end = time.monotonic() + self.patience_s
        while (result := step()) is None:
            if time.monotonic() > end:
                raise DeviceError(
                    f"waited {self.patience_s:g} s for {what}; run the same command again, it goes on here"
                )
            time.sleep(POLL_S)
        return result
