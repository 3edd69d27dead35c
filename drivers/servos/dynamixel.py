"""Dynamixel servos of the X series on a half-duplex bus, protocol 2.0: `ServoBus` with the registers of
`dynamixel_registers`."""

from __future__ import annotations

import difflib
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from .bus import BusError, BusStats, Register, Replies, explain_silence
from .dynamixel_packets import (
    ALERT,
    BROADCAST,
    STATUS_OVERHEAD,
    Instruction,
    chain_length,
    cut_packet,
    decode_chain,
    encode,
    give_up_first,
)
from .dynamixel_registers import (
    ACCESS_ERROR,
    ALERT_WORDS,
    BAUD_RATES,
    CRC_ERROR,
    ERRORS,
    REGISTERS,
    describe_hardware,
)
from .serial_port import LATE_NS, Reception, ReplySizes, SerialPort
from .silence import Silence

# error and data by id; t_request_ns, t_receive_ns
type _Answer = tuple[dict[int, tuple[int, bytes]], int, int]
_FAST_MISSES = 3


class DynamixelBus:
    """`ServoBus` for protocol 2.0. fast: use fast sync read (one reply for all servos, with 4 bytes beside
    each one's data instead of 11); where the firmware is too old for it, the bus goes back to the plain sync
    read by itself. slack_s: what adapter and system may take beyond the bytes' own time. return_delay_s: the
    servos' longest pause before a reply (`return_delay_time`; 0.5 ms is the factory's).

    In a sync read each servo waits for the one before it, so a silent servo silences all behind it
    (DynamixelSDK issue 364). `read` asks those one by one right away. A servo that was silent goes to the end
    of the next request, where it silences no other. One that was silent in three reads in a row is only tried
    now and then (`silence`)."""

    registers = REGISTERS

    def __init__(
        self,
        port: str,
        baud: int = 1_000_000,
        slack_s: float = 0.005,
        fast: bool = False,
        return_delay_s: float = 0.0005,
    ) -> None:
        self.port, self.baud, self.fast = port, baud, fast
        self.slack_s, self.return_delay_s = slack_s, return_delay_s
        self.stats = BusStats()
        self._line = SerialPort(port, baud, slack_s)
        self._sizes = ReplySizes()
        self._was_open = False
        self._silence = Silence()
        # while a lost confirmation may still turn up and be taken for that of a later write
        self._doubt_until_ns = 0
        self._fast_misses = 0

    def open(self) -> None:
        if self.connected:
            return
        self._line.open()
        self.stats.reconnects += self._was_open
        self._was_open = True
        self._silence = Silence()

    def close(self) -> None:
        self._line.close()

    @property
    def connected(self) -> bool:
        return self._line.connected

    def set_baud(self, baud: int) -> None:
        """Change the speed, of an open port at once."""
        self.baud = baud
        self._line.set_baud(baud)

    def ping(self, servo: int) -> int | None:
        models = self._ping_one(servo)
        self._silence.note([servo], models)
        return models.get(servo)

    def scan(self, servos: Iterable[int] = range(253)) -> dict[int, int]:
        """Model number by id of those that answer one broadcast ping. It takes 3 ms an id unless all of
        `servos` answer. Of up to 16 servos, those that did not answer are then asked by themselves."""
        ids = [_check_id(s) for s in servos]
        # each servo waits for its turn; DynamixelSDK allows 3 ms an id for it
        turns_s = 0.003 * (max(ids, default=0) + 1)
        models = self._ping(encode(BROADCAST, Instruction.PING), ids, turns_s) if ids else {}
        if len(ids) <= 16:
            # not by `ping`: silence is expected here, and no reason to grow patient
            for servo in ids:
                if servo not in models:
                    models |= self._ping_one(servo)
        return dict(sorted(models.items()))

    def read(self, registers: Sequence[str], servos: Sequence[int], retries: int = 1) -> Replies:
        places = [_register(name) for name in registers]
        ids = [_check_id(s) for s in servos]
        values = np.zeros((len(ids), len(places)), np.int64)
        valid, errors = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.int64)
        if not ids or not places:
            now = time.monotonic_ns()
            return Replies(values, valid, errors, now, now)
        start = min(r.address for r in places)
        size = max(r.address + r.size for r in places) - start
        together, trial = self._silence.next_query(ids)
        answers, t_request_ns, t_receive_ns = self._read_all(together, start, size)
        for i, servo in enumerate(ids):
            attempts = retries if servo in together else int(servo == trial)
            while servo not in answers and attempts > 0:
                attempts -= 1
                self.stats.retries += servo != trial
                answer, _, t_answer_ns = self._read_one(servo, start, size)
                if answer:
                    answers, t_receive_ns = answers | answer, t_answer_ns
            if servo in answers:
                valid[i] = True
                errors[i], data = answers[servo]
                for column, place in enumerate(places):
                    field = data[place.address - start :][: place.size]
                    values[i, column] = int.from_bytes(field, "little", signed=place.signed)
        self._silence.note(ids, answers)
        return Replies(values, valid, errors, t_request_ns, t_receive_ns)

    def write(self, register: str, values: Mapping[int, int]) -> None:
        place = _register(register)
        body = b"".join(bytes((_check_id(s),)) + _to_bytes(register, v) for s, v in values.items())
        self.stats.requests += 1
        parameters = struct.pack("<HH", place.address, place.size) + body
        self._line.send(encode(BROADCAST, Instruction.SYNC_WRITE, parameters))

    def write_checked(self, register: str, servo: int, value: int, retries: int = 2) -> None:
        parameters = struct.pack("<H", _register(register).address) + _to_bytes(register, value)
        request = encode(_check_id(servo), Instruction.WRITE, parameters)
        # a servo may sign the reply to a change of its id with the new one
        signers = [servo, value] if register == "id" else [servo]
        readable = register not in ("id", "baud_rate")  # at least not here, once they are written
        for attempt in range(retries + 1):
            self.stats.retries += attempt > 0
            doubtful = time.monotonic_ns() < self._doubt_until_ns
            answers, _, _ = self._ask(request, signers, 0, count=1)
            error = answers.popitem()[1][0] if answers else None
            if error is None:
                self._doubt_until_ns = time.monotonic_ns() + LATE_NS
            if readable and (error is None or doubtful):  # no answer, or maybe that to an earlier write
                readback = self.read([register], [servo])
                if readback.valid[0] and readback.values[0, 0] == value:
                    return
                if not readback.valid[0] or not error:
                    continue
            if error is None:
                continue
            if error & ~ALERT == CRC_ERROR:
                continue
            if why := self._refusal(register, servo, value, error):
                raise BusError(f"servo {servo} on {self.port} did not take {register} = {value}: {why}")
            return
        raise BusError(
            f"servo {servo} on {self.port} did not confirm {register} = {value} (asked {retries + 1} times): "
            "check its power, its cable, its id and the baud rate"
        )

    def explain_silence(self, servos: Sequence[int]) -> str:
        return explain_silence(self, servos, BAUD_RATES.values())

    def hardware_faults(self, servo: int) -> tuple[str, ...]:
        """The servo's hardware errors, each as a sentence that says what to do; empty when there are none, or
        when it does not answer."""
        reply = self.read(["hardware_error_status"], [servo], retries=2)
        return describe_hardware(int(reply.values[0, 0])) if reply.valid[0] else ()

    def describe(self, error: int) -> tuple[str, ...]:
        words = (ALERT_WORDS,) if error & ALERT else ()
        code = error & ~ALERT
        return (*words, ERRORS.get(code, f"unknown error {code}")) if code else words

    def _refusal(self, register: str, servo: int, value: int, error: int) -> str:
        """Why a servo that answered a write with `error` did not take it; empty when it did."""
        code = error & ~ALERT
        if code == ACCESS_ERROR and REGISTERS[register].eeprom:
            torque = self.read(["torque_enable"], [servo])
            if torque.valid[0] and torque.values[0, 0]:
                return (
                    "it is in the EEPROM, which is locked while torque is on; write torque_enable = 0 first"
                )
        if code:
            return ERRORS.get(code, f"unknown error {code}")
        if error & ALERT and register == "torque_enable" and value:
            torque = self.read(["torque_enable"], [servo])
            if torque.valid[0] and not torque.values[0, 0]:
                return "; ".join(self.hardware_faults(servo)) or ALERT_WORDS
        return ""

    # one exchange each

    def _ping_one(self, servo: int) -> dict[int, int]:
        return self._ping(encode(_check_id(servo), Instruction.PING), [servo])

    def _ping(self, request: bytes, servos: Sequence[int], turns_s: float = 0.0) -> dict[int, int]:
        answers, _, _ = self._ask(request, servos, 3, turns_s)
        return {servo: struct.unpack_from("<H", data)[0] for servo, (_, data) in answers.items()}

    def _read_one(self, servo: int, start: int, size: int) -> _Answer:
        size = self._sizes.choose(size)
        return self._ask(encode(servo, Instruction.READ, struct.pack("<HH", start, size)), [servo], size)

    def _read_all(self, servos: Sequence[int], start: int, size: int) -> _Answer:
        if not servos:
            now = time.monotonic_ns()
            return {}, now, now
        if len(servos) == 1:
            return self._read_one(servos[0], start, size)
        size = self._sizes.choose(size)
        parameters = struct.pack("<HH", start, size) + bytes(servos)
        if not self.fast:
            return self._ask(encode(BROADCAST, Instruction.SYNC_READ, parameters), servos, size)
        answer = self._ask_chain(encode(BROADCAST, Instruction.FAST_SYNC_READ, parameters), servos, size)
        # no answer at all, though the servos answer other requests: their firmware is too old for this one
        self._fast_misses = 0 if answer[0] or self._silence.any_silent(servos) else self._fast_misses + 1
        self.fast = self._fast_misses < _FAST_MISSES
        return answer

    def _ask(
        self, request: bytes, servos: Sequence[int], size: int, turns_s: float = 0.0, count: int | None = None
    ) -> _Answer:
        """Send, and receive one status with `size` bytes of data from each of `servos`, or from `count` of
        them."""
        count = len(servos) if count is None else count
        answers: dict[int, tuple[int, bytes]] = {}
        corrupt = 0

        def is_complete(data: bytearray) -> bool:
            nonlocal corrupt
            answers.clear()
            rest, corrupt = bytearray(data), 0
            while True:
                packet, dropped = cut_packet(rest, len(data))
                corrupt += dropped
                if packet is None:
                    if not give_up_first(rest):
                        return len(answers) >= count
                elif packet.instruction == Instruction.STATUS:
                    if packet.id in servos and len(packet.parameters) == 1 + size:
                        answers[packet.id] = packet.parameters[0], packet.parameters[1:]
                    else:
                        corrupt += 1

        reception = self._exchange(request, count * (STATUS_OVERHEAD + size), count, turns_s, is_complete)
        if len(answers) < count:
            is_complete(reception.data)
        self._count(0 if turns_s else count - len(answers), corrupt, size)  # a scan expects nobody
        return answers, reception.t_request_ns, reception.t_receive_ns

    def _ask_chain(self, request: bytes, servos: Sequence[int], size: int) -> _Answer:
        """Like `_ask`, for a fast sync read: one reply of a length that is known beforehand."""
        length = chain_length(len(servos), size)
        reception = self._exchange(request, length, 1, 0.0, lambda data: len(data) >= length)
        answers, corrupt = decode_chain(bytes(reception.data), len(servos), size)
        answers = {servo: answer for servo, answer in answers.items() if servo in servos}
        self._count(len(servos) - len(answers), corrupt, size)
        return answers, reception.t_request_ns, reception.t_receive_ns

    def _exchange(
        self,
        request: bytes,
        reply_bytes: int,
        replies: int,
        turns_s: float,
        is_complete: Callable[[bytearray], bool],
    ) -> Reception:
        self.stats.requests += 1
        self._line.slack_s = self.slack_s * self._silence.patience + turns_s + replies * self.return_delay_s
        return self._line.exchange(request, reply_bytes, is_complete)

    def _count(self, missing: int, corrupt: int, size: int) -> None:
        self.stats.corrupt += corrupt
        self.stats.silent += max(0, missing - corrupt)
        if missing:
            self._sizes.note_lost(size)


def _check_id(servo: int) -> int:
    if not 0 <= servo <= 252:
        raise ValueError(f"{servo} is not the id of a Dynamixel servo, which are 0 to 252; nothing was sent")
    return servo


def _register(name: str) -> Register:
    try:
        return REGISTERS[name]
    except KeyError:
        suggestions = difflib.get_close_matches(name, REGISTERS, n=3, cutoff=0.4) or REGISTERS
        raise ValueError(
            f"a Dynamixel servo has no register {name!r}; it has {', '.join(suggestions)}"
        ) from None


def _to_bytes(register: str, value: int) -> bytes:
    place = REGISTERS[register]
    try:
        return int(value).to_bytes(place.size, "little", signed=place.signed)
    except OverflowError:
        kind = "signed" if place.signed else "unsigned"
        raise ValueError(
            f"{register} cannot hold {value}: it is {kind}, of {8 * place.size} bits; nothing was sent"
        ) from None
