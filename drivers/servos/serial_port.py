"""A serial line to a servo bus: open in one process only, with exchanges that end at a deadline, and an error
when it is unplugged.

pyserial sets the line up (any speed, modem lines, lock). Bytes are read and written through its file
descriptor: a half-duplex bus needs only a read that wakes for data and ends at an absolute time."""

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
class Reception:
    """data: all bytes since the request. t_request_ns, t_receive_ns: monotonic, when the request left and
    when the last byte arrived (the former again when nothing came)."""

    data: bytearray
    t_request_ns: int
    t_receive_ns: int


class SerialPort:
    """One line, for one thread at a time. slack_s: what an adapter may take beyond the bytes' own time on the
    wire.

    Every failure of the line itself is a `BusError` with `gone` and closes the port; `open` may be tried
    again."""

    def __init__(self, path: str, baud: int, slack_s: float) -> None:
        self.path, self.baud, self.slack_s = path, baud, slack_s
        self._serial: serial.Serial | None = None
        self._poll = select.poll()
        self._line_free_ns = 0

    @property
    def connected(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """BusError, always with `gone`: the port does not exist, is busy (names the process), is not
        permitted (names the group to join), or is no serial port."""
        if self._serial is not None:
            return
        if not os.path.exists(self.path):
            raise BusError(f"there is no port {self.path}: {_ports_sentence()}", gone=True)
        try:
            # closed explicitly in `close` and in every failure below
            line = serial.Serial(self.path, self.baud, timeout=0, exclusive=True)
        except (OSError, termios.error, ValueError) as error:
            raise self._refusal(error) from None
        # another program that does not lock would share the port with us and eat every second reply
        if strangers := [f"{name} (pid {pid})" for pid, name in self._holders() if not _is_ours(pid)]:
            line.close()
            raise BusError(
                f"{self.path} is busy: {', '.join(strangers)} has it open; end that first", gone=True
            )
        # FTDI adapters hold bytes back for 16 ms otherwise; others have no such mode
        with contextlib.suppress(OSError, ValueError, termios.error):
            line.set_low_latency_mode(True)
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
        # a child process may have inherited the descriptor, and the lock with it
        with contextlib.suppress(OSError):
            fcntl.flock(line.fileno(), fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            line.close()

    def set_baud(self, baud: int) -> None:
        """Change the speed, of an open port at once."""
        self.baud = baud
        if self._serial is not None:
            with self._gone_on_error():
                self._serial.baudrate = baud

    def send(self, request: bytes) -> int:
        """Drop what the line still holds, and send. Returns the time of sending, monotonic ns."""
        fd = self._fd()
        with self._gone_on_error():
            termios.tcflush(fd, termios.TCIFLUSH)
            now = time.monotonic_ns()
            remaining = request
            while remaining := remaining[self._write(fd, remaining) :]:
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
        self,
        request: bytes,
        reply_bytes: int,
        is_complete: Callable[[bytearray], bool],
        pauses_s: float = 0.0,
    ) -> Reception:
        """Send, and listen until `is_complete(data)` or the deadline. `is_complete` is called when there are
        at least `reply_bytes` bytes, and once more at the end.

        The deadline is the time that request and reply take on the wire, behind what is still going out, plus
        the servos' own `pauses_s`, plus `slack_s`. Passing it is no error: the caller looks at what is
        missing. The processor sleeps meanwhile."""
        t_request_ns = t_receive_ns = self.send(request)
        deadline = self._line_free_ns + self._wire_ns(reply_bytes) + round((pauses_s + self.slack_s) * 1e9)
        fd, data = self._fd(), bytearray()
        with self._gone_on_error():
            while True:
                # rounded up to the millisecond by poll, so that one last look is always taken after the
                # deadline
                events = self._poll.poll(max(0.0, (deadline - time.monotonic_ns()) * 1e-6))
                if not events:
                    break
                flags = events[0][1]
                chunk = os.read(fd, 4096) if flags & select.POLLIN else b""
                if not chunk and flags & (GONE | select.POLLIN):
                    raise OSError("hung up")
                t_receive_ns = time.monotonic_ns()
                data += chunk
                if len(data) >= reply_bytes and is_complete(data):
                    return Reception(data, t_request_ns, t_receive_ns)
                if t_receive_ns > deadline:  # rubbish without end must not keep us
                    break
        is_complete(data)
        return Reception(data, t_request_ns, t_receive_ns)

    def _wire_ns(self, n: int) -> int:
        return n * BITS_PER_BYTE * 1_000_000_000 // self.baud

    def _fd(self) -> int:
        if self._serial is None:
            raise BusError(f"{self.path} is not open", gone=True)
        return self._serial.fileno()

    @contextlib.contextmanager
    def _gone_on_error(self):
        try:
            yield
        except (OSError, termios.error, serial.SerialException) as error:
            self.close()
            raise BusError(
                f"{self.path} went away ({error}): plug the adapter in again, and look at its cable",
                gone=True,
            ) from None


class ReplySizes:
    """Sizes by which late replies are recognised in a protocol whose packets carry no number. After a reply
    did not come, the next read asks for a few bytes more; the late reply then has the wrong length."""

    SPARE = 16

    def __init__(self) -> None:
        self._loss_ns: dict[int, int] = {}

    def choose(self, size: int) -> int:
        """`size`, or up to fifteen bytes more: the first size of which no reply was lost lately, else the one
        that was lost longest ago."""
        if not self._loss_ns:
            return size
        now = time.monotonic_ns()
        self._loss_ns = {n: t for n, t in self._loss_ns.items() if now - t < LATE_NS}
        return min(range(size, size + self.SPARE), key=lambda n: self._loss_ns.get(n, 0))

    def note_lost(self, size: int) -> None:
        """A reply of `size` bytes of data did not come in time."""
        self._loss_ns[size] = time.monotonic_ns()


def _is_ours(pid: int) -> bool:
    """Whether `pid` is this process, or a fork of it that inherited the descriptor and does not use it."""
    if pid == os.getpid():
        return True
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        same = Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except OSError:  # ended meanwhile
        return True
    return parent == os.getpid() and same


def _ports_sentence() -> str:
    ports = sorted(glob.glob("/dev/serial/by-id/*") or glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*"))
    if ports:
        return f"there is {', '.join(ports)}"
    return "no serial adapter is plugged in"
