"""A camera's `"type": "ulna"` and its options."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.cameras.configs import CameraConfig


@CameraConfig.register_subclass("ulna")
@dataclass(kw_only=True)
class UlnaCameraConfig(CameraConfig):
    """fps, width and height are the file's; LeRobot wants them said for the camera of a robot of its own."""

    file: str
    """A robot's TOML file."""
    view: str
    """The name of its table `[cameras.NAME]`."""
