"""`--teleop.type=ulna` and its options."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.teleoperators.config import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("ulna")
@dataclass(kw_only=True)
class UlnaTeleoperatorConfig(TeleoperatorConfig):
    file: str = "sim:so101"
    """The robot's file, which names its leader and its devices; the same as `--robot.file`."""
    device: str = "leader"
    """leader, gamepad, spacemouse, keyboard, browser, or an installed package's; in simulation also expert,
    the scripted demonstrator."""
    units: str = "degrees"
    """Of a leader that moves a robot of LeRobot's own: what that robot's joints are in, degrees or
    radians."""
