"""A bus of Feetech STS/SMS servos (protocol 0), such as the STS3215 of the SO-101."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .bus import BusError, BusStats, Register, Replies, explain_silence
from .feetech_protocol import (
    BAUDS,
    BROADCAST,
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
from .serial_port import LATE_NS, Heard, ReplySizes, SerialPort
from .silence import Silence

PAUSE_S = 0.0005  # before a reply, at most: return_delay_time as servos leave the factory


class FeetechBus:
    """`servo_bus.ServoBus` for protocol 0. A servo that was silent three times running is only tried now and
    then as long as others answer (`silence`), so that a dead one does not slow the living."""

    def __init__(self, port: str, baud: int = BAUDS[0], slack_s: float = 0.005) -> None:
        """baud: bit/s. slack_s: what adapter and computer may take beyond the bytes' own time; a USB adapter
        needs 2-4 ms."""
        self.port, self.stats = port, BusStats()
        self.registers: Mapping[str, Register] = REGISTERS
        self._line = SerialPort(port, baud, slack_s)
        self._sizes = ReplySizes()
        self._slack_s, self._silence = slack_s, Silence()
        self._opened = False
        # while a lost confirmation may still turn up and be taken for that of a later write
        self._doubt_until_ns = 0

    def open(self) -> None:
        if self.connected:
            return
        self._line.open()
        self._silence = Silence()
        self.stats.reconnects += self._opened
        self._opened = True

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
        model, found = REGISTERS["model_number"], {}
        for servo in servos:  # not by `read`: silence is expected here, and no reason to grow patient
            answers, _ = self._ask([_id(servo)], model.address, model.size)
            if servo in answers:
                found[servo] = decode(model, answers[servo][1][: model.size])
        return found

    def explain_silence(self, servos: Sequence[int]) -> str:
        return explain_silence(self, servos, BAUDS)

    def read(self, registers: Sequence[str], servos: Sequence[int], retries: int = 1) -> Replies:
        wanted = [self._register(name) for name in registers]
        ids = [_id(s) for s in servos]
        values = np.zeros((len(ids), len(wanted)), np.int64)
        valid, errors = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.int64)
        if not values.size:
            now = time.monotonic_ns()
            return Replies(values, valid, errors, now, now)
        base = min(r.address for r in wanted)
        size = max(r.address + r.size for r in wanted) - base
        together, trial = self._silence.whom_to_ask(ids)
        t_request = t_receive = time.monotonic_ns()
        answers: dict[int, tuple[int, bytes]] = {}
        if together:
            answers, heard = self._ask(together, base, size)
            t_request, t_receive = heard.t_request_ns, heard.t_receive_ns
        for attempt in range(retries + 1):
            # asked again one by one; one that was given up has one chance
            for servo in together if attempt else [trial] if trial is not None else []:
                if servo not in answers:
                    self.stats.retries += attempt > 0
                    again, heard = self._ask([servo], base, size)
                    answers |= again
                    t_receive = heard.t_receive_ns if again else t_receive
        self._silence.note(together if trial is None else [*together, trial], answers)
        for row, servo in enumerate(ids):
            if (answer := answers.get(servo)) is not None:
                errors[row], data = answer
                valid[row] = True
                for column, r in enumerate(wanted):
                    values[row, column] = decode(r, data[r.address - base : r.address - base + r.size])
        return Replies(values, valid, errors, t_request, t_receive)

    def _ask(self, servos: list[int], base: int, size: int) -> tuple[dict[int, tuple[int, bytes]], Heard]:
        """One exchange: status and data by servo, of those that answered as they were asked."""
        size = self._sizes.choose(size)
        answers: dict[int, tuple[int, bytes]] = {}

        def whole(data: bytearray) -> bool:
            answers.clear()
            for servo, status, parameters in packets(data)[0]:
                if servo in servos and len(parameters) == size:
                    answers[servo] = status, parameters
            return len(answers) == len(servos)

        single = len(servos) == 1
        to, how = (servos[0], READ) if single else (BROADCAST, SYNC_READ)
        request = packet(to, how, bytes((base, size, *(() if single else servos))))
        self.stats.requests += 1
        n = len(servos)
        self._line.slack_s = self._slack_s * self._silence.patience
        heard = self._line.exchange(request, n * (STATUS_BYTES + size), whole, n * PAUSE_S)
        if len(answers) < len(servos):
            self._count_missing(
                n - len(answers), len(heard.data) - len(answers) * (STATUS_BYTES + size), size
            )
        return answers, heard

    def _count_missing(self, missing: int, rubbish: int, size: int) -> None:
        """rubbish: bytes that belong to no answer."""
        corrupt = min(missing, -(-max(rubbish, 0) // (STATUS_BYTES + size)))
        self.stats.corrupt += corrupt
        self.stats.silent += missing - corrupt
        self._sizes.lost(size)

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
        """Registers in EEPROM, the lock and the torque are read back as well: a locked servo says yes and
        does nothing. So is what may have been confirmed by the late answer to an earlier write."""
        r, data = self._register(register), self._encode(register, servo, value)
        request = packet(_id(servo), WRITE, bytes((r.address,)) + data)
        # these do not read back as they were written, or elsewhere
        checkable = register not in ("id", "baud_rate") and not (register == "torque_enable" and value > 1)
        must = checkable and (r.eeprom or register in ("lock", "torque_enable"))
        status: int | None = None
        for attempt in range(retries + 1):
            self.stats.retries += attempt > 0
            doubtful = checkable and time.monotonic_ns() < self._doubt_until_ns
            status = self._acknowledged(servo, request)
            if status is None:
                self._doubt_until_ns = time.monotonic_ns() + LATE_NS
            if status is not None and not must and not doubtful:
                return
            if checkable:
                back = self.read([register], [servo])
                if back.valid[0] and back.values[0, 0] == value:
                    return
                status = int(back.errors[0]) if back.valid[0] else status
        if status is None:
            raise BusError(f"servo {servo} on {self.port} did not answer when {register} was written")
        why = "; ".join(self.describe(status)) or (
            "its EEPROM is locked: write 0 to lock first" if r.eeprom else "it gives no reason"
        )
        raise BusError(f"servo {servo} on {self.port} did not take {register} = {value}: {why}")

    def _acknowledged(self, servo: int, request: bytes) -> int | None:
        """Send what one servo answers with its status byte alone; None without that answer."""
        status: list[int] = []

        def whole(data: bytearray) -> bool:
            status[:] = [error for who, error, more in packets(data)[0] if who == servo and not more]
            return bool(status)

        self.stats.requests += 1
        heard = self._line.exchange(request, STATUS_BYTES, whole, PAUSE_S)
        if status:
            return status[0]
        self.stats.corrupt += bool(heard.data)
        self.stats.silent += not heard.data
        return None

    def hardware_faults(self, servo: int) -> tuple[str, ...]:
        return ()  # its status byte says them all

    def describe(self, error: int) -> tuple[str, ...]:
        known = tuple(words for bit, words in STATUS.items() if error & bit)
        rest = error & ~sum(STATUS)
        return (*known, f"unknown status bits {rest:#04x}: see the servo's manual") if rest else known

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
