"""Order between what one process writes into shared memory and what another one reads there."""

from __future__ import annotations

import threading


def fence() -> None:
    """No load or store of this thread moves past this. x86 keeps loads in order and stores in order by
    itself; ARM does not. Letting a lock go and taking it again is a release followed by an acquire, which
    neither kind of access may cross."""
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()
