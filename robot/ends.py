"""The moments at which a run of a real robot may be ended from outside: signals that ask for an orderly end,
and what they mean while the arms are being put down."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ASKED = (signal.SIGTERM, signal.SIGHUP)  # a polite kill; a terminal that was closed
ALL = (signal.SIGINT, *ASKED)


class Ended(KeyboardInterrupt):
    """A signal asks the program to end, as Ctrl-C does. number: which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def asked_to_end() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended` in a `with` block, so that what is open is closed in order. Outside of
    the main thread, where Python hears no signals, nothing changes."""
    with _handled(ASKED, _raise):
        yield


@contextlib.contextmanager
def hurried_by_signals(hurry: Callable[[], None]) -> Iterator[None]:
    """In a `with` block Ctrl-C, SIGTERM and SIGHUP end nothing: each calls `hurry`, on a thread of its
    own."""
    with _handled(ALL, lambda *_: threading.Thread(target=hurry, daemon=True).start()):
        yield


def _raise(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
