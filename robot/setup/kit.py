"""The arms that `ulna setup` brings up: a follower and its leader, of one kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...drivers.config import parse
from ...drivers.servos.dynamixel import DynamixelBus
from ...drivers.servos.feetech import FeetechBus
from ...drivers.servos.group import ServoGroup
from ...drivers.servos.probe import SLACK_S
from ..config import driver_module

KITS = ("so101", "koch")


@dataclass(frozen=True)
class KitArm:
    """One arm of a kit. title: `follower` or `leader`. table: of the robot's file that describes it."""

    title: str
    driver: str
    table: str

    @property
    def group_and_name(self) -> tuple[str, str]:
        group, _, name = self.table.partition(".")
        return group, name

    def servos(self, port: str, calibration: Path, table: Mapping[str, Any]) -> ServoGroup:
        """Its servos; nothing is opened. table: what the robot's file says of it so far. DeviceError: that
        is wrong."""
        module = driver_module(self.group_and_name[0], self.driver, "arm")
        fields = {k: v for k, v in table.items() if k != "driver"}
        fields |= {"port": port, "calibration": str(calibration)}
        config = parse(module.Config, fields, f"[{self.table}]")
        group: ServoGroup = module.make(self.title, config).group
        bus = FeetechBus if group.family.protocol == "feetech" else DynamixelBus
        group.bus = bus(port, group.bus.baud, slack_s=SLACK_S)  # nothing here is in a hurry
        return group

    def drive_modes(self) -> Mapping[str, int]:
        """1 for joints that count backwards."""
        module: Any = driver_module(self.group_and_name[0], self.driver, "arm")
        return getattr(module, "DRIVE_MODES", {})


def arms_of(kit: str) -> dict[str, KitArm]:
    return {
        "follower": KitArm("follower", kit, "arms.arm"),
        "leader": KitArm("leader", f"{kit}-leader", "leaders.arm"),
    }
