"""`--robot.type=ulna` and its options."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("ulna")
@dataclass(kw_only=True)
class UlnaRobotConfig(RobotConfig):
    file: str = "sim:so101"
    """A robot's TOML file, or one of Ulna's simulated robots."""
    task: str = "lift"
    """Of a simulated robot: its scene."""
    seed: int = 0
    """Of the scene of a simulated robot, or a twin, when it is connected."""
    views: str = ""
    """Which of its cameras are observed, with commas; all by default."""
    units: str = "degrees"
    """What the joints of an SO-101 or Koch are in: degrees, as LeRobot's own drivers have them; percent, of
    the calibrated range; or radians. Other arms are in radians and metres."""
