"""Episodes under somebody's eyes: what keys and a teleoperator's buttons do during one, and between two."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..datasets.recorder import Recorder
from ..drivers.teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, QUIT, SUCCESS
from .agent import Agent
from .keys import Keys
from .own_rate import OwnRate, Source

POLL_S = 0.05


class Operator:
    """Whoever watches: keys on the terminal, and the buttons of the agent's gamepad or browser for the same words."""

    def __init__(self, keys: Keys | None, agent: Agent) -> None:
        self.keys = keys
        self.at_terminal = keys is not None and keys.there
        self._buttons: Callable[[], tuple[str, ...]] = getattr(agent, "events", tuple)
        self._idle: Callable[[], tuple[str, ...]] = getattr(agent, "idle", tuple)

    def pressed(self) -> list[str]:
        """During an episode: the oldest key, and all buttons, that were pressed since the last call."""
        word = self.keys.pressed() if self.keys is not None else None
        return [*self._buttons(), *([] if word is None else [word])]

    def between(self) -> list[str]:
        """Between episodes: everything that was pressed since the last call."""
        words = list(self._idle())
        while self.keys is not None and (word := self.keys.pressed()) is not None:
            words.append(word)
        return words


class Take:
    """The recorder's subscription to one episode: what the operator and `only_successes` make of it. streams: those of `own_rate`."""

    def __init__(
        self,
        recorder: Recorder,
        streams: Mapping[str, Source],
        operator: Operator,
        only_successes: bool = False,
    ) -> None:
        self.recorder, self.operator, self.only_successes = recorder, operator, only_successes
        self.asked: str | None = None
        self.drop_last = self.kept = False
        self.own_rate = OwnRate(recorder, streams)
        self.interrupt = recorder.interrupt

    def start(self, meta: Mapping[str, Any]) -> None:
        self.recorder.start(meta)
        self.own_rate.start()

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        self.recorder.tick(values, times_ns, flags)
        self.own_rate.tick(values, times_ns, flags)

    def stop(self) -> bool:
        for word in self.operator.pressed():
            if word == DROP_LAST:
                self.drop_last = True
            else:
                self.asked = word
        return self.asked is not None

    def success(self, measured: bool | None) -> bool | None:
        return {SUCCESS: True, FAILURE: False}.get(self.asked or "", measured)

    def end(self, meta: Mapping[str, Any]) -> None:
        outcome = self.success(meta.get("success"))
        if self.asked in (AGAIN, QUIT) or (self.only_successes and not outcome):
            self.recorder.discard()
        else:
            self.kept = True
            self.recorder.end({**meta, "success": outcome})


def put_back(operator: Operator, seconds: float | None, undo: Callable[[str], None]) -> bool:
    """Time for people to set the scene up again: until "finish", where there is a terminal, or else for `seconds`. None: they
    need none. Whether to go on.

    What was pressed since the last episode is for that one: DROP_LAST and AGAIN are passed to `undo`, and nothing is left to
    end, or to mark, the next one. A second "finish" before people were asked does not begin it either.
    """
    until = time.monotonic() + (seconds or 0.0)
    asks = operator.at_terminal and seconds is not None
    begin = seconds is None
    words = operator.between()
    if asks:
        print(
            "put everything back, then press enter; x drops the last episode, r has it done again, q quits",
            file=sys.stderr,
        )
    while True:
        for word in words:
            if word in (DROP_LAST, AGAIN):
                undo(word)
        if QUIT in words:
            return False
        if begin or (not asks and time.monotonic() >= until):
            return True
        time.sleep(POLL_S)
        words = operator.between()
        begin = FINISH in words
