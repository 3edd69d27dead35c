"""The Koch v1.1: two Dynamixel XL430-W250 and four XL330-M288 on one bus, as a robot's arm. Its leader is
`drivers.servos.koch_leader`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..arm import Joints
from ..config import require_known, setting
from .dynamixel import DynamixelBus
from .dynamixel_registers import CURRENT_BASED_POSITION, EXTENDED_POSITION
from .group import DYNAMIXEL, Servo, ServoGroup
from .servo_arm import ServoArm

XL430, XL330 = 1060, 1200
MODELS = ("koch", "so101")  # the latter is what moves a Koch's twin
# No limits of this arm are published: a body joint goes over its calibrated range, with 0 in the middle. The
# gripper has the SO-101's numbers, from closed (where the calibrated range begins) to open, so that the
# grippers of both arms compare.
JOINTS = Joints(
    names=("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"),
    units=("rad",) * 6,
    lower=np.array([-np.pi] * 5 + [-0.174533]),
    upper=np.array([np.pi] * 5 + [1.74533]),
    max_velocity=np.full(6, 4.7),
    # stall torques, e-Manual: XL430 at 12 V, XL330 at 5 V
    max_effort=np.array([1.5, 1.5, 0.52, 0.52, 0.52, 0.35]),
)
XL330_STALL_MA = 1470  # at 5 V, e-Manual; the XL430 reports its load in 0.1 % instead
QUICK = {"return_delay_time": 0}
# Extended: a joint whose zero was assembled inside its travel goes on past it
BODY = QUICK | {"operating_mode": EXTENDED_POSITION}


@dataclass(frozen=True)
class Config:
    """The fields of `[arms.NAME]` with `driver = "koch"`."""

    port: str
    """Its serial port, by a name that stays: `/dev/serial/by-id/…` (`ulna devices` lists them)."""
    calibration: str
    """File in LeRobot's form; `ulna calibrate` makes one."""
    baud: int = setting(1_000_000, 9_600, 4_000_000, "bit/s")
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
    gripper_current: int = setting(1000, 50, 1470, "mA")
    """The most that the gripper may squeeze with."""
    model: str = "koch"
    """Whose geometry the arm has, of `MODELS`: `koch`, or `so101` for a Koch's twin. Only moving the tip by
    hand needs it."""


def make(name: str, config: Config) -> ServoArm:
    """The arm, closed. DeviceError: a model that there is none of."""
    require_known(f"model for {name}:", config.model, MODELS)
    gripper = QUICK | {"operating_mode": CURRENT_BASED_POSITION, "goal_current": config.gripper_current}
    # LeRobot's values: with the factory's it sags
    elbow = {"position_p_gain": 1500, "position_i_gain": 0, "position_d_gain": 600}
    servos = [
        Servo(1, XL430, 1000, BODY),
        Servo(2, XL430, 1000, BODY),
        Servo(3, XL330, XL330_STALL_MA, BODY | elbow),
        Servo(4, XL330, XL330_STALL_MA, BODY),
        Servo(5, XL330, XL330_STALL_MA, BODY),
        Servo(6, XL330, config.gripper_current, gripper),
    ]
    effort = JOINTS.max_effort.copy()
    effort[5] = 0.52 * config.gripper_current / XL330_STALL_MA
    joints = replace(JOINTS, max_velocity=np.full(6, config.max_velocity), max_effort=effort)
    return ServoArm(
        name,
        ServoGroup(DynamixelBus(config.port, config.baud), DYNAMIXEL, joints, servos, config.calibration),
        bus_hz=config.bus_hz,
        watchdog_s=config.watchdog_s,
        max_first_step=config.max_first_step,
        stale_s=config.stale_s,
        torque_off_on_close=config.torque_off_on_close,
    )
