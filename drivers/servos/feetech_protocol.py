"""Protocol 0 of Feetech STS/SMS servos: packets, registers and status bits, shared by driver and twin.

From Feetech's communication protocol manual and its STS3215 memory table. A packet is FF FF, id, length,
instruction (or status), parameters, and the inverted sum of all but the header. Numbers have the low byte
first; negative ones are sign and magnitude."""

from __future__ import annotations

from .bus import Register

PING, READ, WRITE, REBOOT, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x08, 0x82, 0x83
BROADCAST = 0xFE
STATUS_BYTES = 6  # of a status packet without data
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)  # by value of baud_rate
MODELS = {777: "STS3215", 2825: "STS3250", 11272: "SM8512BL", 1284: "SCS0009"}

REGISTERS: dict[str, Register] = {
    "firmware_major_version": Register(0, 1, eeprom=True),
    "firmware_minor_version": Register(1, 1, eeprom=True),
    "model_number": Register(3, 2, eeprom=True),
    "id": Register(5, 1, eeprom=True),
    "baud_rate": Register(6, 1, eeprom=True),  # index into BAUDS
    "return_delay_time": Register(7, 1, eeprom=True),  # 2 µs
    "response_status_level": Register(8, 1, eeprom=True),
    "min_position_limit": Register(9, 2, eeprom=True),  # counts; both 0: no limits
    "max_position_limit": Register(11, 2, eeprom=True),
    "max_temperature": Register(13, 1, eeprom=True),  # °C
    "max_voltage": Register(14, 1, eeprom=True),  # 0.1 V
    "min_voltage": Register(15, 1, eeprom=True),
    "max_torque": Register(16, 2, eeprom=True),  # 0.1 %; torque_limit after power comes
    "phase": Register(18, 1, eeprom=True),  # bit 0x10: positions count turns instead of wrapping
    "unloading_condition": Register(19, 1, eeprom=True),  # faults that switch the motor off, bits of STATUS
    "led_alarm_condition": Register(20, 1, eeprom=True),
    "p_coefficient": Register(21, 1, eeprom=True),
    "d_coefficient": Register(22, 1, eeprom=True),
    "i_coefficient": Register(23, 1, eeprom=True),
    "minimum_startup_force": Register(24, 2, eeprom=True),
    "cw_dead_zone": Register(26, 1, eeprom=True),
    "ccw_dead_zone": Register(27, 1, eeprom=True),
    "protection_current": Register(28, 2, eeprom=True),  # 6.5 mA
    "angular_resolution": Register(30, 1, eeprom=True),
    "homing_offset": Register(31, 2, sign_bit=11, eeprom=True),  # present = encoder - offset
    "operating_mode": Register(33, 1, eeprom=True),  # 0 position, 1 velocity, 2 PWM, 3 steps
    "protective_torque": Register(34, 1, eeprom=True),  # %, what is left after an overload
    "protection_time": Register(35, 1, eeprom=True),  # 10 ms
    "overload_torque": Register(36, 1, eeprom=True),  # %
    "velocity_p_coefficient": Register(37, 1, eeprom=True),
    "over_current_protection_time": Register(38, 1, eeprom=True),  # 10 ms
    "velocity_i_coefficient": Register(39, 1, eeprom=True),
    "torque_enable": Register(40, 1),
    "acceleration": Register(41, 1),  # 100 counts/s²
    "goal_position": Register(42, 2, sign_bit=15),
    "goal_time": Register(44, 2),
    "goal_velocity": Register(46, 2, sign_bit=15),  # counts/s; 0: as fast as it can
    "torque_limit": Register(48, 2),  # 0.1 %
    "lock": Register(55, 1),  # 1: EEPROM takes nothing
    "present_position": Register(56, 2, sign_bit=15),
    "present_velocity": Register(58, 2, sign_bit=15),  # counts/s
    "present_load": Register(60, 2, sign_bit=10),  # 0.1 % of the stall torque
    "present_voltage": Register(62, 1),  # 0.1 V
    "present_temperature": Register(63, 1),  # °C
    "async_write_flag": Register(64, 1),
    "status": Register(65, 1),
    "moving": Register(66, 1),
    "present_current": Register(69, 2, sign_bit=15),  # 6.5 mA
    "goal_position_2": Register(71, 2, sign_bit=15),
    "moving_velocity_threshold": Register(80, 1),
    "maximum_velocity_limit": Register(84, 1),
    "maximum_acceleration": Register(85, 1),
    "acceleration_multiplier": Register(86, 1),
}

STATUS = {
    0x01: "supply voltage out of range: measure it at the servo, and look at the power supply and the plugs",
    0x02: "angle sensor fault: switch the power off and on; if it stays, replace the servo",
    0x04: "too hot: switch the torque off and let it cool down, then load it less",
    0x08: "too much current: free what blocks the joint, then switch the power off and on",
    0x20: "overload, the torque is off: free what blocks the joint, then switch the power off and on",
}


def packet(servo: int, instruction: int, parameters: bytes = b"") -> bytes:
    """A request; with a status byte for `instruction` a servo's reply."""
    if len(parameters) > 253:
        raise ValueError(
            f"one packet to Feetech servos holds 253 bytes, not {len(parameters)}: ask fewer at a time"
        )
    body = bytes((servo, len(parameters) + 2, instruction)) + parameters
    return b"\xff\xff" + body + bytes((~sum(body) & 0xFF,))


def packets(data: bytes | bytearray, limit: int = 255) -> tuple[list[tuple[int, int, bytes]], int]:
    """The first `limit` valid packets in `data`, each (id, instruction or status, parameters), and the index
    behind the last of them. Where a checksum does not fit only one byte is skipped, since a real packet may
    begin inside the false one."""
    valid_packets: list[tuple[int, int, bytes]] = []
    at, end_of_last = 0, 0
    while len(valid_packets) < limit:
        at = data.find(b"\xff\xff", at)
        if at < 0 or at + STATUS_BYTES > len(data):
            break
        end = at + data[at + 3] + 4
        if (
            data[at + 2] == 0xFF
            or data[at + 3] < 2
            or end > len(data)
            or ~sum(data[at + 2 : end - 1]) & 0xFF != data[end - 1]
        ):
            at += 1
        else:
            valid_packets.append((data[at + 2], data[at + 4], bytes(data[at + 5 : end - 1])))
            at = end_of_last = end
    return valid_packets, end_of_last


def encode(register: Register, value: int) -> bytes:
    """ValueError when the register cannot hold `value`."""
    bits = 8 * register.size if register.sign_bit is None else register.sign_bit
    low = 0 if register.sign_bit is None else 1 - (1 << bits)
    if not low <= value < 1 << bits:
        raise ValueError(f"it takes {low}..{(1 << bits) - 1}, not {value}")
    return (value if value >= 0 else -value | 1 << bits).to_bytes(register.size, "little")


def decode(register: Register, data: bytes | bytearray) -> int:
    value = int.from_bytes(data, "little")
    if register.sign_bit is None or not value >> register.sign_bit & 1:
        return value
    return -(value & ~(1 << register.sign_bit))
