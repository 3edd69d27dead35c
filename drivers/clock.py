"""The clock of a robot. A real robot runs on `MonotonicClock`; a simulated one brings a clock whose
`sleep_until` steps the physics, so that one episode loop paces both."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Integer nanoseconds that never go back. Comparable only within one clock."""

    def now_ns(self) -> int: ...

    def sleep_until(self, t_ns: int) -> None:
        """Return at or after `t_ns`; at once when that has passed."""
        ...


class MonotonicClock:
    """`time.monotonic_ns`. It sleeps until an absolute deadline; relative sleeps drift (265 ms in 6 s at
    500 Hz)."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep_until(self, t_ns: int) -> None:
        while (remaining_ns := t_ns - time.monotonic_ns()) > 0:
            time.sleep(remaining_ns * 1e-9)
