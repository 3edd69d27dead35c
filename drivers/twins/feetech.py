"""STS3215 servos on a pty, the device side of `drivers.servos.feetech`. `feetech_servo` has the single
servo."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from ..arm import DeviceError
from ..servos.feetech_protocol import (
    BAUDS,
    BROADCAST,
    PING,
    READ,
    REBOOT,
    STATUS_BYTES,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    packet,
    packets,
)
from .faults import BusFaults
from .feetech_servo import OVERLOAD, FeetechServo
from .plant import Plant
from .serial_twin import STEP_S, Reply, SerialTwin, TwinServo, overlaid

REG_WRITE, ACTION = 0x04, 0x05


class FeetechTwin(SerialTwin):
    """`servos` on a pty; their registers are those of `drivers.servos.feetech_protocol.REGISTERS`.
    DeviceError: an unknown register, speed or joint."""

    def __init__(
        self,
        plant: Plant,
        servos: Sequence[TwinServo],
        baud: int = BAUDS[0],
        faults: BusFaults | None = None,
        link: Path | None = None,
        seed: int = 0,
        plugged: Collection[int] | None = None,
    ) -> None:
        super().__init__(plant, servos, baud, faults, link, seed, plugged)
        if baud not in BAUDS:
            raise DeviceError(f"a Feetech servo goes at {', '.join(map(str, BAUDS))} baud, not at {baud}")
        self._all = [FeetechServo(servo, self, BAUDS.index(baud)) for servo in self.servos]
        self._since_s = 0.0
        self._forced: tuple[int, ...] = ()

    def take(self, buffer: bytearray) -> bytes | None:
        matches, end = packets(buffer, limit=1)
        del buffer[:end]
        # what is no packet and never will be one must not pile up
        del buffer[: max(0, len(buffer) - 512)]
        return packet(*matches[0]) if matches else None

    def answer(self, request: bytes, speed: int) -> list[Reply]:
        receiver, instruction, parameters = request[2], request[4], request[5:-1]
        now = time.monotonic()
        hearing = [s for s in self._all if now >= s.ready_s and self.hears(s.joint, s.id, s.baud, speed)]
        if instruction in (SYNC_READ, SYNC_WRITE):
            if len(parameters) < 2:
                return []
            address, size = parameters[:2]
            if instruction == SYNC_READ:
                return self._sync_read(
                    hearing, address, size, parameters[2:], (STATUS_BYTES + size) * 10 / speed
                )
            for at in range(2, len(parameters) - size, size + 1):
                for servo in hearing:
                    if servo.id == parameters[at]:
                        servo.write(address, parameters[at + 1 : at + 1 + size])
            return []
        if instruction == ACTION:
            for servo in hearing:
                servo.act()
            return []
        receivers = sorted((s for s in hearing if receiver in (BROADCAST, s.id)), key=lambda s: s.id)
        replies = [r for s in receivers if (r := _reply_of(s, instruction, parameters)) is not None]
        return overlaid(replies) if receiver != BROADCAST or instruction == PING else []

    def _sync_read(
        self, hearing: Sequence[FeetechServo], address: int, size: int, ids: bytes, slot_s: float
    ) -> list[Reply]:
        replies: list[Reply] = []
        wait_s = 0.0
        for servo in ids:
            same = [s for s in hearing if s.id == servo]
            if not same:
                wait_s += slot_s  # the next servo waits for the turn of a silent one
                continue
            answers = [packet(servo, s.status, s.read(address, size)) for s in same]
            replies += overlaid([Reply(servo, a, same[0].delay_s + wait_s) for a in answers])
            wait_s = 0.0
        return replies

    def step(self, dt_s: float) -> None:
        self._since_s += dt_s
        if self._since_s < STEP_S:
            return
        new_overloads = tuple(i for i in self.faults.overload if i not in self._forced)
        self._forced = self.faults.overload
        for servo in self._all:
            if servo.id in new_overloads:
                servo.latched |= OVERLOAD
            servo.step(self._since_s)
        self._since_s = 0.0

    def lose_power(self, joints: Collection[int]) -> None:
        restarting = [servo for servo in self._all if servo.joint in joints]
        ids = {servo.id for servo in restarting}
        self.faults.overload = self._forced = tuple(i for i in self.faults.overload if i not in ids)
        for servo in restarting:
            servo.restart()


def _reply_of(servo: FeetechServo, instruction: int, parameters: bytes) -> Reply | None:
    """Do the instruction in `servo`. Returns its reply, None when it sends none."""
    name, data = servo.id, b""  # a servo answers to a new id with its old one
    quiet, pause = servo.get("response_status_level") == 0, servo.delay_s
    if instruction == READ and len(parameters) == 2:
        data, quiet = servo.read(*parameters), False
    elif instruction == PING:
        quiet = False
    elif instruction == WRITE and len(parameters) > 1:
        servo.write(parameters[0], parameters[1:])
    elif instruction == REG_WRITE and len(parameters) > 1:
        servo.pending = parameters[0], parameters[1:]
    elif instruction == REBOOT:
        servo.restart()
    else:
        return None
    return None if quiet else Reply(name, packet(name, servo.status, data), pause)
