"""The contract of a servo bus: registers by name, several servos in one exchange, and an answer for each of
them.

`drivers.servos.feetech` (protocol 0) and `drivers.servos.dynamixel` (protocol 2.0) keep it;
`tests/contracts/servo_bus.py` holds them to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..arm import DeviceError

COUNTS_PER_TURN = 4096  # of the encoder, in every servo that we drive


class BusError(DeviceError):
    """No valid answer, or no port. `gone` is true when the port itself went away (unplugged, closed, not
    permitted)."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


@dataclass(frozen=True)
class Register:
    """address and size in bytes. sign_bit: of a sign-magnitude number (Feetech); signed: two's complement
    (Dynamixel). eeprom: kept without power, and locked while torque is on or the lock is set."""

    address: int
    size: int
    sign_bit: int | None = None
    signed: bool = False
    eeprom: bool = False


@dataclass(frozen=True, slots=True)
class Replies:
    """What N servos said about R registers. values: `(N, R)` int64 in the registers' own units; where `valid`
    `(N,)` is false they mean nothing. errors: `(N,)` the status byte of the protocol, 0 without an answer.
    Times are on the monotonic clock: when the request left, and when the last byte of the answer was here."""

    values: np.ndarray
    valid: np.ndarray
    errors: np.ndarray
    t_request_ns: int
    t_receive_ns: int


@dataclass
class BusStats:
    """Counted since the bus was made. retries: requests sent again. silent: servos that did not answer in
    time. corrupt: answers thrown away for their checksum, length or id. reconnects: successful `open`s after
    the first."""

    requests: int = 0
    retries: int = 0
    silent: int = 0
    corrupt: int = 0
    reconnects: int = 0


class ServoBus(Protocol):
    """Half-duplex: every request goes out after what the line still held was thrown away, so that a reply
    that came too late is never taken for the answer to the next question. For one thread at a time.

    - Deadlines follow from the bytes on the wire and the baud rate, plus `slack_s` for the adapter. While
    nobody answers at all the
      slack may grow, for adapters that hold bytes back; a servo that stays silent is tried less often, alone.
    - A servo that is silent or garbled is invalid in its row alone; the others' values stand.
    - A port that is gone raises `BusError` with `gone`; `connected` is false from then on, until `open`
    succeeds again."""

    port: str
    registers: Mapping[str, Register]
    stats: BusStats

    def open(self) -> None:
        """BusError: the port does not exist, is busy (by which process) or not permitted (which group to
        join)."""
        ...

    def close(self) -> None:
        """Safe to call twice, and on a port that is gone. Writes nothing."""
        ...

    @property
    def connected(self) -> bool: ...

    @property
    def baud(self) -> int: ...

    def set_baud(self, baud: int) -> None:
        """Change the speed, of an open port at once."""
        ...

    def ping(self, servo: int) -> int | None:
        """The servo's model number, None when it is silent."""
        ...

    def scan(self, servos: Iterable[int] = range(253)) -> dict[int, int]:
        """Model number by id of those that answer."""
        ...

    def explain_silence(self, servos: Sequence[int]) -> str:
        """One sentence on why `servos` do not answer at this speed, after asking at all the others; the speed
        is put back."""
        ...

    def read(self, registers: Sequence[str], servos: Sequence[int], retries: int = 1) -> Replies:
        """One exchange (sync read of the span of `registers`); those that did not answer are asked again one
        by one, up to `retries` times."""
        ...

    def write(self, register: str, values: Mapping[int, int]) -> None:
        """Sync write: one packet for all, which nobody answers."""
        ...

    def write_checked(self, register: str, servo: int, value: int, retries: int = 2) -> None:
        """Write to one servo and wait for its word that it took it. BusError when it does not, or says why
        not."""
        ...

    def describe(self, error: int) -> tuple[str, ...]:
        """The faults in a status byte, in words, with what to do."""
        ...

    def hardware_faults(self, servo: int) -> tuple[str, ...]:
        """What its status byte leaves to be asked for, in words, with what to do; empty when that is nothing,
        or it is silent."""
        ...


def who_answers(bus: ServoBus, servos: Sequence[int]) -> dict[int, int]:
    """Model number by id. The silent are asked a second time: one lost answer is no silence."""
    found = bus.scan(servos)
    return dict(sorted((found | bus.scan([s for s in servos if s not in found])).items()))


def explain_silence(bus: ServoBus, servos: Sequence[int], bauds: Iterable[int]) -> str:
    """For a bus whose servos know the speeds `bauds`; see `ServoBus.explain_silence`."""
    ours, names = bus.baud, _listed(servos)
    try:
        for baud in sorted(bauds, key=lambda b: b != ours):
            bus.set_baud(baud)
            there = who_answers(bus, servos)
            if there and baud == ours:
                if silent := [s for s in servos if s not in there]:
                    return f"of {names} on {bus.port}, {_listed(silent)} did not answer: look at the cable of the first of them, and at its id"
                return f"{names} on {bus.port} answered now, though not before: look for a loose plug"
            if there:
                return (
                    f"{_listed(there)} on {bus.port} answered at {baud} baud, not at {ours}: set baud = {baud}, or the "
                    "servo's baud_rate register"
                )
    finally:
        bus.set_baud(ours)
    return f"{names} on {bus.port} answered at no speed: is the servos' power on, and the adapter's cable in the first of them?"


def _listed(servos: Iterable[int]) -> str:
    ids = [str(s) for s in servos]
    return f"servo{'s' if len(ids) > 1 else ''} {', '.join(ids)}"
