"""A chain of Dynamixel servos on a pty, for tests of the driver and of other people's clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ulna.drivers.twins.dynamixel import DynamixelTwin
from ulna.drivers.twins.faults import BusFaults
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

IDS = [1, 2, 3, 4, 5, 6]
XL330, XL430 = 1200, 1060


@contextmanager
def twin_of(
    ids: list[int] = IDS,
    model: int = XL330,
    baud: int = 1_000_000,
    link: Path | None = None,
    seed: int = 0,
    position: float = 0.0,
    directions: tuple[int, ...] = (1,),
    **registers: int,
) -> Iterator[DynamixelTwin]:
    names = tuple(f"joint_{i}" for i in ids)
    plant = Plant.create(names, np.full(len(ids), position), np.full(len(ids), 0.5))
    contents = {"return_delay_time": 0} | registers
    senses = [directions[k % len(directions)] for k in range(len(ids))]
    servos = [TwinServo(i, model, k, 2048, senses[k], contents) for k, i in enumerate(ids)]
    try:
        with SimpleMechanics(plant), DynamixelTwin(plant, servos, baud, BusFaults(), link, seed) as twin:
            yield twin
    finally:
        plant.remove()


def wait_for(what: str, true, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"{what} did not come in {timeout_s} s"
        time.sleep(0.005)
