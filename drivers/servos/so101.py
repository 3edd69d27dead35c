"""The SO-101 (and SO-100): six Feetech STS3215 on one bus, as a robot's arm. Its leader is
`drivers.servos.so101_leader`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..arm import Joints
from ..config import setting
from .feetech import FeetechBus
from .group import FEETECH, Servo, ServoGroup
from .servo_arm import ServoArm

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STALL_TORQUE = 1.91  # N·m, STS3215 of 1:345 at 7.4 V (Feetech's data sheet)
# Limits as in the published model of the arm. `sim.robots` has the same numbers; a test compares them.
JOINTS = Joints(
    names=NAMES,
    units=("rad",) * 6,
    lower=np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.79253, -0.174533]),
    upper=np.array([1.91986, 1.74533, 1.69, 1.65806, 2.79253, 1.74533]),
    max_velocity=np.full(6, 4.7),
    max_effort=np.array([1.91, 1.91, 1.91, 1.91, 1.91, 0.95]),
)
STS3215 = 777
# LeRobot's values: the servo answers at once, follows without a ramp of its own, and does not shake
SETTINGS = {
    "return_delay_time": 0,
    "operating_mode": 0,
    "p_coefficient": 16,
    "i_coefficient": 0,
    "d_coefficient": 32,
    "maximum_acceleration": 254,
    "acceleration": 254,
}


@dataclass(frozen=True)
class Config:
    """The fields of `[arms.NAME]` with `driver = "so101"`."""

    port: str
    """Its serial port, by a name that stays: `/dev/serial/by-id/…` (`ulna devices` lists them)."""
    calibration: str
    """File in LeRobot's form; `ulna calibrate` makes one."""
    baud: int = setting(1_000_000, 19_200, 1_000_000, "bit/s")
    """Speed of the bus; the default is the servos' usual one."""
    bus_hz: float = setting(100.0, 10, 250, "Hz")
    """Cycles of the bus a second: each writes the goals and reads every joint."""
    max_velocity: float = setting(4.7, 0.05, 4.7, "rad/s")
    """Of every joint; a faster command is slowed down to it."""
    watchdog_s: float = setting(0.5, 0.05, 5, "s")
    """Without a command for longer the arm holds."""
    stale_s: float = setting(0.5, 0.05, 5, "s")
    """A joint that is silent for longer makes the arm hold."""
    max_first_step: float = setting(0.5, 0.01, 4, "rad")
    """How far from where the arm is its first command after `enable` may be, by joint."""
    torque_off_on_close: bool = True
    """false: the arm keeps its torque when it is closed, and stays where it is."""
    gripper_torque: int = setting(500, 50, 1000, "0.1 %")
    """The most that the gripper may squeeze with, of its stall torque. This and the next two keep its motor
    from burning out; the defaults are LeRobot's."""
    gripper_protection_current: int = setting(250, 10, 500, "6.5 mA")
    """The gripper's servo protects itself after it took this current for 2 s."""
    gripper_overload_torque: int = setting(25, 5, 100, "%")
    """The gripper's servo protects itself after it pushed with this share of its stall torque for 2 s."""


def make(name: str, config: Config) -> ServoArm:
    gripper = {
        "max_torque": config.gripper_torque,
        "torque_limit": config.gripper_torque,
        "protection_current": config.gripper_protection_current,
        "overload_torque": config.gripper_overload_torque,
    }
    servos = [Servo(i, STS3215, 1000, SETTINGS) for i in range(1, 6)]
    # what it may push with for longer than its protection's 2 s
    lasting = min(config.gripper_torque, 10 * config.gripper_overload_torque)
    servos.append(Servo(6, STS3215, lasting, SETTINGS | gripper))
    effort = JOINTS.max_effort.copy()
    effort[5] = STALL_TORQUE * config.gripper_torque / 1000
    joints = replace(JOINTS, max_velocity=np.full(6, config.max_velocity), max_effort=effort)
    bus = FeetechBus(config.port, config.baud)
    return ServoArm(
        name,
        ServoGroup(bus, FEETECH, joints, servos, config.calibration),
        bus_hz=config.bus_hz,
        watchdog_s=config.watchdog_s,
        max_first_step=config.max_first_step,
        stale_s=config.stale_s,
        torque_off_on_close=config.torque_off_on_close,
    )
