"""STS3215 servos on a pty, the device side of `drivers.servos.feetech`; what each of them does is in
`feetech_servo`."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from .serial_twin import STEP_S, Reply, SerialTwin, TwinServo

REG_WRITE, ACTION = 0x04, 0x05


class FeetechTwin(SerialTwin):
    """`servos` on a pty. registers: see `drivers.servos.feetech_protocol.REGISTERS`. DeviceError: an unknown
    register, speed or joint."""

    def __init__(
        self,
        plant: Plant,
        servos: Sequence[TwinServo],
        baud: int = BAUDS[0],
        faults: BusFaults | None = None,
        link: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(plant, servos, baud, faults, link, seed)
        if baud not in BAUDS:
            raise DeviceError(f"a Feetech servo goes at {', '.join(map(str, BAUDS))} baud, not at {baud}")
        self._all = [FeetechServo(about, self, BAUDS.index(baud)) for about in self.servos]
        self._since_s = 0.0
        self._forced: tuple[int, ...] = ()

    def take(self, heard: bytearray) -> bytes | None:
        found, used = packets(heard, most=1)
        del heard[:used]
        # what is no packet and never will be one must not pile up
        del heard[: max(0, len(heard) - 512)]
        return packet(*found[0]) if found else None

    def answer(self, request: bytes, speed: int) -> list[Reply]:
        to, instruction, parameters = request[2], request[4], request[5:-1]
        now = time.monotonic()
        here = {s.id: s for s in self._all if now >= s.ready_s and self.hears(s.id, s.baud, speed)}
        if instruction in (SYNC_READ, SYNC_WRITE):
            if len(parameters) < 2:
                return []
            address, size = parameters[:2]
            if instruction == SYNC_READ:
                return self._sync_read(
                    here, address, size, parameters[2:], (STATUS_BYTES + size) * 10 / speed
                )
            for at in range(2, len(parameters) - size, size + 1):
                if parameters[at] in here:
                    here[parameters[at]].write(address, parameters[at + 1 : at + 1 + size])
            return []
        if instruction == ACTION:
            for servo in here.values():
                servo.act()
            return []
        meant = [here[i] for i in sorted(here)] if to == BROADCAST else [here[to]] if to in here else []
        replies = [r for s in meant if (r := _one(s, instruction, parameters)) is not None]
        return replies if to != BROADCAST or instruction == PING else []

    def _sync_read(
        self, here: dict[int, FeetechServo], address: int, size: int, ids: bytes, slot_s: float
    ) -> list[Reply]:
        replies: list[Reply] = []
        waited = 0.0
        for servo in ids:
            if servo not in here:
                waited += slot_s  # the next one lets a silent one's turn pass
                continue
            s = here[servo]
            data = s.read(address, size)
            replies.append(Reply(servo, packet(servo, s.status, data), s.delay_s + waited))
            waited = 0.0
        return replies

    def step(self, dt_s: float) -> None:
        self._since_s += dt_s
        if self._since_s < STEP_S:
            return
        forced = tuple(i for i in self.faults.overload if i not in self._forced)
        self._forced = self.faults.overload
        for servo in self._all:
            if servo.id in forced:
                servo.latched |= OVERLOAD
            servo.step(self._since_s)
        self._since_s = 0.0

    def lose_power(self) -> None:
        self.faults.overload = self._forced = ()
        for servo in self._all:
            servo.restart()


def _one(servo: FeetechServo, instruction: int, parameters: bytes) -> Reply | None:
    """What a servo that is meant does and says; None when it says nothing."""
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
