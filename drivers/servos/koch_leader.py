"""The leader of a Koch arm: six Dynamixel XL330-M077, moved by hand and read. Its gripper may spring open
like a trigger. The other joints have torque only where its user asks for that, so that it follows while a
policy drives: it is smaller than its follower, and a hand is on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..config import setting
from .dynamixel import DynamixelBus
from .dynamixel_registers import CURRENT_BASED_POSITION
from .group import DYNAMIXEL, Servo, ServoGroup
from .koch import JOINTS, QUICK, XL330_STALL_MA
from .servo_arm import ServoArm

XL330_M077 = 1190
GRIPPER = 5
DRIVE_MODES = {"elbow_flex": 1}  # its elbow is mounted the other way round than the follower's


@dataclass(frozen=True)
class Config:
    """The fields of `[leaders.NAME]` with `driver = "koch-leader"`."""

    port: str
    """Its serial port, by a name that stays: `/dev/serial/by-id/…` (`ulna devices` lists them)."""
    calibration: str
    """File in LeRobot's form; `ulna calibrate` makes one."""
    baud: int = setting(1_000_000, 9_600, 4_000_000, "bit/s")
    """Speed of the bus; the default is the servos' usual one."""
    bus_hz: float = setting(100.0, 10, 250, "Hz")
    """Readings of every joint a second."""
    stale_s: float = setting(0.5, 0.05, 5, "s")
    """A joint that is silent for longer counts as lost in `health`."""
    spring_current: int = setting(150, 0, 400, "mA")
    """Current of the gripper's spring; at 0 there is none."""
    follows: bool = False
    """With `ulna deploy --takeover leader`: while the policy drives it goes, weakly and slowly, where the arm
    is, so that a hand finds it there. It gets torque once it has rested, and loses it before a person takes
    over. A gripper with a spring does not follow."""
    follow_current: int = setting(400, 50, 1000, "mA")
    """The most that a joint may push with then (1470 is its stall, 0.215 N·m): a hand is stronger. Where it
    cannot carry the leader, the leader sags and lets go."""


class KochLeader(ServoArm):
    sprung = False
    follows: tuple[int, ...] = ()


def make(name: str, config: Config) -> KochLeader:
    def limited(current: int) -> Mapping[str, int]:
        return QUICK | {"operating_mode": CURRENT_BASED_POSITION, "goal_current": current}

    sprung = (GRIPPER,) if config.spring_current else ()
    servos = [Servo(i, XL330_M077, XL330_STALL_MA, QUICK) for i in range(1, 7)]
    if config.follows:
        servos = [
            Servo(i, XL330_M077, config.follow_current, limited(config.follow_current)) for i in range(1, 7)
        ]
    if sprung:
        servos[GRIPPER] = Servo(6, XL330_M077, XL330_STALL_MA, limited(config.spring_current))
    group = ServoGroup(
        DynamixelBus(config.port, config.baud), DYNAMIXEL, JOINTS, servos, config.calibration, ("gripper",)
    )
    arm = KochLeader(
        name,
        group,
        bus_hz=config.bus_hz,
        stale_s=config.stale_s,
        commanded=config.follows,
        sprung=sprung,
        spring_to=np.asarray(JOINTS.upper),
    )
    arm.sprung = bool(sprung)
    arm.follows = tuple(j for j in range(6) if j not in sprung) if config.follows else ()
    return arm
