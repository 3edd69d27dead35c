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
    """What N servos answered about R registers. values: `(N, R)` int64 in the registers' own units; rows
    where `valid` `(N,)` is false mean nothing. errors: `(N,)` int64, the status byte of the protocol, 0
    without an answer. t_request_ns, t_receive_ns: monotonic, when the request left and when the last byte of
    the answer arrived."""

    values: np.ndarray
    valid: np.ndarray
    errors: np.ndarray
    t_request_ns: int
    t_receive_ns: int


@dataclass
class BusStats:
    """Numbers since the bus was made. retries: requests sent again. silent: answers that did not come in
    time. corrupt: answers dropped for their checksum, length or id. reconnects: successful `open`s after the
    first."""

    requests: int = 0
    retries: int = 0
    silent: int = 0
    corrupt: int = 0
    reconnects: int = 0


class ServoBus(Protocol):
    """A half-duplex bus, for one thread at a time. Before every request it drops what the line still holds,
    so that a late reply is never taken for the answer to the next request.

    - A deadline is the time of the bytes on the wire at the baud rate, plus `slack_s` for the adapter. While
      no servo answers at all the slack may grow, because some adapters hold bytes back. A servo that stays
      silent is tried less often, and by itself.
    - A silent or garbled servo makes only its own row of `Replies` invalid.
    - A port that is gone raises `BusError` with `gone`; `connected` is then false until `open` succeeds."""

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
        """One sentence on why `servos` do not answer at this speed. It tries all other speeds, and then sets
        the present one again."""
        ...

    def read(self, registers: Sequence[str], servos: Sequence[int], retries: int = 1) -> Replies:
        """One exchange: a sync read of the addresses from the first to the last of `registers`. Servos that
        did not answer are then asked one by one, up to `retries` times each."""
        ...

    def write(self, register: str, values: Mapping[int, int]) -> None:
        """Sync write: one packet with a value for each servo id, which no servo answers."""
        ...

    def write_checked(self, register: str, servo: int, value: int, retries: int = 2) -> None:
        """Write to one servo and wait for its confirmation. BusError: it did not confirm, or refused (with
        the reason)."""
        ...

    def describe(self, error: int) -> tuple[str, ...]:
        """The faults in the status byte `error`, each as a sentence that says what to do."""
        ...

    def hardware_faults(self, servo: int) -> tuple[str, ...]:
        """Faults that the servo keeps in a register of their own, each as a sentence that says what to do;
        empty when there are none, or when the servo is silent."""
        ...


def models_of(bus: ServoBus, servos: Sequence[int]) -> dict[int, int]:
    """Model number by id of the servos that answer. A silent servo is asked twice, since one answer may get
    lost."""
    models = bus.scan(servos)
    return dict(sorted((models | bus.scan([s for s in servos if s not in models])).items()))


def explain_silence(bus: ServoBus, servos: Sequence[int], bauds: Iterable[int]) -> str:
    """`ServoBus.explain_silence` for a bus whose servos can be set to the speeds `bauds`."""
    ours, names = bus.baud, _id_list(servos)
    try:
        for baud in sorted(bauds, key=lambda b: b != ours):
            bus.set_baud(baud)
            models = models_of(bus, servos)
            if models and baud == ours:
                if silent := [s for s in servos if s not in models]:
                    return (
                        f"of {names} on {bus.port}, {_id_list(silent)} did not answer: look at the cable "
                        "of the first of them, and at its id"
                    )
                return f"{names} on {bus.port} answered now, though not before: look for a loose plug"
            if models:
                return (
                    f"{_id_list(models)} on {bus.port} answered at {baud} baud, not at {ours}: set baud = "
                    f"{baud}, or the servo's baud_rate register"
                )
    finally:
        bus.set_baud(ours)
    return (
        f"{names} on {bus.port} answered at no speed: is the servos' power on, and the adapter's cable in "
        "the first of them?"
    )


def _id_list(servos: Iterable[int]) -> str:
    ids = [str(s) for s in servos]
    return f"servo{'s' if len(ids) > 1 else ''} {', '.join(ids)}"
