"""Whom on a bus to wait for: servos that stay silent must neither hide nor slow those that answer, and be
back when they do."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

GIVEN_UP = 3  # reads in a row without a word; from then on a servo is left out as long as others answer
TRY_NS = (20_000_000, 250_000_000)  # but tried by itself this often: at first, and in the end
MOST_PATIENCE = 8.0


class Silence:
    """Of each servo, how many reads in a row it was silent. patience: times the usual slack, grows while
    nobody answers three reads running: some adapters hold bytes back for 16 ms, and then nobody else has to
    wait."""

    def __init__(self) -> None:
        self.patience = 1.0
        self._missed: dict[int, int] = {}
        self._tried: dict[int, tuple[int, int]] = {}  # of those given up: how often since, and when, ns
        self._nobody = 0

    def whom_to_ask(self, servos: Sequence[int]) -> tuple[list[int], int | None]:
        """Whom to ask together, those silent lately last; and one that was given up, to be tried by itself: a
        dead one in a chain would silence what stands behind it."""
        if len(servos) == 1:
            return list(servos), None
        missed = self._missed.get
        together = [s for s in servos if not missed(s)] + [s for s in servos if 0 < missed(s, 0) < GIVEN_UP]
        given_up = [s for s in servos if missed(s, 0) >= GIVEN_UP]
        if not given_up:
            return together, None
        trial = min(given_up, key=lambda s: self._tried.get(s, (0, 0))[1])
        times, then = self._tried.get(trial, (0, 0))
        now = time.monotonic_ns()
        if together and now - then < min(TRY_NS[0] << min(times, 8), TRY_NS[1]):
            return together, None
        self._tried[trial] = times + 1, now
        return together, trial

    def note(self, servos: Sequence[int], answered: Collection[int]) -> None:
        """The end of a read: who of `servos` answered, in the end."""
        for servo in servos:
            if servo in answered:
                self.heard(servo)
            else:
                self._missed[servo] = self._missed.get(servo, 0) + 1
        self._nobody = 0 if answered else self._nobody + 1
        grown = self.patience * (2.0 if self._nobody > GIVEN_UP else 1.0 if self._nobody else 0.995)
        self.patience = min(max(grown, 1.0), MOST_PATIENCE)

    def heard(self, servo: int) -> None:
        self._missed.pop(servo, None)
        self._tried.pop(servo, None)

    def lately(self, servos: Sequence[int]) -> bool:
        """Whether any of them was silent in its last read."""
        return any(s in self._missed for s in servos)
