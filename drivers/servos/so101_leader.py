"""The leader of an SO-101: moved by hand and read. It has torque only where its user asks for that, so that
it follows while a policy drives: it has other gears, and a hand is on it."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import setting
from .feetech import FeetechBus
from .group import FEETECH, Servo, ServoGroup
from .servo_arm import ServoArm
from .so101 import JOINTS, STS3215


@dataclass(frozen=True)
class Config:
    """The fields of `[leaders.NAME]` with `driver = "so101-leader"`."""

    port: str
    """Its serial port, by a name that stays: `/dev/serial/by-id/…` (`ulna devices` lists them)."""
    calibration: str
    """File in LeRobot's form; `ulna calibrate` makes one."""
    baud: int = setting(1_000_000, 19_200, 1_000_000, "bit/s")
    """Speed of the bus; the default is the servos' usual one."""
    bus_hz: float = setting(100.0, 10, 250, "Hz")
    """Readings of every joint a second."""
    stale_s: float = setting(0.5, 0.05, 5, "s")
    """A joint that is silent for longer counts as lost in `health`."""
    follows: bool = False
    """With `ulna deploy --takeover leader`: while the policy drives it goes, weakly and slowly, where the arm
    is, so that a hand finds it there. It gets torque once it has rested, and loses it before a person takes
    over."""
    follow_torque: int = setting(200, 50, 500, "0.1 %")
    """The most that it may push with then, of its stall torque: a hand is stronger."""


class SO101Leader(ServoArm):
    follows: tuple[int, ...] = ()


def make(name: str, config: Config) -> SO101Leader:
    setup = {"operating_mode": 0, "torque_limit": config.follow_torque} if config.follows else {}
    load = config.follow_torque if config.follows else 1000
    servos = [Servo(i, STS3215, load, setup) for i in range(1, 7)]
    group = ServoGroup(FeetechBus(config.port, config.baud), FEETECH, JOINTS, servos, config.calibration)
    arm = SO101Leader(name, group, bus_hz=config.bus_hz, stale_s=config.stale_s, commanded=config.follows)
    arm.follows = tuple(range(6)) if config.follows else ()
    return arm
