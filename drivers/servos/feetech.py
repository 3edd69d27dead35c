"""A bus of Feetech STS/SMS servos (protocol 0), such as the STS3215 of the SO-101."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .bus import BusError, BusStats, Register, Replies, explain_silence
from .feetech_protocol import (
    BAUDS,
    BROADCAST,
    PING,
    READ,
    REGISTERS,
    STATUS,
    STATUS_BYTES,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    decode,
    encode,
    packet,
    packets,
)
from .serial_port import LATE_NS, Reception, ReplySizes, SerialPort
from .silence import Silence

MOST_ASKED = 31  # ids that are asked one by one in a scan; more take a roll call
PAUSE_S = 0.0005  # before a reply, at most: return_delay_time as servos leave the factory


class FeetechBus:
    """`ServoBus` for protocol 0. While others answer, a servo that was silent in three reads in a row is only
    tried now and then (`silence`), so that a dead servo does not slow the others down."""

    def __init__(self, port: str, baud: int = BAUDS[0], slack_s: float = 0.005) -> None:
        """baud: bit/s. slack_s: what adapter and computer may take beyond the bytes' own time; a USB adapter
        needs 2-4 ms."""
        self.port, self.stats = port, BusStats()
        self.registers: Mapping[str, Register] = REGISTERS
        self._line = SerialPort(port, baud, slack_s)
        self._sizes = ReplySizes()
        self._slack_s, self._silence = slack_s, Silence()
        self._was_open = False
        # while a lost confirmation may still turn up and be taken for that of a later write
        self._doubt_until_ns = 0

    def open(self) -> None:
        if self.connected:
            return
        self._line.open()
        self._silence = Silence()
        self.stats.reconnects += self._was_open
        self._was_open = True

    def close(self) -> None:
        self._line.close()

    @property
    def connected(self) -> bool:
        return self._line.connected

    @property
    def baud(self) -> int:
        return self._line.baud

    def set_baud(self, baud: int) -> None:
        """Change the speed, of an open port at once."""
        self._line.set_baud(baud)

    def ping(self, servo: int) -> int | None:
        replies = self.read(["model_number"], [servo])
        return int(replies.values[0, 0]) if replies.valid[0] else None

    def scan(self, servos: Iterable[int] = range(253)) -> dict[int, int]:
        """Model number by id of those that answer: each is asked by itself, or all by one broadcast ping when
        there are many."""
        model, models = REGISTERS["model_number"], {}
        ids = list(servos)
        for servo in (
            ids if len(ids) <= MOST_ASKED else self._roll_call(ids)
        ):  # not by `read`: silence is expected here, and no reason to grow patient
            answers, _ = self._ask([_id(servo)], model.address, model.size)
            if servo in answers:
                models[servo] = decode(model, answers[servo][1][: model.size])
        return models

    def _roll_call(self, servos: Sequence[int]) -> list[int]:
        """Those of `servos` that answer a broadcast ping. Answers that lie over each other count as
        corrupt."""
        self.stats.requests += 1
        request, room = packet(BROADCAST, PING), 253 * STATUS_BYTES
        reception = self._line.exchange(request, room, lambda _: False, PAUSE_S)
        answers = [servo for servo, _, extra in packets(reception.data)[0] if not extra]
        self.stats.corrupt += len(reception.data) > len(answers) * STATUS_BYTES
        return sorted({servo for servo in answers if servo in servos})

    def explain_silence(self, servos: Sequence[int]) -> str:
        return explain_silence(self, servos, BAUDS)

    def read(self, registers: Sequence[str], servos: Sequence[int], retries: int = 1) -> Replies:
        places = [self._register(name) for name in registers]
        ids = [_id(s) for s in servos]
        values = np.zeros((len(ids), len(places)), np.int64)
        valid, errors = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.int64)
        if not values.size:
            now = time.monotonic_ns()
            return Replies(values, valid, errors, now, now)
        base = min(r.address for r in places)
        size = max(r.address + r.size for r in places) - base
        together, trial = self._silence.next_query(ids)
        t_request_ns = t_receive_ns = time.monotonic_ns()
        answers: dict[int, tuple[int, bytes]] = {}
        if together:
            answers, reception = self._ask(together, base, size)
            t_request_ns, t_receive_ns = reception.t_request_ns, reception.t_receive_ns
        for attempt in range(retries + 1):
            # those that did not answer are asked one by one; one that was given up has one chance
            for servo in together if attempt else [trial] if trial is not None else []:
                if servo not in answers:
                    self.stats.retries += attempt > 0
                    retry_answers, reception = self._ask([servo], base, size)
                    answers |= retry_answers
                    t_receive_ns = reception.t_receive_ns if retry_answers else t_receive_ns
        self._silence.note(together if trial is None else [*together, trial], answers)
        for row, servo in enumerate(ids):
            if (answer := answers.get(servo)) is not None:
                errors[row], data = answer
                valid[row] = True
                for column, r in enumerate(places):
                    values[row, column] = decode(r, data[r.address - base : r.address - base + r.size])
        return Replies(values, valid, errors, t_request_ns, t_receive_ns)

    def _ask(self, servos: list[int], base: int, size: int) -> tuple[dict[int, tuple[int, bytes]], Reception]:
        """One exchange: status and data by servo id, of the servos that sent `size` bytes."""
        size = self._sizes.choose(size)
        answers: dict[int, tuple[int, bytes]] = {}

        def is_complete(data: bytearray) -> bool:
            answers.clear()
            for servo, status, parameters in packets(data)[0]:
                if servo in servos and len(parameters) == size:
                    answers[servo] = status, parameters
            return len(answers) == len(servos)

        single = len(servos) == 1
        receiver, instruction = (servos[0], READ) if single else (BROADCAST, SYNC_READ)
        request = packet(receiver, instruction, bytes((base, size, *(() if single else servos))))
        self.stats.requests += 1
        n = len(servos)
        self._line.slack_s = self._slack_s * self._silence.patience
        reception = self._line.exchange(request, n * (STATUS_BYTES + size), is_complete, n * PAUSE_S)
        if len(answers) < len(servos):
            self._count_missing(
                n - len(answers), len(reception.data) - len(answers) * (STATUS_BYTES + size), size
            )
        return answers, reception

    def _count_missing(self, missing: int, rubbish: int, size: int) -> None:
        """rubbish: bytes that belong to no answer."""
        corrupt = min(missing, -(-max(rubbish, 0) // (STATUS_BYTES + size)))
        self.stats.corrupt += corrupt
        self.stats.silent += missing - corrupt
        self._sizes.note_lost(size)

    def write(self, register: str, values: Mapping[int, int]) -> None:
        r = self._register(register)
        if not values:
            return
        data = b"".join(
            bytes((_id(servo),)) + self._encode(register, servo, v) for servo, v in values.items()
        )
        self.stats.requests += 1
        self._line.send(packet(BROADCAST, SYNC_WRITE, bytes((r.address, r.size)) + data))

    def write_checked(self, register: str, servo: int, value: int, retries: int = 2) -> None:
        """As `ServoBus.write_checked`. Registers in EEPROM, the lock and the torque are also read back,
        because a locked servo confirms a write that it does not do. So is any register whose confirmation may
        have been the late answer to an earlier write."""
        r, data = self._register(register), self._encode(register, servo, value)
        request = packet(_id(servo), WRITE, bytes((r.address,)) + data)
        # these cannot be read back: the value moves the servo to another id or speed, or is an order
        checkable = register not in ("id", "baud_rate") and not (register == "torque_enable" and value > 1)
        needs_readback = checkable and (r.eeprom or register in ("lock", "torque_enable"))
        status: int | None = None
        for attempt in range(retries + 1):
            self.stats.retries += attempt > 0
            doubtful = checkable and time.monotonic_ns() < self._doubt_until_ns
            status = self._acknowledgement(servo, request)
            if status is None:
                self._doubt_until_ns = time.monotonic_ns() + LATE_NS
            if status is not None and not needs_readback and not doubtful:
                return
            if checkable:
                readback = self.read([register], [servo])
                if readback.valid[0] and readback.values[0, 0] == value:
                    return
                status = int(readback.errors[0]) if readback.valid[0] else status
        if status is None:
            raise BusError(f"servo {servo} on {self.port} did not answer when {register} was written")
        why = "; ".join(self.describe(status)) or (
            "its EEPROM is locked: write 0 to lock first" if r.eeprom else "it gives no reason"
        )
        raise BusError(f"servo {servo} on {self.port} did not take {register} = {value}: {why}")

    def _acknowledgement(self, servo: int, request: bytes) -> int | None:
        """The status byte with which `servo` answers `request`; None when it does not answer."""
        status: list[int] = []

        def is_complete(data: bytearray) -> bool:
            status[:] = [error for sender, error, extra in packets(data)[0] if sender == servo and not extra]
            return bool(status)

        self.stats.requests += 1
        reception = self._line.exchange(request, STATUS_BYTES, is_complete, PAUSE_S)
        if status:
            return status[0]
        self.stats.corrupt += bool(reception.data)
        self.stats.silent += not reception.data
        return None

    def hardware_faults(self, servo: int) -> tuple[str, ...]:
        return ()  # its status byte holds them all

    def describe(self, error: int) -> tuple[str, ...]:
        faults = tuple(words for bit, words in STATUS.items() if error & bit)
        rest = error & ~sum(STATUS)
        return (*faults, f"unknown status bits {rest:#04x}: see the servo's manual") if rest else faults

    def _register(self, name: str) -> Register:
        try:
            return REGISTERS[name]
        except KeyError:
            raise ValueError(
                f"a Feetech servo has no register {name!r}; it has {', '.join(REGISTERS)}"
            ) from None

    def _encode(self, name: str, servo: int, value: int) -> bytes:
        try:
            return encode(REGISTERS[name], value)
        except ValueError as error:
            raise ValueError(f"{name} of servo {servo} on {self.port}: {error}; nothing was sent") from None


def _id(servo: int) -> int:
    if not 0 <= servo < BROADCAST:
        raise ValueError(f"a servo's id lies in 0..253, not {servo}")
    return servo
