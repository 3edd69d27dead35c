"""Every driver on its twin, and the faults that its twin can have, for `faults.py` and `soak.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ulna.drivers.cameras import opencv
from ulna.drivers.servos import koch, koch_leader, so101, so101_leader
from ulna.drivers.servos.calibration import JointCalibration
from ulna.drivers.servos.calibration import save as save_calibration
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.ur import arm as ur
from ulna.robot.twin.station import KINDS, MOUNTING, Child

HZ = 100  # commands a second, as quick a loop as the drivers promise to serve
# up to 0.94 rad/s, within what each arm may do, and so wide that a blocked joint pushes for a while
SWING_RAD, SWING_HZ = 0.4, 0.375
RAMP_S = 1.0  # from where an arm was enabled back to the swing
COUNTS_PER_RAD = 4096 / (2 * np.pi)


@dataclass
class Bench:
    """A driver on its twin. order: sends an order to the twin's process. plant: the true state of an arm,
    None for a camera. stays: faults that last until power is cycled, also when their cause is gone."""

    name: str
    device: Any
    order: Callable[[dict[str, Any]], Any]
    plant: Plant | None = None
    stays: tuple[str, ...] = ()
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def leader(self) -> bool:
        return self.name.endswith("-leader")

    def inject(self, fault: dict[str, Any]) -> None:
        self.order(fault if "reset" in fault else {"faults": fault})

    def mend(self, fault: dict[str, Any]) -> None:
        if "reset" not in fault:
            self.order({"faults": {name: HEALTHY[name] for name in fault}})
        if any(name in fault for name in self.stays):
            self.order({"reset": True})  # as the user would: power off and on


class Swing:
    """Goals of the loop for an arm: every joint on a sine around `centre` `(J,)` rad, each behind the one
    before it, so that some joint is always quick. After `begin` the goals come from `position` `(J,)` rad
    within a second."""

    def __init__(self, centre: np.ndarray) -> None:
        self.centre = centre.copy()
        self.begin(centre)

    def begin(self, position: np.ndarray) -> None:
        self._from, self._tick = position.copy(), 0

    def next(self) -> np.ndarray:
        self._tick += 1
        t, n = self._tick / HZ, len(self.centre)
        goal = self.centre + SWING_RAD * np.sin(2 * np.pi * (SWING_HZ * t - np.arange(n) / n))
        return self._from + min(t / RAMP_S, 1.0) * (goal - self._from)


def servo_bench(kind: str, module: Any, folder: Path) -> Bench:
    stack, arm_kind = contextlib.ExitStack(), KINDS[kind]
    joints = module.JOINTS if hasattr(module, "JOINTS") else (so101 if "so101" in kind else koch).JOINTS
    centre = (joints.lower + joints.upper) / 2
    start = np.clip(np.zeros(6), joints.lower + 0.6, joints.upper - 0.6)
    plant = Plant.create(joints.names, start, joints.max_effort)
    stack.callback(plant.remove)
    stack.enter_context(SimpleMechanics(plant))
    servos, calibration = [], {}
    for j, model in enumerate(arm_kind.models):
        half = min((joints.upper[j] - joints.lower[j]) / 2, 3.0) * COUNTS_PER_RAD
        middle = 2048 + round(centre[j] * COUNTS_PER_RAD)
        offset = MOUNTING[j] if arm_kind.protocol == "feetech" else -MOUNTING[j]
        low, high = round(middle - half), round(middle + half)
        calibration[joints.names[j]] = JointCalibration(j + 1, 0, offset, low, high)
        servos.append(
            {
                "id": j + 1,
                "model": model,
                "joint": j,
                "zero_count": 2048 + MOUNTING[j],
                "registers": {"homing_offset": offset},
            }
        )
    path = folder / f"{kind}.json"
    save_calibration(path, calibration)
    link = folder / kind
    child = Child(
        "serial_twin",
        {
            "protocol": arm_kind.protocol,
            "plant": str(plant.path),
            "servos": servos,
            "baud": 1_000_000,
            "link": str(link),
        },
    )
    stack.callback(child.close)
    arm = module.make(kind, module.Config(port=str(link), calibration=str(path)))
    return Bench(kind, arm, child.ask, plant, ("overload", "voltage"), stack)


def ur_bench(folder: Path) -> Bench:
    stack = contextlib.ExitStack()
    names = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
    plant = Plant.create(names, np.array([0, -1.57, 1.57, -1.57, -1.57, 0.0]), np.full(6, 150.0))
    stack.callback(plant.remove)
    stack.enter_context(SimpleMechanics(plant, 3.0))
    child = Child("ur", {"plant": str(plant.path), "host": "127.0.0.7"})
    stack.callback(child.close)
    return Bench("ur", ur.make("ur", ur.Config(host="127.0.0.7")), child.ask, plant, ("stuck",), stack)


def opencv_bench(folder: Path) -> Bench:
    child = Child("mjpeg", {"ring": None, "height": 480, "width": 640, "fps": 30})
    stack = contextlib.ExitStack()
    stack.callback(child.close)
    config = opencv.Config(device=child.info["url"], height=480, width=640, fps=30)
    return Bench("opencv", opencv.make("opencv", config), child.ask, closing=stack)


def realsense_bench(folder: Path) -> Bench:
    from ulna.drivers.cameras import realsense

    child = Child("realsense", {"ring": None, "height": 480, "width": 640, "fps": 30})
    stack = contextlib.ExitStack()
    stack.callback(child.close)
    config = realsense.Config(source="twin", address=child.info["address"])
    return Bench("realsense", realsense.make("realsense", config), child.ask, closing=stack)


BENCHES: dict[str, Callable[[Path], Bench]] = {
    "so101": lambda f: servo_bench("so101", so101, f),
    "so101-leader": lambda f: servo_bench("so101-leader", so101_leader, f),
    "koch": lambda f: servo_bench("koch", koch, f),
    "koch-leader": lambda f: servo_bench("koch-leader", koch_leader, f),
    "ur": ur_bench,
    "opencv": opencv_bench,
    "realsense": realsense_bench,
}
COMMANDED = ("so101", "koch", "ur")
LEADER_FAULTS: dict[str, dict[str, Any]] = {
    "5 % of the replies lost": {"drop": 0.05},
    "5 % of the replies garbled": {"corrupt": 0.05},
    "20 % of the replies 50 ms late": {"late": 0.2},
    "every reply 5 ms late": {"delay_s": 0.005},
    "one servo dead": {"dead": [3]},
    "overload latched": {"overload": [2]},
    "supply at 3.0 V": {"voltage": 3.0},  # an XL330 works from 3.5 V on, the others need more
    "cable out": {"unplugged": True},
    "power cycled": {"reset": True},
}
BUS_FAULTS = {**LEADER_FAULTS, "a joint is blocked": {"stuck": [0]}}
UR_FAULTS: dict[str, dict[str, Any]] = {
    "20 % of the data 50 ms late": {"late": 0.2},
    "all data 5 ms late": {"delay_s": 0.005},
    "data stop": {"stalled": True},
    "cable out": {"unplugged": True},
    "protective stop": {"protective_stop": True},
    "emergency stop": {"emergency_stop": True},
    "power off": {"powered_off": True},
    "pendant in local control": {"local_control": True},
    "a joint is blocked": {"stuck": [0]},  # until the protective stop that follows is unlocked
    "clock steps by 10 s": {"clock_step_s": 10.0},
}
CAMERA_FAULTS: dict[str, dict[str, Any]] = {
    "black frames": {"black": True},
    "the same frame again and again": {"frozen": True},
    "no frames": {"stalled": True},
    "a third of the rate": {"slow": 0.33},
    "20 % of the frames garbled": {"corrupt": 0.2},
    "cable out": {"unplugged": True},
    "clock steps by 10 s": {"clock_step_s": 10.0},
}
HEALTHY: dict[str, Any] = {
    "drop": 0.0, "corrupt": 0.0, "late": 0.0, "delay_s": 0.0, "dead": [], "overload": [], "voltage": None,
    "unplugged": False, "stuck": [], "clock_step_s": 0.0, "stalled": False, "protective_stop": False,
    "emergency_stop": False, "local_control": False, "powered_off": False,
    "black": False, "frozen": False, "slow": 1.0,
}  # fmt: skip
LEFT_OUT = (
    "a leader's joint blocked (a hand moves it)",
    "a clock's step at a servo bus (servos have no clock)",
    "lost or garbled data at a UR (TCP sends them again: they come late)",
    (
        "a UR's joint dead or overloaded, or its supply (its controller watches those, and makes a stop or a "
        "loss of power of them)"
    ),
)


def faults_of(name: str) -> dict[str, dict[str, Any]]:
    """The faults that the twin of the driver `name` can have, by their names in words."""
    if name.endswith("-leader"):
        return LEADER_FAULTS
    return UR_FAULTS if name == "ur" else BUS_FAULTS if name in COMMANDED else CAMERA_FAULTS


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Bench]:
    """The driver `name` on its twin, open; an arm that is commanded has its torque on."""
    bench = BENCHES[name](folder)
    with bench.closing:
        bench.device.open()
        try:
            if bench.plant is None:
                bench.device.next(-1, 5.0)
            elif not bench.leader:
                bench.device.enable()
            yield bench
        finally:
            bench.device.close()
