"""What other threads ask of the one thread that owns a bus: it does it between two of its cycles, and whoever
asked waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from ..arm import DeviceError
from .bus import BusError

# for what the thread is asked to do: dozens of exchanges on a bad line, or behind a port that is being
# reopened
ANSWER_S = 20.0


class Jobs:
    """In the order in which they were asked. `do` and `refuse` are the owner's; the others may call the
    rest."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()

    def ask(self, job: Callable[[], Any], owner: threading.Thread) -> Any:
        """Have `owner` do `job`; its result, or what it raised. DeviceError: it did not get to it."""
        answer = Future[Any]()
        self._queue.put((job, answer))
        end = time.monotonic() + ANSWER_S
        while not wait([answer], 0.5).done and owner.is_alive() and time.monotonic() < end:
            pass
        if answer.cancel():  # not even begun
            raise DeviceError(f"the thread {owner.name} did not get to it within {ANSWER_S:g} s")
        return answer.result(ANSWER_S)

    def end(self) -> None:
        """Tell the owner that this was the last."""
        self._queue.put(None)

    def do(self, until_s: float, refusal: str = "") -> bool:
        """Wait until `until_s`, and do meanwhile what is asked, or answer with `refusal`; whether more may
        come. A port that went away is also raised here."""
        while True:
            try:
                job = self._queue.get(timeout=max(until_s - time.monotonic(), 0))
            except queue.Empty:
                return True
            if job is None:
                return False
            if not job[1].set_running_or_notify_cancel():
                continue
            try:
                if refusal:
                    raise DeviceError(refusal)
                job[1].set_result(job[0]())
            except Exception as error:  # goes to who asked
                job[1].set_exception(error)
                if isinstance(error, BusError) and error.gone:
                    raise

    def refuse(self, why: str) -> None:
        """Answer all that is left with DeviceError."""
        while not self._queue.empty():
            job = self._queue.get()
            if job is not None and job[1].set_running_or_notify_cancel():
                job[1].set_exception(DeviceError(why))
