"""The writing half of a recorder: takes rows from the ring, encodes them on two threads, and puts them into
the store.

Started by `Recorder` as `python -m ulna.datasets.recording.process`; it outlives a killed control process for
as long as it takes to empty the ring. Its progress is noted in the ring; a failure is printed on stdout."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import struct
import sys
from pathlib import Path

from ..layout import IN_PROGRESS
from .drain import Drain
from .finishing import KILLED
from .ring import Ring, remove_ring

POLL_S = 0.005


def main(store: Path, ring_path: Path, power: bool) -> int:
    """Write until CLOSE comes, or until the control process is gone and the ring is empty. The exit code."""
    _give_way()
    parent = os.getppid()
    ring = Ring.open(ring_path)
    drain = Drain(store, ring, power)
    try:
        while not drain.closed:
            busy = drain.run()
            if not busy and (_at_end(POLL_S) or os.getppid() != parent):
                drain.run_dry(KILLED)
                break
        drain.close()
        remove_ring(store / IN_PROGRESS)
        return 0
    except OSError as error:
        ring.failed = True
        with contextlib.suppress(OSError):  # nobody may be listening any more
            os.write(1, (error.strerror or str(error)).encode())
        drain.close()
        return 1
    finally:
        ring.close()


def _give_way() -> None:
    """Let the control loop go first: take a low priority, and such short time slices that a thread which
    wakes need not wait for one to end (`man 2 sched_setattr`; kernels before 6.12 ignore the length)."""
    niceness, turn_ns = 15, 100_000
    with contextlib.suppress(OSError):
        os.nice(niceness)
        # where the kernel shares processors among sessions, a nice value counts only inside its session,
        # which is this process's
        Path("/proc/self/autogroup").write_text(str(niceness))
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        attributes = struct.pack("<IIQiIQQQ", 48, 0, 0, niceness, 0, turn_ns, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def _at_end(timeout_s: float) -> bool:
    """Wait up to `timeout_s`; whether the control process closed its end of the pipe, or died."""
    ready, _, _ = select.select([0], [], [], timeout_s)
    return bool(ready) and os.read(0, 1) == b""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "power"))
