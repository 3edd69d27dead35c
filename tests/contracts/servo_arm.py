"""A bench for servo arms: a twin of an arm on a real pty, with the arm's driver and its calibration."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ulna.drivers.servos import koch, koch_leader, so101, so101_leader
from ulna.drivers.servos.calibration import JointCalibration, save
from ulna.drivers.servos.servo_arm import ServoArm
from ulna.drivers.twins.dynamixel import DynamixelTwin
from ulna.drivers.twins.faults import BusFaults
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

COUNTS_PER_RAD = 4096 / (2 * np.pi)
HOME = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6])
OFFSETS = (300, -500, 0, 12, -900, 77)
MODELS = {
    "so101": (777,) * 6,
    "so101_leader": (777,) * 6,
    "koch": (1060, 1060, 1200, 1200, 1200, 1200),
    "koch_leader": (1190,) * 6,
}
MODULES: dict[str, Any] = {
    "so101": so101,
    "so101_leader": so101_leader,
    "koch": koch,
    "koch_leader": koch_leader,
}
PERIOD_S = 0.05


def until(is_met: Callable[[], bool], why: str, timeout_s: float = 20.0) -> None:
    """Wait until `is_met`, as long as a busy machine may take."""
    end = time.monotonic() + timeout_s
    while not is_met():
        assert time.monotonic() < end, why
        time.sleep(0.01)


@dataclass
class Bench:
    """A twin of an arm, calibrated so that the arm's angles are the plant's."""

    kind: str
    plant: Plant
    twin: FeetechTwin | DynamixelTwin
    link: Path
    calibration: Path

    def arm(self, **changes: Any) -> ServoArm:
        """The closed arm. changes: fields of its config; stale_s is long by default, since a busy machine may
        not run the twin's process for a while."""
        module, changes = MODULES[self.kind], {"stale_s": 1.5, **changes}
        return module.make(
            self.kind, replace(module.Config(str(self.link), str(self.calibration)), **changes)
        )


@contextlib.contextmanager
def bench(
    kind: str, tmp_path: Path, link: str = "port", offset: int = 0, middle: int = 2048, **registers: int
) -> Iterator[Bench]:
    """offset: of the wrist's homing offset, which makes it another arm. middle: counts, of the first joint's
    range."""
    limits = so101.JOINTS
    dynamixel = kind.startswith("koch")
    calibration, servos = {}, []
    for i, name in enumerate(limits.names):
        homing = OFFSETS[i] + (offset if i == 3 else 0)
        at = 2048 if i else middle
        ends = [round(at + q[i] * COUNTS_PER_RAD) for q in (limits.lower, limits.upper)]
        calibration[name] = JointCalibration(i + 1, 0, homing, *ends)
        zero = at - homing if dynamixel else at + homing
        contents = {"homing_offset": homing, **registers}
        servos.append(TwinServo(i + 1, MODELS[kind][i], i, zero % 4096, 1, contents))
    path = tmp_path / f"{link}.json"
    save(path, calibration)
    plant = Plant.create(limits.names, HOME, np.array([1.91] * 6))
    cls = DynamixelTwin if dynamixel else FeetechTwin
    try:
        with SimpleMechanics(plant), cls(plant, servos, 1_000_000, BusFaults(), tmp_path / link, 1) as twin:
            yield Bench(kind, plant, twin, tmp_path / link, path)
    finally:
        plant.remove()


@contextlib.contextmanager
def running(arm: ServoArm, enable: bool = True) -> Iterator[ServoArm]:
    try:
        arm.open()
        if enable:
            arm.enable()
        yield arm
    finally:
        arm.close()


@contextlib.contextmanager
def torque_rises(plant: Plant) -> Iterator[list[int]]:
    """Counts how often a joint of `plant` got torque."""
    rises, stop = [0], threading.Event()

    def watch() -> None:
        last = plant.torque.copy()
        while not stop.wait(0.0005):
            now = plant.torque.copy()
            rises[0] += int((now > last).sum())
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield rises
    finally:
        stop.set()
        thread.join()


def enables(kind: str, request: bytes, servo: int, on: int = 1) -> bool:
    """Whether `request` switches the torque of `servo` on (or off, with 0)."""
    if kind.startswith("koch"):
        return request[4:5] + request[7:-2] == bytes((servo, 0x03, 64, 0, on))
    return request[2:-1] == bytes((servo, 4, 0x03, 40, on))


@contextlib.contextmanager
def interruption(b: Bench, when: Callable[[bytes], bool], action: Callable[[], object]) -> Iterator[None]:
    """Call `action` once, right after the servos did the first request for which `when` is true, and before
    they answer it."""
    real_answer, results = b.twin.answer, []

    def answer(request: bytes, speed: int) -> Any:
        replies = real_answer(request, speed)
        if not results and when(request):
            results.append(action())
        return replies

    b.twin.answer = answer
    try:
        yield
        assert results, "it came to that"
    finally:
        b.twin.answer = real_answer


def go(arm: ServoArm, goal: np.ndarray, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        arm.command(goal, time.monotonic_ns() + round(PERIOD_S * 1e9))
        time.sleep(PERIOD_S)


def home_with(joint: int, by: float) -> np.ndarray:
    return HOME + by * (np.arange(6) == joint)
