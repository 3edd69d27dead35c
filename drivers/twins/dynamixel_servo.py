"""One servo of Dynamixel's X series: registers that behave, on a joint of a plant.

It has the position modes only (3 position, 4 extended, 5 current-based) and refuses a write of another mode.
Stall torque and current are those of the data sheet at the nominal voltage. It has no indirect addresses."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from ..servos.bus import COUNTS_PER_TURN
from ..servos.dynamixel_packets import ALERT
from ..servos.dynamixel_registers import (
    ACCESS_ERROR,
    BAUD_RATES,
    CURRENT_BASED_POSITION,
    LENGTH_ERROR,
    LIMIT_ERROR,
    POSITION,
    RANGE_ERROR,
    REGISTERS,
)
from .plant import Plant
from .serial_twin import TwinServo

INPUT_VOLTAGE, OVERLOAD = 0x01, 0x20  # of hardware_error_status
OVERLOAD_S = 1.0  # at full effort, standing still; the data sheet gives no time
RPM_UNIT = 0.229 * 2 * math.pi / 60  # rad/s, of velocity registers
FULL_PWM = 885
TURNS = 1_048_575  # counts either way of the modes that know several turns
OFFSET_IN_POSITION_MODE = 1024  # a homing offset beyond it is ignored there


@dataclass(frozen=True)
class Model:
    """A model of servo. stall_nm, stall_ma: N·m and mA, at `volts`. shutdown and the limits: factory
    settings. current: it measures its current (otherwise it estimates its load)."""

    stall_nm: float
    stall_ma: float
    volts: float
    shutdown: int
    max_voltage: int
    min_voltage: int
    temperature_limit: int
    velocity_limit: int
    current: bool


_XL330_M077 = Model(0.215, 1470, 5.0, 0x35, 70, 35, 70, 1620, True)
_XL330_M288 = Model(0.52, 1470, 5.0, 0x35, 70, 35, 70, 445, True)
_XL430_W250 = Model(1.5, 1400, 12.0, 0x34, 140, 60, 72, 265, False)
_MODELS = {1190: _XL330_M077, 1200: _XL330_M288, 1060: _XL430_W250}

# What a client may write: lowest and highest value. `XServo._check` has the limits that are registers.
_WRITABLE = {
    "id": (0, 252),
    "baud_rate": (0, 6),
    "return_delay_time": (0, 254),
    "drive_mode": (0, 1),
    "operating_mode": (POSITION, CURRENT_BASED_POSITION),
    "secondary_id": (0, 255),
    "homing_offset": (-1_044_479, 1_044_479),
    "moving_threshold": (0, 1023),
    "temperature_limit": (0, 100),
    "max_voltage_limit": (31, 160),
    "min_voltage_limit": (31, 160),
    "pwm_limit": (0, FULL_PWM),
    "current_limit": (0, 1750),
    "velocity_limit": (0, 2047),
    "max_position_limit": (0, COUNTS_PER_TURN - 1),
    "min_position_limit": (0, COUNTS_PER_TURN - 1),
    "startup_configuration": (0, 3),
    "shutdown": (0, 0x3D),
    "torque_enable": (0, 1),
    "led": (0, 1),
    "status_return_level": (0, 2),
    "velocity_i_gain": (0, 16_383),
    "velocity_p_gain": (0, 16_383),
    "position_d_gain": (0, 16_383),
    "position_i_gain": (0, 16_383),
    "position_p_gain": (0, 16_383),
    "bus_watchdog": (0, 127),
    "profile_acceleration": (0, 32_767),
    "profile_velocity": (0, 32_767),
    "goal_pwm": (-FULL_PWM, FULL_PWM),
    "goal_current": (-1750, 1750),
    "goal_velocity": (-2047, 2047),
    "goal_position": (-TURNS, TURNS),
}
_PLACES = {r.address: name for name, r in REGISTERS.items() if name != "present_load"}


class XServo:
    """One servo: its registers, and the joint behind it."""

    def __init__(self, plant: Plant, spec: TwinServo, baud: int) -> None:
        self.plant, self.spec, self.joint = plant, spec, spec.joint
        self.model = _MODELS.get(spec.model, _XL330_M288)
        self.memory = bytearray(700)
        self._line_baud = baud  # of a twin at a speed that the register cannot name
        self._pushing_s = 0.0
        self._turns = 0  # whole turns, in counts, taken off the encoder's count when it was last set back
        m = self.model
        factory = {
            "model_number": spec.model,
            "firmware_version": 52 if m.current else 46,
            "id": spec.id,
            "baud_rate": next((code for code, rate in BAUD_RATES.items() if rate == baud), 255),
            "return_delay_time": 250,
            "operating_mode": POSITION,
            "secondary_id": 255,
            "protocol_type": 2,
            "moving_threshold": 10,
            "temperature_limit": m.temperature_limit,
            "max_voltage_limit": m.max_voltage,
            "min_voltage_limit": m.min_voltage,
            "pwm_limit": FULL_PWM,
            "current_limit": 1750 if m.current else 0,
            "velocity_limit": m.velocity_limit,
            "max_position_limit": COUNTS_PER_TURN - 1,
            "shutdown": m.shutdown,
        }
        for name, value in (factory | dict(spec.registers)).items():
            self.set(name, value)
        self.power_on()

    def get(self, name: str) -> int:
        r = REGISTERS[name]
        return int.from_bytes(self.memory[r.address : r.address + r.size], "little", signed=r.signed)

    def set(self, name: str, value: int) -> None:
        r = REGISTERS[name]
        self.memory[r.address : r.address + r.size] = value.to_bytes(r.size, "little", signed=r.signed)

    @property
    def baud(self) -> int:
        return BAUD_RATES.get(self.get("baud_rate"), self._line_baud)

    @property
    def alert(self) -> int:
        return ALERT if self.get("hardware_error_status") else 0

    def power_on(self) -> None:
        """Set registers in RAM to the factory's values, or to those in `spec`; no latched faults, torque
        off."""
        self.memory[64:] = bytes(len(self.memory) - 64)
        m = self.model
        ram = {
            "status_return_level": 2,
            "velocity_i_gain": 1600,
            "velocity_p_gain": 180,
            "position_p_gain": 400,
        }
        for name, value in (ram | dict(self.spec.registers)).items():
            if not REGISTERS[name].eeprom and name != "torque_enable":
                self.set(name, value)
        self.set("goal_pwm", self.get("pwm_limit"))
        if m.current:
            self.set("goal_current", self.get("current_limit"))
        self._pushing_s = 0.0
        self._set_back()
        self.set("goal_position", round(self.position()))
        self.plant.torque[self.joint] = 0.0
        self._limit_effort()

    # position

    def _encoder_counts(self) -> float:
        """Counts of the encoder over several turns, before any offset."""
        counts = self.spec.zero_count + self.spec.direction * self.plant.position[
            self.joint
        ] * COUNTS_PER_TURN / (2 * math.pi)
        return -counts if self.get("drive_mode") & 1 else counts

    def _offset(self) -> int:
        offset = self.get("homing_offset")
        usable = self.get("operating_mode") != POSITION or abs(offset) <= OFFSET_IN_POSITION_MODE
        return offset if usable else 0

    def _set_back(self) -> None:
        """Count from within one turn again, as at power on and wherever position mode begins."""
        self._turns = math.floor(self._encoder_counts() / COUNTS_PER_TURN) * COUNTS_PER_TURN

    def position(self) -> float:
        return self._encoder_counts() - self._turns + self._offset()

    def _push_goal(self, dt_s: float | None) -> None:
        """Move the plant's goal to the goal register: at once, or for `dt_s` at the profile's velocity."""
        counts = self.get("goal_position") - self._offset() + self._turns
        counts = -counts if self.get("drive_mode") & 1 else counts
        goal = (counts - self.spec.zero_count) * self.spec.direction * 2 * math.pi / COUNTS_PER_TURN
        pace = self.get("profile_velocity") * RPM_UNIT
        now = self.plant.goal[self.joint]
        if pace > 0:
            step = pace * (dt_s or 0.0)
            goal = now + min(max(goal - now, -step), step)
        self.plant.goal[self.joint] = goal

    # what goes on by itself

    def step(self, dt_s: float, volts: float) -> None:
        plant, joint = self.plant, self.joint
        status = self.get("hardware_error_status")
        if not self.get("min_voltage_limit") <= round(volts * 10) <= self.get("max_voltage_limit"):
            status |= INPUT_VOLTAGE
        full = abs(plant.effort[joint]) >= 0.95 * self.model.stall_nm and abs(plant.velocity[joint]) < 0.05
        self._pushing_s = self._pushing_s + dt_s if full and plant.torque[joint] else 0.0
        if self._pushing_s > OVERLOAD_S:
            status |= OVERLOAD
        self.latch(status)
        if self.get("torque_enable"):
            self._push_goal(dt_s)

    def latch(self, status: int) -> None:
        """Set bits of the hardware error status; those in `shutdown` let the joint go."""
        self.set("hardware_error_status", self.get("hardware_error_status") | status)
        if self._shut_down() and self.get("torque_enable"):
            self.set("torque_enable", 0)
            self.plant.torque[self.joint] = 0.0

    def _shut_down(self) -> bool:
        return bool(self.get("hardware_error_status") & self.get("shutdown"))

    def _refresh(self, volts: float) -> None:
        plant, joint, m = self.plant, self.joint, self.model
        sign = self.spec.direction * (-1 if self.get("drive_mode") & 1 else 1)
        velocity = round(sign * plant.velocity[joint] / RPM_UNIT)
        share = min(max(sign * plant.effort[joint] / m.stall_nm, -1.0), 1.0)
        self.set("realtime_tick", time.monotonic_ns() // 1_000_000 % 32_768)
        self.set("moving", int(abs(velocity) > self.get("moving_threshold")))
        self.set("present_pwm", round(share * FULL_PWM))
        self.set("present_current", round(share * (m.stall_ma if m.current else 1000)))
        self.set("present_velocity", velocity)
        self.set("present_position", round(self.position()))
        self.set("present_voltage", round(volts * 10))
        self.set("present_temperature", 31)

    # what a client may do

    def read(self, address: int, size: int, volts: float) -> tuple[int, bytes]:
        """Error and data; the addresses between registers read 0."""
        if not size or address + size > len(self.memory):
            return self.alert | ACCESS_ERROR, b""
        self._refresh(volts)
        return self.alert, bytes(self.memory[address : address + size])

    def write(self, address: int, data: bytes) -> int:
        """The error; nothing is written with one."""
        values: dict[str, int] = {}
        at = 0
        while at < len(data):
            name = _PLACES.get(address + at)
            if name is None or name not in _WRITABLE:
                return self.alert | ACCESS_ERROR
            r = REGISTERS[name]
            if at + r.size > len(data):
                return self.alert | LENGTH_ERROR
            if r.eeprom and self.get("torque_enable"):
                return self.alert | ACCESS_ERROR
            value = int.from_bytes(data[at : at + r.size], "little", signed=r.signed)
            if error := self._check(name, value):
                return self.alert | error
            values[name] = value
            at += r.size
        for name, value in values.items():
            self._put(name, value)
        return self.alert

    def _check(self, name: str, value: int) -> int:
        low, high = _WRITABLE[name]
        if not low <= value <= high:
            return RANGE_ERROR
        mode = self.get("operating_mode")
        if name in ("current_limit", "goal_current") and not self.model.current:
            return ACCESS_ERROR
        if name == "operating_mode" and value == CURRENT_BASED_POSITION and not self.model.current:
            return RANGE_ERROR
        if name == "goal_position" and mode == POSITION:
            low, high = self.get("min_position_limit"), self.get("max_position_limit")
        for quantity in ("pwm", "current", "velocity"):
            if name == f"goal_{quantity}":
                low, high = -self.get(f"{quantity}_limit"), self.get(f"{quantity}_limit")
        return 0 if low <= value <= high else LIMIT_ERROR

    def _put(self, name: str, value: int) -> None:
        if name == "torque_enable":
            return self._switch(bool(value))
        self.set(name, value)
        if name in ("operating_mode", "drive_mode") and self.get("operating_mode") == POSITION:
            self._set_back()
        if name in ("operating_mode", "pwm_limit", "current_limit"):
            self.set("goal_pwm", self.get("pwm_limit"))
            if self.model.current:
                self.set("goal_current", self.get("current_limit"))
        self._limit_effort()
        if name == "goal_position" and self.get("torque_enable"):
            self._push_goal(None)

    def _switch(self, on: bool) -> None:
        if on and self._shut_down():
            return  # only a reboot helps; the reply's alert bit says that something is wrong
        if on and not self.get("torque_enable"):
            if self.get("operating_mode") == POSITION:
                self._set_back()
            self.plant.goal[self.joint] = self.plant.position[self.joint]  # where a profile starts
        self.set("torque_enable", int(on))
        self._limit_effort()
        self.plant.torque[self.joint] = float(on)
        if on:  # to the old goal register: the arm of a client that forgets to set it jumps
            self._push_goal(None)

    def _limit_effort(self) -> None:
        share = abs(self.get("goal_pwm")) / FULL_PWM
        if self.get("operating_mode") == CURRENT_BASED_POSITION:
            share = min(share, abs(self.get("goal_current")) / self.model.stall_ma)
        self.plant.max_effort[self.joint] = share * self.model.stall_nm
