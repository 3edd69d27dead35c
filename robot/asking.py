"""A policy that is asked from a thread of its own, so that no tick waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..policies.request import ServedPolicy


@dataclass(frozen=True)
class Answered:
    """A reply to the question of the tick `asked`, which took `seconds`."""

    asked: int
    reply: dict[str, Any]
    seconds: float


class Asker:
    """One question at a time; the policy is used by this thread alone from the first question on."""

    def __init__(self, policy: ServedPolicy) -> None:
        self._policy = policy
        self._questions: queue.SimpleQueue[tuple[int, int, Mapping[str, Any]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, Answered | Exception]] = queue.SimpleQueue()
        self._episode = 0
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)

    @property
    def busy(self) -> bool:
        """Whether a question is open, be it one that was forgotten."""
        return self._busy

    def ask(self, tick: int, request: Mapping[str, Any]) -> None:
        """Not while `busy`."""
        if not self._thread.is_alive():
            self._thread.start()
        self._busy = True
        self._questions.put((self._episode, tick, request))

    def answer(self) -> Answered | None:
        """The answer, once, as soon as it is there. What the policy raised is raised here, unless the
        question was forgotten."""
        while True:
            try:
                episode, answer = self._answers.get_nowait()
            except queue.Empty:
                return None
            self._busy = False
            if episode != self._episode:
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer

    def forget(self) -> None:
        """Nobody waits for the answer to the question that is open any more."""
        self._episode += 1

    def close(self) -> None:
        """End the thread once the policy has answered; does not wait for it."""
        self._questions.put(None)

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            episode, tick, request = question
            began = time.monotonic()
            try:
                reply = self._policy.infer(request)
                self._answers.put((episode, Answered(tick, reply, time.monotonic() - began)))
            except Exception as error:  # noqa: BLE001  (raised where the answer is wanted)
                self._answers.put((episode, error))
