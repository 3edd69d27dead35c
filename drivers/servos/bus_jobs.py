"""Jobs that other threads give to the one thread that owns a bus. The owner does them between two of its
cycles; the thread that gave the job waits for the result."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from ..arm import DeviceError
from .bus import BusError

# The longest that a job may take: dozens of exchanges on a bad line, or behind a port that is being reopened.
ANSWER_S = 20.0


class Jobs:
    """A queue of jobs. `do` and `refuse` are for the owner; other threads call `ask` and `end`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()

    def ask(self, job: Callable[[], Any], owner: threading.Thread) -> Any:
        """Have `owner` do `job`. Returns its result or raises its exception. DeviceError: the owner did not
        get to it in time."""
        answer = Future[Any]()
        self._queue.put((job, answer))
        end = time.monotonic() + ANSWER_S
        while not wait([answer], 0.5).done and owner.is_alive() and time.monotonic() < end:
            pass
        if answer.cancel():  # not even begun
            raise DeviceError(f"the thread {owner.name} did not get to it within {ANSWER_S:g} s")
        return answer.result(ANSWER_S)

    def end(self) -> None:
        """Tell the owner that no more jobs come."""
        self._queue.put(None)

    def do(self, until_s: float, refusal: str = "") -> bool:
        """Do jobs until `until_s` (monotonic), or fail each with the DeviceError `refusal`. Returns whether
        more may come. A job's `BusError` with `gone` is raised here, too."""
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
            except Exception as error:  # goes to the thread that gave the job
                job[1].set_exception(error)
                if isinstance(error, BusError) and error.gone:
                    raise

    def refuse(self, why: str) -> None:
        """Fail all jobs that are still queued with DeviceError."""
        while not self._queue.empty():
            job = self._queue.get()
            if job is not None and job[1].set_running_or_notify_cancel():
                job[1].set_exception(DeviceError(why))
