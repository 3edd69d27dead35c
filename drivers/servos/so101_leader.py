"""The leader of an SO-101: moved by hand and read. Its torque is never switched on: it has other gears, and a
hand is on it."""

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


def make(name: str, config: Config) -> ServoArm:
    servos = [Servo(i, STS3215) for i in range(1, 7)]
    group = ServoGroup(FeetechBus(config.port, config.baud), FEETECH, JOINTS, servos, config.calibration)
    return ServoArm(name, group, bus_hz=config.bus_hz, stale_s=config.stale_s, commanded=False)
