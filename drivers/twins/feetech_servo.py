"""One STS3215 servo at register level.

From Feetech's STS3215 memory table and protocol manual. As in the servo: EEPROM takes nothing while the lock
is set, though the write is confirmed; goals are clipped to the position limits; a homing offset shifts the
position that is read, which wraps at 4096 unless phase bit 0x10 is set; a goal switches the torque on
(Feetech's own WritePos examples never do that themselves, and tables of its users say so). Not modelled:
acceleration (the mechanics have their own), goal_time, and modes other than position, which hold still."""

from __future__ import annotations

import math
import time

from ..arm import DeviceError
from ..config import require_known
from ..servos.bus import COUNTS_PER_TURN
from ..servos.feetech_protocol import BAUDS, REGISTERS, decode, encode
from .serial_twin import SerialTwin, TwinServo

COUNTS_PER_RAD = COUNTS_PER_TURN / (2 * math.pi)
STALL_NM = 1.91  # 19.5 kg·cm at 7.4 V (data sheet)
STALL_A = 2.4
VOLTAGE = 7.4
AMBIENT_C, HEAT_C, HEAT_S = 30.0, 45.0, 120.0  # a stalled motor would end 45 °C above the room
RAM, GOAL, MULTI_TURN = 40, 42, 0x10
BOOT_S = 0.1  # silent after power came; Feetech does not say how long
BAD_VOLTAGE, TOO_HOT, TOO_MUCH_CURRENT, OVERLOAD = 0x01, 0x04, 0x08, 0x20
FACTORY = {
    "firmware_major_version": 3,
    "firmware_minor_version": 10,
    "response_status_level": 1,
    "max_position_limit": 4095,
    "max_temperature": 70,
    "max_voltage": 80,
    "min_voltage": 40,
    "max_torque": 1000,
    "phase": 12,
    "unloading_condition": TOO_HOT | TOO_MUCH_CURRENT | OVERLOAD,
    "led_alarm_condition": 47,
    "p_coefficient": 32,
    "d_coefficient": 32,
    "minimum_startup_force": 16,
    "cw_dead_zone": 1,
    "ccw_dead_zone": 1,
    "protection_current": 500,
    "angular_resolution": 1,
    "protective_torque": 20,
    "protection_time": 200,
    "overload_torque": 80,
    "over_current_protection_time": 200,
    "moving_velocity_threshold": 2,
    "maximum_velocity_limit": 65,
    "maximum_acceleration": 254,
    "acceleration_multiplier": 1,
}


