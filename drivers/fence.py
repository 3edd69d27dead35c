"""Keeps what one process writes into shared memory in order for the process that reads it."""

from __future__ import annotations

import threading


def fence() -> None:
    """No load or store of this thread moves past this call. x86 keeps loads in order and stores in order by
    itself; ARM does not. Releasing a lock and acquiring it again is a barrier that neither kind of access may
    cross."""
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()
