"""Servos of Dynamixel's X series on a bus, protocol 2.0, without bulk, registered and factory-reset
instructions."""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from ..servos.dynamixel_packets import (
    BROADCAST,
    Instruction,
    Packet,
    chain_head,
    chain_part,
    cut_packet,
    encode,
)
from ..servos.dynamixel_registers import INSTRUCTION_ERROR
from .dynamixel_servo import OVERLOAD, XServo
from .faults import BusFaults
from .plant import Plant
from .serial_twin import Reply, SerialTwin, TwinServo, overlaid

FAST_SYNC_READ_SINCE = 45  # firmware; older servos do not know the instruction
REBOOT_S = 0.3  # silent while it restarts
STEP_S = 0.002


class DynamixelTwin(SerialTwin):
    """X-series servos on a pty; see `SerialTwin` for the line and its faults."""

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
        super().__init__(plant, servos, baud, faults, link, seed, plugged)
        self._all = [XServo(plant, servo, baud) for servo in servos]
        self._overloaded: tuple[int, ...] = ()
        self._starting: dict[XServo, float] = {}  # until when, monotonic seconds
        self._owed_s = 0.0

    def register(self, servo: int, name: str) -> int:
        """What a register holds, for tests."""
        return next(s for s in self._all if s.get("id") == servo).get(name)

    def take(self, buffer: bytearray) -> bytes | None:
        packet, _ = cut_packet(buffer)
        return packet.wire if packet else None

    def step(self, dt_s: float) -> None:
        self._owed_s += dt_s
        if self._owed_s < STEP_S:  # each request wakes the line, and steps it
            return
        dt_s, self._owed_s = self._owed_s, 0.0
        overloaded, self._overloaded = self._overloaded, self.faults.overload
        for servo in self._all:
            servo.step(dt_s, self._volts(servo))
            # latched when the fault is set, so that a reboot can clear it
            if servo.get("id") in self._overloaded and servo.get("id") not in overloaded:
                servo.latch(OVERLOAD)

    def lose_power(self, joints: Collection[int]) -> None:
        for servo in self._all:
            if servo.joint in joints:
                servo.power_on()

    def answer(self, request: bytes, speed: int) -> list[Reply]:
        packet, _ = cut_packet(bytearray(request))
        now = time.monotonic()
        hearing = [
            servo
            for servo in self._all
            if now >= self._starting.get(servo, 0.0)
            and self.hears(servo.joint, servo.get("id"), servo.baud, speed)
        ]
        if packet is None:
            return []
        if packet.instruction in (Instruction.SYNC_READ, Instruction.FAST_SYNC_READ):
            return self._answer_sync_read(packet, hearing)
        if packet.instruction == Instruction.SYNC_WRITE:
            address, size = struct.unpack_from("<HH", packet.parameters)
            for at in range(4, len(packet.parameters) - size, size + 1):
                for servo in _with_id(hearing, packet.parameters[at]):
                    servo.write(address, packet.parameters[at + 1 : at + 1 + size])
            return []
        receivers = sorted(hearing, key=_id) if packet.id == BROADCAST else _with_id(hearing, packet.id)
        replies = [self._answer_one(packet, _id(servo), servo) for servo in receivers]
        return overlaid([reply for reply in replies if reply is not None])

    def _volts(self, servo: XServo) -> float:
        return servo.model.volts if self.faults.voltage is None else self.faults.voltage

    def _answer_one(self, packet: Packet, servo_id: int, servo: XServo) -> Reply | None:
        level = servo.get("status_return_level")
        parameters, data = packet.parameters, b""
        if packet.instruction == Instruction.PING:
            min_level, error = 0, servo.alert
            data = struct.pack("<HB", servo.get("model_number"), servo.get("firmware_version"))
        elif packet.instruction == Instruction.READ and len(parameters) == 4 and packet.id != BROADCAST:
            min_level = 1
            error, data = servo.read(*struct.unpack("<HH", parameters), self._volts(servo))
        elif packet.instruction == Instruction.WRITE and len(parameters) > 2:
            min_level, error = 2, servo.write(*struct.unpack_from("<H", parameters), parameters[2:])
        elif packet.instruction == Instruction.REBOOT:
            min_level, error = 2, servo.alert
            servo.power_on()
            self._starting[servo] = time.monotonic() + REBOOT_S
        else:
            min_level, error = 2, servo.alert | INSTRUCTION_ERROR
        if level < min_level or (packet.id == BROADCAST and packet.instruction != Instruction.PING):
            return None
        delay_s = servo.get("return_delay_time") * 2e-6
        return Reply(servo_id, encode(servo_id, Instruction.STATUS, bytes((error,)) + data), delay_s)

    def _answer_sync_read(self, packet: Packet, hearing: Sequence[XServo]) -> list[Reply]:
        """Each servo answers after the one before it, so all behind the first silent one are silent, too
        (DynamixelSDK issue 364)."""
        address, size = struct.unpack_from("<HH", packet.parameters)
        fast = packet.instruction == Instruction.FAST_SYNC_READ
        ids = packet.parameters[4:]
        replies: list[Reply] = []
        chain = chain_head(len(ids), size)
        for servo_id in ids:
            same = [s for s in _with_id(hearing, servo_id) if s.get("status_return_level") >= 1]
            if not same:
                break
            if fast and (len(same) > 1 or same[0].get("firmware_version") < FAST_SYNC_READ_SINCE):
                break
            statuses: list[Reply] = []
            for servo in same:
                error, data = servo.read(address, size, self._volts(servo))
                status = encode(servo_id, Instruction.STATUS, bytes((error,)) + data)
                statuses.append(Reply(servo_id, status, servo.get("return_delay_time") * 2e-6))
                if fast:
                    chain += chain_part(chain, servo_id, error, data)
            replies += overlaid(statuses)
        if not fast or not replies:
            return replies
        return [Reply(replies[0].servo, chain, replies[0].delay_s)]


def _id(servo: XServo) -> int:
    return servo.get("id")


def _with_id(servos: Sequence[XServo], servo_id: int) -> list[XServo]:
    return [servo for servo in servos if _id(servo) == servo_id]