class FeetechServo:
    """The registers and the motor of one servo, on one joint of its twin's plant. baud: value of the register
    baud_rate. DeviceError: an unknown register or joint."""

    def __init__(self, spec: TwinServo, twin: SerialTwin, baud: int) -> None:
        plant = twin.plant
        if not 0 <= spec.joint < len(plant.names):
            raise DeviceError(f"servo {spec.id} has joint {spec.joint}, but its plant has {len(plant.names)}")
        self.twin, self.plant, self.joint = twin, plant, spec.joint
        self.zero, self.direction = spec.zero_count, spec.direction
        self.memory = bytearray(512)  # beyond 255 nothing is ever written: long reads end in zeros
        self.pending: tuple[int, bytes] | None = None
        self.temperature = AMBIENT_C
        first = {**FACTORY, "model_number": spec.model, "id": spec.id, "baud_rate": baud}
        for name, value in {**first, **spec.registers}.items():
            require_known("register of a Feetech servo:", name, REGISTERS)
            self.set(name, value)
        self.ready_s = 0.0  # when it has started, monotonic
        self.lose_power()
        for name, value in spec.registers.items():
            self.set(name, value)

    # registers

    def get(self, name: str) -> int:
        r = REGISTERS[name]
        return decode(r, self.memory[r.address : r.address + r.size])

    def set(self, name: str, value: int) -> None:
        r = REGISTERS[name]
        self.memory[r.address : r.address + r.size] = encode(r, value)

    @property
    def id(self) -> int:
        return self.memory[5]

    @property
    def baud(self) -> int:
        return BAUDS[self.memory[6]] if self.memory[6] < len(BAUDS) else -1

    @property
    def delay_s(self) -> float:
        return 2e-6 * self.memory[7]

    def read(self, address: int, size: int) -> bytes:
        if address + size > 56 and address < 71:
            self._measure()
        return bytes(self.memory[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            read_only = at < 5 or 56 <= at <= 70 or at > 255
            if not read_only and (at >= RAM or not self.get("lock")):
                self.memory[at] = byte
        if address <= GOAL < address + len(data):
            self.set("torque_enable", 1)
        self._torque()
        if address <= 43:  # the goal, or what it depends on
            self._aim()

    def act(self) -> None:
        if self.pending is not None:
            self.write(*self.pending)
            self.pending = None

    # the motor

    def restart(self) -> None:
        self.lose_power()
        self.ready_s = time.monotonic() + BOOT_S

    def lose_power(self) -> None:
        self.memory[RAM:80] = bytes(80 - RAM)
        self.latched, self.over_s, self.over_current_s = 0, 0.0, 0.0
        self.turns = 0
        self.turns = math.floor(self._encoder() / COUNTS_PER_TURN)  # which turn it is on, it cannot know
        self.set("torque_limit", self.get("max_torque"))
        self.set("lock", 1)
        self._measure()
        self.set("goal_position", self.get("present_position"))
        self.target = float(self.plant.position[self.joint])
        self._torque()

    def _encoder(self) -> float:
        position = float(self.plant.position[self.joint])
        return self.zero + self.direction * position * COUNTS_PER_RAD - self.turns * COUNTS_PER_TURN

    def _present(self) -> float:
        counts = self._encoder() - self.get("homing_offset")
        return counts if self.memory[18] & MULTI_TURN else counts % COUNTS_PER_TURN

    def _load(self) -> float:
        return self.direction * float(self.plant.effort[self.joint]) / STALL_NM

    def _measure(self) -> None:
        counts = round(self._present())
        if not self.memory[18] & MULTI_TURN:
            counts %= COUNTS_PER_TURN
        load = max(-1.0, min(1.0, self._load()))
        velocity = round(self.direction * float(self.plant.velocity[self.joint]) * COUNTS_PER_RAD)
        self.set("present_position", max(-32767, min(32767, counts)))
        self.set("present_velocity", max(-32767, min(32767, velocity)))
        self.set("present_load", round(1000 * load))
        self.set("present_current", round(abs(load) * STALL_A / 0.0065))
        self.set("present_voltage", self._decivolts())
        self.set("present_temperature", round(self.temperature))
        self.set("moving", int(abs(velocity) > self.get("moving_velocity_threshold") * 10))
        self.set("status", self.status)

    def _decivolts(self) -> int:
        volts = self.twin.faults.voltage
        return max(0, min(255, round(10 * (VOLTAGE if volts is None else volts))))

    @property
    def status(self) -> int:
        bits = self.latched
        if not self.get("min_voltage") <= self._decivolts() <= self.get("max_voltage"):
            bits |= BAD_VOLTAGE
        if self.temperature > self.get("max_temperature"):
            bits |= TOO_HOT
        return bits

    def _torque(self) -> None:
        """Bring the motor in line with torque_enable, torque_limit and the faults that switch it off."""
        if self.get("torque_enable") == 128:  # the present position becomes 2048, whatever the lock
            offset = round(self._encoder()) - COUNTS_PER_TURN // 2
            self.set("homing_offset", max(-2047, min(2047, offset)))
            self.set("torque_enable", 0)
        if self.status & self.get("unloading_condition"):
            self.set("torque_enable", 0)
        was_on, on = self.plant.torque[self.joint] > 0, self.get("torque_enable") == 1
        self.plant.max_effort[self.joint] = STALL_NM * min(self.get("torque_limit"), 1000) / 1000
        if on and not was_on:
            self.plant.goal[self.joint] = self.plant.position[self.joint]
            self._aim()
        self.plant.torque[self.joint] = float(on)

    def _aim(self) -> None:
        """Set the plant's goal from the goal register. The servo goes there straight in counts, never the
        short way round."""
        position = float(self.plant.position[self.joint])
        if self.get("operating_mode") != 0:
            self.target = position
        else:
            goal, low, high = (
                self.get(n) for n in ("goal_position", "min_position_limit", "max_position_limit")
            )
            if low < high:
                goal = max(low, min(high, goal))
            self.target = position + self.direction * (goal - self._present()) / COUNTS_PER_RAD
        if not self.get("goal_velocity"):
            self.plant.goal[self.joint] = self.target

    def step(self, dt_s: float) -> None:
        if limit := abs(self.get("goal_velocity")) / COUNTS_PER_RAD:
            goal = float(self.plant.goal[self.joint])
            self.plant.goal[self.joint] = goal + max(-limit * dt_s, min(limit * dt_s, self.target - goal))
        else:
            self.plant.goal[self.joint] = self.target
        load = abs(self._load())
        self.temperature += (AMBIENT_C + HEAT_C * load**2 - self.temperature) * dt_s / HEAT_S
        # a torque limit below the overload threshold counts as well: a servo that pushes as hard as it may
        # for long is blocked
        threshold = min(self.get("overload_torque") / 100, 0.98 * self.get("torque_limit") / 1000)
        self.over_s = self.over_s + dt_s if 0 < threshold <= load else 0.0
        if self.over_s > self.get("protection_time") * 0.01:
            self.latched |= OVERLOAD
        over_current = 0 < self.get("protection_current") * 0.0065 <= load * STALL_A
        self.over_current_s = self.over_current_s + dt_s if over_current else 0.0
        if self.over_current_s > self.get("over_current_protection_time") * 0.01:
            self.latched |= TOO_MUCH_CURRENT
        self._torque()
