"""The device side of a servo bus: servos on a pseudo terminal that behaves like a line of a given speed.

It has what both protocols share: the pty and its link, the time that bytes take, replies that are lost,
garbled or late, and the cable. `python -m ulna.drivers.twins.serial_twin` runs one in a process of its own,
described by `from_json` (see `process`)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import importlib
import itertools
import os
import random
import select
import struct
import sys
import threading
import time
import tty
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..arm import DeviceError
from . import process
from .faults import BusFaults, set_faults
from .plant import Plant

STEP_S = 0.005  # between steps of protections and profiles while no requests come
TCGETS2, TERMIOS2_BYTES, OUTPUT_SPEED_AT = 0x802C542A, 44, 40  # <asm-generic/termbits.h>
PR_SET_TIMERSLACK = 29  # <linux/prctl.h>


@dataclass(frozen=True)
class TwinServo:
    """One servo of a twin. joint: its index in the plant. Its encoder reads `zero_count + direction *
    position * 4096 / 2π` (position in rad), before any homing offset. registers: contents that differ from
    the factory's, by register name."""

    id: int
    model: int
    joint: int
    zero_count: int
    direction: int = 1
    registers: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Reply:
    """A whole status packet. servo: the id of its sender. delay_s: the servo's own pause before it (its
    return delay register)."""

    servo: int
    packet: bytes
    delay_s: float = 0.0


def overlaid(replies: Sequence[Reply]) -> list[Reply]:
    """`replies` as they reach the other end. Those of servos with one id start at once and lie over each
    other: a bit is low on the line when any of them pulls it low."""
    by_servo: dict[int, Reply] = {}
    for reply in replies:
        if (other := by_servo.get(reply.servo)) is not None:
            pairs = itertools.zip_longest(other.packet, reply.packet, fillvalue=0xFF)
            reply = Reply(reply.servo, bytes(a & b for a, b in pairs), min(other.delay_s, reply.delay_s))
        by_servo[reply.servo] = reply
    return list(by_servo.values())


