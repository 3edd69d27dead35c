"""The registers of Dynamixel's X series (XL330, XL430, XC, XM, …), and what their errors mean.

From the Robotis e-Manual, control tables of XL330-M288 and XL430-W250. Positions are in counts, 4096 a turn.
Units: `profile_velocity`, `present_velocity` 0.229 rev/min; `profile_acceleration` 214.577 rev/min²;
`*_current` 1 mA (XL330), 2.69 mA (XM430); `present_load` (XL430, in the place of `present_current`) 0.1 %;
`*_pwm` 0.113 %; `present_voltage` 0.1 V; `return_delay_time` 2 µs; `present_temperature` 1 °C."""

from __future__ import annotations

from collections.abc import Mapping

from .bus import Register

MODELS = {
    1060: "XL430-W250",
    1090: "2XL430-W250",
    1190: "XL330-M077",
    1200: "XL330-M288",
    1070: "XC430-W150",
    1080: "XC430-W240",
    1020: "XM430-W350",
    1120: "XM540-W270",
}
BAUD_RATES = {0: 9_600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}

# name: address, size, signed
_MAP = {
    "model_number": (0, 2, False),
    "firmware_version": (6, 1, False),
    "id": (7, 1, False),
    "baud_rate": (8, 1, False),
    "return_delay_time": (9, 1, False),
    "drive_mode": (10, 1, False),
    "operating_mode": (11, 1, False),
    "secondary_id": (12, 1, False),
    "protocol_type": (13, 1, False),
    "homing_offset": (20, 4, True),
    "moving_threshold": (24, 4, False),
    "temperature_limit": (31, 1, False),
    "max_voltage_limit": (32, 2, False),
    "min_voltage_limit": (34, 2, False),
    "pwm_limit": (36, 2, False),
    "current_limit": (38, 2, False),
    "velocity_limit": (44, 4, False),
    "max_position_limit": (48, 4, False),
    "min_position_limit": (52, 4, False),
    "startup_configuration": (60, 1, False),
    "shutdown": (63, 1, False),
    "torque_enable": (64, 1, False),
    "led": (65, 1, False),
    "status_return_level": (68, 1, False),
    "registered_instruction": (69, 1, False),
    "hardware_error_status": (70, 1, False),
    "velocity_i_gain": (76, 2, False),
    "velocity_p_gain": (78, 2, False),
    "position_d_gain": (80, 2, False),
    "position_i_gain": (82, 2, False),
    "position_p_gain": (84, 2, False),
    "bus_watchdog": (98, 1, False),
    "goal_pwm": (100, 2, True),
    "goal_current": (102, 2, True),
    "goal_velocity": (104, 4, True),
    "profile_acceleration": (108, 4, False),
    "profile_velocity": (112, 4, False),
    "goal_position": (116, 4, True),
    "realtime_tick": (120, 2, False),
    "moving": (122, 1, False),
    "moving_status": (123, 1, False),
    "present_pwm": (124, 2, True),
    "present_current": (126, 2, True),
    "present_load": (126, 2, True),
    "present_velocity": (128, 4, True),
    "present_position": (132, 4, True),
    "velocity_trajectory": (136, 4, True),
    "position_trajectory": (140, 4, True),
    "present_voltage": (144, 2, False),
    "present_temperature": (146, 1, False),
}
EEPROM_END = 64
REGISTERS: Mapping[str, Register] = {
    name: Register(address, size, signed=signed, eeprom=address < EEPROM_END)
    for name, (address, size, signed) in _MAP.items()
}

POSITION, EXTENDED_POSITION, CURRENT_BASED_POSITION = 3, 4, 5  # of operating_mode

ERRORS = {
    1: "it could not carry out the instruction",
    2: "it does not know the instruction",
    3: "the packet reached it garbled; look at the wiring and its length",
    4: "the value is outside of what the register may hold",
    5: "the value has fewer bytes than the register",
    6: "the value is beyond the limits set in the servo (min_position_limit, max_position_limit, "
    "current_limit, pwm_limit, …)",
    7: "the register is read-only, does not exist, or is in the EEPROM and locked because torque is on",
}
RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 4, 5, 6, 7
INSTRUCTION_ERROR, CRC_ERROR = 2, 3

_HARDWARE = {
    0x01: "input voltage: the supply is outside of the servo's limits; check the power adapter, "
    "then switch the power off and on",
    0x04: "overheating: let the servo cool down, lessen its load, then switch the power off and on",
    0x08: "motor encoder: the servo cannot read its position; switch the power off and on, "
    "and if it comes back replace the servo",
    0x10: "electrical shock: a short circuit, or too weak a supply for the motor; check cables and power, "
    "then switch the power off and on",
    0x20: "overload: the servo pushed too hard for too long and let go; free the joint, "
    "then switch the power off and on",
}

ALERT_WORDS = (
    "hardware error (overload, overheating, supply voltage, encoder or electrical shock): read "
    "hardware_error_status, mend the cause, then switch the power off and on"
)


def describe_hardware(status: int) -> tuple[str, ...]:
    """The faults in `hardware_error_status`, each as a sentence that says what to do."""
    faults = tuple(words for bit, words in _HARDWARE.items() if status & bit)
    rest = status & ~sum(_HARDWARE)
    return (*faults, f"unknown hardware error 0x{rest:02x}: switch the power off and on") if rest else faults
