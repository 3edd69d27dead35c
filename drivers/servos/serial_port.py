"""A serial line to a servo bus: opened for one process alone, asked with a deadline, and honest about being
unplugged.

pyserial sets the line up (any speed, modem lines, lock); the bytes themselves go straight through its file
descriptor, because a read that wakes when there is something and gives up at an absolute time is all that a
half-duplex bus needs."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import select
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import serial

from ..sysfs import access_problem, holders
from .bus import BusError

BITS_PER_BYTE = 10  # start, eight, stop
LATE_NS = 500_000_000  # a reply that has not come after this long will not come
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class Heard:
    """data: everything that came since the request left. Times on the monotonic clock; t_receive_ns: of the
    last byte's arrival here (of the request, when nothing came)."""

    data: bytearray
    t_request_ns: int
    t_receive_ns: int


class SerialPort:
    """One line, for one thread at a time. slack_s: how long beyond the bytes' own time on the wire an adapter
    may take.

    Every failure of the line itself is `BusError` with `gone`, after which the port is closed; `open` may
    then be tried again."""

    def __init__(self, path: str, baud: int, slack_s: float) -> None:
        self.path, self.baud, self.slack_s = path, baud, slack_s
        self._serial: serial.Serial | None = None
        self._poll = select.poll()
        self._line_free_ns = 0

    @property
    def connected(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """BusError (all with `gone`): no such port, busy and by which process, not permitted and which group,
        no serial port."""
        if self._serial is not None:
            return
        if not os.path.exists(self.path):
            raise BusError(f"there is no port {self.path}: {_ports_here()}", gone=True)
        try:
            # closed explicitly in `close` and in every failure below
            line = serial.Serial(self.path, self.baud, timeout=0, exclusive=True)
        except (OSError, termios.error, ValueError) as error:
            raise self._refusal(error) from None
        # another program that does not lock would share the port with us and eat every second reply
        if others := [f"{name} (pid {pid})" for pid, name in self._holders() if not _ours(pid)]:
            line.close()
            raise BusError(f"{self.path} is busy: {', '.join(others)} has it open; end that first", gone=True)
        with contextlib.suppress(OSError, ValueError, termios.error):
            line.set_low_latency_mode(
                True
            )  # FTDI adapters hold bytes back for 16 ms otherwise; others have no such mode
        self._serial = line
        self._poll = select.poll()
        self._poll.register(line.fileno(), select.POLLIN)

    def _refusal(self, error: Exception) -> BusError:
        code = getattr(error, "errno", None) or (error.args[0] if error.args else None)
        if isinstance(error, PermissionError) or code == 13:
            return BusError(access_problem(self.path) or f"you may not open {self.path}: {error}", gone=True)
        if "lock" in str(error) or code == 16:
            who = [
                "this process itself" if pid == os.getpid() else f"{name} (pid {pid})"
                for pid, name in self._holders()
            ]
            why = f"is busy: {', '.join(who) or 'a process of another user'} has it open; end that first"
        elif isinstance(error, ValueError):
            why = f"does not go at {self.baud} baud: {error}"
        else:
            why = f"is no serial port, or does not answer as one: {error}"
        return BusError(f"{self.path} {why}", gone=True)

    def _holders(self) -> list[tuple[int, str]]:
        return holders(os.path.realpath(self.path))

    def close(self) -> None:
        """Safe to call twice."""
        line, self._serial = self._serial, None
        if line is None:
            return
        with contextlib.suppress(
            OSError
        ):  # a child process may have inherited the descriptor, and the lock with it
            fcntl.flock(line.fileno(), fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            line.close()

    def set_baud(self, baud: int) -> None:
        """Change the speed, of an open port at once."""
        self.baud = baud
        if self._serial is not None:
            with self._lost_when_gone():
                self._serial.baudrate = baud

    def send(self, request: bytes) -> int:
        """Throw away what the line still holds, and send. Returns when it left, monotonic ns."""
        fd = self._fd()
        with self._lost_when_gone():
            termios.tcflush(fd, termios.TCIFLUSH)
            now = time.monotonic_ns()
            left = request
            while left := left[self._write(fd, left) :]:
                pass
        self._line_free_ns = max(now, self._line_free_ns) + self._wire_ns(len(request))
        return now

    def _write(self, fd: int, data: bytes) -> int:
        try:
            return os.write(fd, data)
        except BlockingIOError:  # kilobytes are waiting to go out
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            if not ready.poll(1000):
                raise OSError(f"{self.path} takes no bytes") from None
            return 0

    def exchange(
        self, request: bytes, reply_bytes: int, whole: Callable[[bytearray], bool], pauses_s: float = 0.0
    ) -> Heard:
        """Send, and listen until `whole` says that all has come (asked from `reply_bytes` bytes on, and a
        last time at the end) or it is too late.

        Too late: the time that request and reply take on the wire, behind what is still going out, plus the
        servos' own `pauses_s`, plus `slack_s`. It is not an error; the caller sees what is missing. The
        processor sleeps meanwhile."""
        t_request = t_receive = self.send(request)
        deadline = self._line_free_ns + self._wire_ns(reply_bytes) + round((pauses_s + self.slack_s) * 1e9)
        fd, data = self._fd(), bytearray()
        with self._lost_when_gone():
            while True:
                # rounded up to the millisecond by poll, so that one last look is always taken after the
                # deadline
                events = self._poll.poll(max(0.0, (deadline - time.monotonic_ns()) * 1e-6))
                if not events:
                    break
                happened = events[0][1]
                more = os.read(fd, 4096) if happened & select.POLLIN else b""
                if not more and happened & (GONE | select.POLLIN):
                    raise OSError("hung up")
                t_receive = time.monotonic_ns()
                data += more
                if len(data) >= reply_bytes and whole(data):
                    return Heard(data, t_request, t_receive)
                if t_receive > deadline:  # rubbish without end must not keep us
                    break
        whole(data)
        return Heard(data, t_request, t_receive)

    def _wire_ns(self, n: int) -> int:
        return n * BITS_PER_BYTE * 1_000_000_000 // self.baud

    def _fd(self) -> int:
        if self._serial is None:
            raise BusError(f"{self.path} is not open", gone=True)
        return self._serial.fileno()

    @contextlib.contextmanager
    def _lost_when_gone(self):
        try:
            yield
        except (OSError, termios.error, serial.SerialException) as error:
            self.close()
            raise BusError(
                f"{self.path} went away ({error}): plug the adapter in again, and look at its cable",
                gone=True,
            ) from None


class ReplySizes:
    """Tells an answer from one that comes too late, in a protocol whose packets carry no number: a reply that
    did not come is not asked for again in the same size. A read asks for a few bytes more instead, and a late
    reply is then of the wrong length."""

    SPARE = 16

    def __init__(self) -> None:
        self._lost: dict[int, int] = {}

    def choose(self, size: int) -> int:
        """`size`, or up to fifteen bytes more: the first that no missing reply had lately, else the one lost
        longest ago."""
        if not self._lost:
            return size
        now = time.monotonic_ns()
        self._lost = {n: t for n, t in self._lost.items() if now - t < LATE_NS}
        return min(range(size, size + self.SPARE), key=lambda n: self._lost.get(n, 0))

    def lost(self, size: int) -> None:
        """A reply of `size` bytes of data did not come in time."""
        self._lost[size] = time.monotonic_ns()


def _ours(pid: int) -> bool:
    """This process, or a fork of it that inherited the descriptor and does not use it."""
    if pid == os.getpid():
        return True
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        same = Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except OSError:  # ended meanwhile
        return True
    return parent == os.getpid() and same


def _ports_here() -> str:
    ports = sorted(glob.glob("/dev/serial/by-id/*") or glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*"))
    if ports:
        return f"there is {', '.join(ports)}"
    return "no serial adapter is plugged in"