class SerialTwin(ABC):
    """Servos on a pty. A subclass cuts packets (`take`), answers them (`answer`), moves the servos on
    (`step`) and does a loss of power (`lose_power`); one thread at a time calls these.

    A servo that is not in `plugged` (numbers of joints) is off the bus and has no power. Servos of one id all
    do what that id is told, and their replies lie over each other (`overlaid`).

    Requests and replies take their bytes' time at the line's speed (10 bits a byte). The subclass handles
    `faults.dead` and a wrong speed with `hears`, since a servo that does not hear must not move either, and
    the faults `voltage` and `overload`. `faults.stuck` goes to the plant here."""

    def __init__(
        self,
        plant: Plant,
        servos: Sequence[TwinServo],
        baud: int = 1_000_000,
        faults: BusFaults | None = None,
        link: Path | None = None,
        seed: int = 0,
        plugged: Collection[int] | None = None,
    ) -> None:
        self.plant, self.servos, self.baud, self.link = plant, tuple(servos), baud, link
        self.faults = faults if faults is not None else BusFaults()
        self.plugged = frozenset(s.joint for s in servos) if plugged is None else frozenset(plugged)
        self.requests = 0  # since the start, for tests
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._master: int | None = None
        self._pty = ""
        self._outbox: list[tuple[float, int, bytes]] = []
        self._n_posted = 0
        self._line_free = 0.0  # when the last byte that is under way arrives
        self._stuck: tuple[int, ...] = ()
        self._wake, self._waker = -1, -1
        self._stopping = False
        self._thread: threading.Thread | None = None

    @abstractmethod
    def take(self, buffer: bytearray) -> bytes | None:
        """Cut the first whole and valid request off `buffer`, with the rubbish before it; None when there is
        none yet."""

    @abstractmethod
    def answer(self, request: bytes, speed: int) -> list[Reply]:
        """Do `request` in every servo that `hears` at `speed`. Returns the replies in their order on the
        line."""

    @abstractmethod
    def step(self, dt_s: float) -> None:
        """Do what servos do by themselves for `dt_s`: profiles, protections, temperatures."""

    @abstractmethod
    def lose_power(self, joints: Collection[int]) -> None:
        """In the servos of `joints`: set registers in RAM and latched faults as they are after power comes
        back; torque off."""

    @property
    def port(self) -> str:
        """The path to open: the link, or the pty itself (another one after each replug). Empty while
        unplugged without a link."""
        return str(self.link) if self.link else self._pty

    def hears(self, joint: int, servo: int, servo_baud: int, speed: int) -> bool:
        """Whether the servo with the id `servo` at `joint` understands what comes at `speed` (0: the line's
        mode is not set yet)."""
        return joint in self.plugged and servo not in self.faults.dead and servo_baud == speed

    def start(self) -> None:
        self._wake, self._waker = os.pipe()
        self._stopping = False
        if not self.faults.unplugged:
            self._plug_in()
        self._thread = threading.Thread(target=self._run, name="serial twin", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice."""
        if self._thread is None:
            return
        self._stopping = True
        os.write(self._waker, b".")
        self._thread.join()
        self._thread = None
        self._unplug()
        os.close(self._wake)
        os.close(self._waker)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def power_cycle(self) -> None:
        """Power off and on again. The adapter hangs on USB and stays."""
        with self._lock:
            self.lose_power(self.plugged)

    def plug(self, joints: Collection[int]) -> None:
        """Leave the servos of `joints` alone on the bus."""
        with self._lock:
            moved = self.plugged ^ frozenset(joints)
            self.plugged = frozenset(joints)
            self.lose_power(moved)

    # the line

    def _plug_in(self) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        self._pty = os.ttyname(slave)
        os.close(slave)  # only clients have it open, so that the twin is not a holder of its port
        os.set_blocking(master, False)
        if self.link:
            self.link.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.link.with_name(f".{self.link.name}.{os.getpid()}")
            fresh.symlink_to(self._pty)
            fresh.replace(self.link)
        self._master = master

    def _unplug(self) -> None:
        if self._master is None:
            return
        if self.link:
            self.link.unlink(missing_ok=True)
        os.close(self._master)
        self._master, self._pty = None, ""
        self._outbox.clear()

    def _speed(self, master: int) -> int:
        mode = bytearray(TERMIOS2_BYTES)
        fcntl.ioctl(master, TCGETS2, mode)
        return struct.unpack_from("I", mode, OUTPUT_SPEED_AT)[0]

    def _run(self) -> None:
        # sleeps of this thread end within microseconds of their time, not within the usual 50
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        buffer = bytearray()
        last = time.monotonic()
        while not self._stopping:
            if self.faults.unplugged != (self._master is None):
                buffer.clear()
                self._unplug() if self.faults.unplugged else self._plug_in()
            self._set_stuck()
            buffer += self._listen()
            now = time.monotonic()
            with self._lock:
                self.step(now - last)
                last = now
            if buffer and self._master is not None:
                self._hear(buffer, self._master, now)
            self._send_due()

    def _set_stuck(self) -> None:
        if self.faults.stuck != self._stuck:
            for joint in {*self._stuck, *self.faults.stuck}:
                if joint < len(self.plant.names):
                    self.plant.stuck[joint] = float(joint in self.faults.stuck)
            self._stuck = self.faults.stuck

    def _listen(self) -> bytes:
        """Bytes from clients; b"" when it is time for a step, or for a reply that is due."""
        wait_s = STEP_S
        if self._outbox:
            wait_s = min(wait_s, self._outbox[0][0] - time.monotonic())
        if wait_s <= 0:
            return b""
        ready, _, _ = select.select(
            [self._wake, *([self._master] if self._master is not None else [])], [], [], wait_s
        )
        if self._master not in ready or self._master is None:
            return b""
        try:
            return os.read(self._master, 4096)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            time.sleep(0.002)  # no client has the port open: then the pty is always ready, with this error
            return b""

    def _hear(self, buffer: bytearray, master: int, now: float) -> None:
        speed = self._speed(master)
        byte_s = 10 / max(speed, 1200)
        self._line_free = max(self._line_free, now)
        while (request := self.take(buffer)) is not None:
            self._line_free += len(request) * byte_s
            if (remaining_s := self._line_free - time.monotonic()) > 0:
                time.sleep(remaining_s)
            with self._lock:
                self.requests += 1
                replies = self.answer(request, speed)
            self._schedule(replies, byte_s)

    def _schedule(self, replies: Sequence[Reply], byte_s: float) -> None:
        faults, replies_data = self.faults, bytearray()
        t_s = self._line_free
        for reply in replies:
            t_s += reply.delay_s + len(reply.packet) * byte_s
            if self._random.random() < faults.drop:
                continue
            packet = bytearray(reply.packet)
            if self._random.random() < faults.corrupt:
                packet[self._random.randrange(len(packet))] ^= self._random.randrange(1, 256)
            if self._random.random() < faults.late:
                self._post(t_s + faults.delay_s + faults.late_s, bytes(packet))
            else:
                replies_data += packet
        self._line_free = t_s
        if replies_data:  # in one piece, as an adapter hands it over
            self._post(t_s + faults.delay_s, bytes(replies_data))

    def _post(self, t_s: float, packet: bytes) -> None:
        self._n_posted += 1
        heapq.heappush(self._outbox, (t_s, self._n_posted, packet))

    def _send_due(self) -> None:
        while self._outbox and (remaining_s := self._outbox[0][0] - time.monotonic()) < 0.001:
            if remaining_s > 0:
                time.sleep(remaining_s)
            _, _, packet = heapq.heappop(self._outbox)
            if self._master is not None:
                with contextlib.suppress(BlockingIOError, OSError):  # a client that does not read loses it
                    os.write(self._master, packet)


TWINS = {"feetech": "FeetechTwin", "dynamixel": "DynamixelTwin"}


def from_json(description: Mapping[str, Any]) -> SerialTwin:
    """A twin, not started, of `{"protocol", "plant", "servos", "baud", "link", "seed", "faults",
    "plugged"}`.
    DeviceError: which is wrong."""
    try:
        protocol = description["protocol"]
        cls = getattr(importlib.import_module(f"{__package__}.{protocol}"), TWINS[protocol])
        faults = BusFaults()
        set_faults(faults, description.get("faults") or {})
        link = description.get("link")
        return cls(
            Plant(Path(description["plant"])),
            [TwinServo(**servo) for servo in description["servos"]],
            baud=description.get("baud", 1_000_000),
            faults=faults,
            link=Path(link) if link else None,
            seed=description.get("seed", 0),
            plugged=description.get("plugged"),
        )
    except KeyError as error:
        raise DeviceError(f"a twin of a servo bus is described without a known {error}") from None
    except TypeError as error:
        raise DeviceError(f"a twin of a servo bus is described wrongly: {error}") from None


if __name__ == "__main__":
    sys.exit(process.run(from_json, lambda twin: {"port": twin.port}))
