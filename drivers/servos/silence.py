"""Silent servos on a bus: they must neither hide nor slow down those that answer, and count again as soon as
they answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

GIVEN_UP = 3  # reads in a row without an answer; from then on a servo is left out while others answer
TRY_NS = (20_000_000, 250_000_000)  # and is tried by itself this often: at first, and in the end
MOST_PATIENCE = 8.0


class Silence:
    """How many reads in a row each servo has been silent. patience: a factor for the usual slack. It grows
    while no servo at all answers, since some adapters hold bytes back for 16 ms, and a longer wait then
    delays no servo that answers."""

    def __init__(self) -> None:
        self.patience = 1.0
        self._misses: dict[int, int] = {}
        # servo that was given up -> number of trials, time of the last, ns
        self._trials: dict[int, tuple[int, int]] = {}
        self._silent_reads = 0

    def next_query(self, servos: Sequence[int]) -> tuple[list[int], int | None]:
        """Servos to query together, with those that were recently silent last, and at most one that was given
        up, to be tried by itself (in a chain of replies a dead servo would silence all behind it)."""
        if len(servos) == 1:
            return list(servos), None
        misses = self._misses.get
        together = [s for s in servos if not misses(s)] + [s for s in servos if 0 < misses(s, 0) < GIVEN_UP]
        given_up = [s for s in servos if misses(s, 0) >= GIVEN_UP]
        if not given_up:
            return together, None
        trial = min(given_up, key=lambda s: self._trials.get(s, (0, 0))[1])
        trials, last_ns = self._trials.get(trial, (0, 0))
        now = time.monotonic_ns()
        if together and now - last_ns < min(TRY_NS[0] << min(trials, 8), TRY_NS[1]):
            return together, None
        self._trials[trial] = trials + 1, now
        return together, trial

    def note(self, servos: Sequence[int], answers: Collection[int]) -> None:
        """After a read of `servos`: `answers` has the ids of those that answered."""
        for servo in servos:
            if servo in answers:
                self.forget(servo)
            else:
                self._misses[servo] = self._misses.get(servo, 0) + 1
        self._silent_reads = 0 if answers else self._silent_reads + 1
        patience = self.patience * (
            2.0 if self._silent_reads > GIVEN_UP else 1.0 if self._silent_reads else 0.995
        )
        self.patience = min(max(patience, 1.0), MOST_PATIENCE)

    def forget(self, servo: int) -> None:
        """The servo answered: it counts as never silent."""
        self._misses.pop(servo, None)
        self._trials.pop(servo, None)

    def any_silent(self, servos: Sequence[int]) -> bool:
        """Whether any of them was silent in its last read."""
        return any(s in self._misses for s in servos)
