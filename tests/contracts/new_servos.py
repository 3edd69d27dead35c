"""Six servos out of their boxes, on a real pty, that are plugged onto their bus one by one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ulna.drivers.servos import so101
from ulna.drivers.servos.bus import ServoBus
from ulna.drivers.servos.dynamixel import DynamixelBus
from ulna.drivers.servos.feetech import FeetechBus
from ulna.drivers.servos.group import DYNAMIXEL, FEETECH, Family
from ulna.drivers.twins.dynamixel import DynamixelTwin
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.plant import Plant
from ulna.drivers.twins.serial_twin import TwinServo

BAUD = 1_000_000
MODELS = {"feetech": (777,) * 6, "dynamixel": (1060, 1060, 1200, 1200, 1200, 1200)}
# fewer speeds than the servos have: looking at all of them takes seconds
FAMILIES: dict[str, Family] = {
    "feetech": replace(FEETECH, bauds={BAUD: 0, 500_000: 1}),
    "dynamixel": replace(DYNAMIXEL, bauds={57_600: 1, 115_200: 2, BAUD: 3}),
}
BOOT_S = 0.12  # a Feetech twin is silent for 0.1 s after power came


@contextlib.contextmanager
def bench(
    protocol: str,
    tmp_path: Path,
    plugged: Collection[int] = (),
    ids: tuple[int, ...] = (1,) * 6,
    **changes: Any,
) -> Iterator[tuple[ServoBus, FeetechTwin | DynamixelTwin]]:
    """Six servos out of their boxes, none of which is plugged in. changes: registers of all."""
    plant = Plant.create(so101.NAMES, np.linspace(-1.0, 1.3, 6), np.ones(6))
    servos = [
        TwinServo(i, m, j, 2048 + 97 * j, 1, changes)
        for j, (i, m) in enumerate(zip(ids, MODELS[protocol], strict=True))
    ]
    cls = FeetechTwin if protocol == "feetech" else DynamixelTwin
    baud = FAMILIES[protocol].factory_baud
    link = tmp_path / "port"
    bus: ServoBus
    bus = FeetechBus(str(link), BAUD, 0.02) if protocol == "feetech" else DynamixelBus(str(link), BAUD, 0.02)
    try:
        with cls(plant, servos, baud, link=link, plugged=plugged) as twin:
            yield bus, twin
    finally:
        bus.close()
        plant.remove()


def plug(twin: FeetechTwin | DynamixelTwin, *joints: int) -> None:
    twin.plug(joints)
    time.sleep(BOOT_S)
