"""The TOML file of a robot that was just set up, with comments for whoever edits it next."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...drivers.arm import DeviceError
from ...drivers.devices import CameraNode, DepthCamera
from ..config import read_config
from .kit import KitArm

USUAL = (640, 480)  # pixels, width and height
HEAD = """\
# {kit}, written by `ulna setup`. It is yours to edit: docs/devices.md has every table and field.
name = {name}
control_hz = 20.0                             # decisions a second
# home = [0.0, -0.6, 0.7, 1.2, 0.0, 0.6]      # rad; where episodes begin; without it: wherever the arm is
"""
COMMENTS = {"arms.arm": "the follower", "leaders.arm": "leads the arm of the same name"}
SAFETY = """
[safety]                                      # docs/safety.md has every field
speed = 1.5                                   # rad/s
table = 0.0                                   # m, its height in the arm's base frame; false: there is none
"""
NO_CAMERA = """
# No camera was plugged in. One looks like this; `ulna devices` lists them:
# [cameras.front]
# driver = "opencv"
# device = "/dev/v4l/by-id/…"                 # or http://, rtsp://
# height = 480
# width = 640
# fps = 30.0
"""
CAMERAS = """
# Cameras that were plugged in. Take the # away from those to use, and call them as you like.
"""


class RobotFile:
    """The file at `path`, which may not exist yet. DeviceError: it is no robot's file of this kit."""

    def __init__(self, path: Path, kit: str) -> None:
        self.path, self.kit = path, kit
        self._config: dict[str, Any] = read_config(str(path)) if path.exists() else {}
        arms = self._config.get("arms", {})
        if self._config and [(n, table.get("driver")) for n, table in arms.items()] != [("arm", kit)]:
            raise DeviceError(f"{path} is the file of another robot than one {kit}: give another --out")

    def table(self, arm: KitArm) -> dict[str, Any] | None:
        """What the file says of `arm`; None when it says nothing."""
        group, name = arm.group_and_name
        return self._config.get(group, {}).get(name)

    def add(
        self,
        arm: KitArm,
        port: str,
        calibration: Path,
        cameras: Sequence[CameraNode],
        depth: Sequence[DepthCamera],
    ) -> None:
        """Write the file with a table for `arm`, or add that table to it; all at once, so that a killed
        process leaves the file as it was. DeviceError: it cannot be written."""
        group, name = arm.group_and_name
        table = (
            f"\n[{group}.{name}]{' ' * max(1, 44 - len(group) - len(name))}# {COMMENTS[arm.table]}\n"
            f"driver = {_text(arm.driver)}\n"
            f"port = {_text(port)}\n"
            f"calibration = {_text(str(calibration))}\n"
        )
        try:
            if self._config:
                text = self.path.read_text().rstrip("\n") + "\n" + table
            elif group != "arms":
                raise DeviceError(
                    f"{self.path} is not there yet, and a robot has a follower: set that up first (--arms "
                    "follower)"
                )
            else:
                head = HEAD.format(
                    kit={"so101": "An SO-101", "koch": "A Koch"}[self.kit], name=_text(self.path.stem)
                )
                if self.kit != "so101":  # its pose is another's
                    head = "".join(line for line in head.splitlines(True) if not line.startswith("# home"))
                text = head + table + SAFETY + camera_tables(cameras, depth)
            _require_toml(text, self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_text(text)
            os.replace(new, self.path)
        except OSError as error:
            raise DeviceError(
                f"{self.path} cannot be written ({error.strerror}): give another --out"
            ) from None
        self._config = read_config(str(self.path))


def camera_tables(cameras: Sequence[CameraNode], depth: Sequence[DepthCamera]) -> str:
    """A commented table for each camera."""
    blocks: list[list[str]] = []
    for camera in cameras:
        if camera.capture is False:
            continue
        sizes = [(m.width, m.height, m.fps) for m in camera.modes]
        width, height, rates = next((s for s in sizes if s[:2] == USUAL), sizes[0] if sizes else (*USUAL, ()))
        fps = next((f for f in rates if f <= 30.0), 30.0)
        device = ['driver = "opencv"', f"device = {_text(camera.name)}"]
        blocks.append(
            [f"   # {camera.title}", *device, f"height = {height}", f"width = {width}", f"fps = {fps}"]
        )
    for camera in depth:
        device = ['driver = "realsense"', f"serial = {_text(camera.serial or '…')}"]
        blocks.append(
            [f"   # {camera.title}, colour and depth", *device, "height = 480", "width = 640", "fps = 30.0"]
        )
    if not blocks:
        return NO_CAMERA
    names = ("front", "wrist", *(f"camera{i}" for i in range(3, len(blocks) + 1)))
    tables = [
        [f"[cameras.{name}]{first}", *rest] for name, (first, *rest) in zip(names, blocks, strict=False)
    ]
    return CAMERAS + "#\n".join("".join(f"# {line}\n" for line in table) for table in tables)


def _text(text: str) -> str:
    """As a string of TOML, which JSON's strings are."""
    return json.dumps(text, ensure_ascii=False)


def _require_toml(text: str, path: Path) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(
            f"{path} has a table of that name in another form already ({error}): add this by hand:\n{text}"
        ) from None
