"""Every fault at every driver, injected into its twin while the real driver runs: what the user sees, and when.

   python benchmarks/faults.py                      the table
   python benchmarks/faults.py --soak 600           and random faults for 10 minutes at 100 Hz

An arm follows a slow sine of one joint at 100 commands a second, a camera is read at 100 Hz. Noticed: the driver says so by itself (an
invalid reading, a refused command, a word in `faults()` or the health). Recovered: fresh valid readings again, after the user enabled
the arm where it asked for that. Moved: the furthest that any joint went between notice and the end of the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from results import save

from ulna.drivers import koch, koch_leader, opencv, so101, so101_leader, ur
from ulna.drivers.arm import Arm, ArmState, DeviceError
from ulna.drivers.calibration import JointCalibration
from ulna.drivers.calibration import save as save_calibration
from ulna.drivers.camera import Camera, CameraState, StaleFrame
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.robot.twin import KINDS, Child

HZ = 100
PATIENCE_S = 4.0  # for noticing, and for recovering
FAULT_S = 1.5  # how long a fault stays after it was noticed
TICKS_PER_RAD = 4096 / (2 * np.pi)
FRESH_S = 0.25  # a reading that calls itself valid is no older
TRUE_RAD = 0.05  # and as far from the truth at its capture time at most, the arm moving


@dataclass
class Bench:
    """A driver on its twin. order tells the twin's process something; truth is None for cameras."""

    name: str
    device: Any
    order: Callable[[dict[str, Any]], Any]
    plant: Plant | None = None
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def servo_bench(kind: str, module: Any, folder: Path) -> Bench:
    from ulna.robot.twin import MOUNTING

    stack, about = contextlib.ExitStack(), KINDS[kind]
    joints = module.JOINTS if hasattr(module, "JOINTS") else (so101 if "so101" in kind else koch).JOINTS
    centre = (joints.lower + joints.upper) / 2
    start = np.clip(np.zeros(6), joints.lower + 0.3, joints.upper - 0.3)
    plant = Plant.create(joints.names, start, joints.max_effort)
    stack.callback(plant.remove)
    stack.enter_context(SimpleMechanics(plant))
    servos, calibration = [], {}
    for j, model in enumerate(about.models):
        half = min((joints.upper[j] - joints.lower[j]) / 2, 3.0) * TICKS_PER_RAD
        middle = 2048 + round(centre[j] * TICKS_PER_RAD)
        offset = MOUNTING[j] if about.protocol == "feetech" else -MOUNTING[j]
        low, high = round(middle - half), round(middle + half)
        calibration[joints.names[j]] = JointCalibration(j + 1, 0, offset, low, high)
        servos.append(
            {
                "id": j + 1,
                "model": model,
                "joint": j,
                "zero_tick": 2048 + MOUNTING[j],
                "registers": {"homing_offset": offset},
            }
        )
    path = folder / f"{kind}.json"
    save_calibration(path, calibration)
    link = folder / kind
    child = Child(
        "serial_twin",
        {
            "protocol": about.protocol,
            "plant": str(plant.path),
            "servos": servos,
            "baud": 1_000_000,
            "link": str(link),
        },
    )
    stack.callback(child.close)
    arm = module.make(kind, module.Config(port=str(link), calibration=str(path)))
    return Bench(kind, arm, child.ask, plant, stack)


def ur_bench(folder: Path) -> Bench:
    stack = contextlib.ExitStack()
    names = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
    plant = Plant.create(names, np.array([0, -1.57, 1.57, -1.57, -1.57, 0.0]), np.full(6, 150.0))
    stack.callback(plant.remove)
    stack.enter_context(SimpleMechanics(plant, 3.0))
    child = Child("ur", {"plant": str(plant.path), "host": "127.0.0.7"})
    stack.callback(child.close)
    return Bench("ur", ur.make("ur", ur.Config(host="127.0.0.7")), child.ask, plant, stack)


def opencv_bench(folder: Path) -> Bench:
    child = Child("mjpeg", {"ring": None, "height": 480, "width": 640, "fps": 30})
    stack = contextlib.ExitStack()
    stack.callback(child.close)
    config = opencv.Config(device=child.about["url"], height=480, width=640, fps=30)
    return Bench("opencv", opencv.make("opencv", config), child.ask, None, stack)


def realsense_bench(folder: Path) -> Bench:
    from ulna.drivers import realsense

    child = Child("realsense", {"ring": None, "height": 480, "width": 640, "fps": 30})
    stack = contextlib.ExitStack()
    stack.callback(child.close)
    config = realsense.Config(source="twin", address=child.about["address"])
    return Bench("realsense", realsense.make("realsense", config), child.ask, None, stack)


BENCHES: dict[str, Callable[[Path], Bench]] = {
    "so101": lambda f: servo_bench("so101", so101, f),
    "so101-leader": lambda f: servo_bench("so101-leader", so101_leader, f),
    "koch": lambda f: servo_bench("koch", koch, f),
    "koch-leader": lambda f: servo_bench("koch-leader", koch_leader, f),
    "ur": ur_bench,
    "opencv": opencv_bench,
    "realsense": realsense_bench,
}
BUS_FAULTS: dict[str, dict[str, Any]] = {
    "5 % of the replies lost": {"drop": 0.05},
    "5 % of the replies garbled": {"corrupt": 0.05},
    "20 % of the replies 50 ms late": {"late": 0.2},
    "every reply 5 ms late": {"delay_s": 0.005},
    "one servo dead": {"dead": [3]},
    "overload latched": {"overload": [2]},
    "supply at 3.5 V": {"voltage": 3.5},
    "cable out": {"unplugged": True},
    "a joint is blocked": {"stuck": [0]},
    "power cycled": {"reset": True},
}
UR_FAULTS: dict[str, dict[str, Any]] = {
    "20 % of the data 50 ms late": {"late": 0.2},
    "data stop": {"stalled": True},
    "cable out": {"unplugged": True},
    "protective stop": {"protective_stop": True},
    "emergency stop": {"emergency_stop": True},
    "power off": {"powered_off": True},
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
    "drop": 0.0, "corrupt": 0.0, "late": 0.0, "delay_s": 0.0, "dead": [], "overload": [], "voltage": None, "unplugged": False,
    "stuck": [], "clock_step_s": 0.0, "stalled": False, "protective_stop": False, "emergency_stop": False,
    "powered_off": False, "black": False, "frozen": False, "slow": 1.0,
}  # fmt: skip


def faults_of(bench: Bench) -> dict[str, dict[str, Any]]:
    return CAMERA_FAULTS if bench.plant is None else UR_FAULTS if bench.name == "ur" else BUS_FAULTS


def inject(bench: Bench, fault: dict[str, Any]) -> None:
    bench.order(fault if "reset" in fault else {"faults": fault})


def mend(bench: Bench, fault: dict[str, Any]) -> None:
    if "reset" not in fault:
        bench.order({"faults": {name: HEALTHY[name] for name in fault}})
    if "overload" in fault or "voltage" in fault:
        bench.order({"reset": True})  # as the user would: power off and on


class Driven:
    """One tick of the user's loop at a time; remembers what the user was told."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.told, self.tick_count = bench, "", 0
        device = bench.device
        self.leader = bench.name.endswith("-leader")
        self.camera = device if bench.plant is None else None
        self.arm: Arm | None = device if bench.plant is not None else None
        self.centre = None if self.arm is None else self.arm.read().data
        self._newest = -1

    def tick(self) -> bool:
        """Whether all is well as far as the driver says; `told` is what it says otherwise."""
        self.tick_count += 1
        return self._film() if self.camera is not None else self._move()

    def _film(self) -> bool:
        camera: Camera = self.bench.device
        try:
            camera.latest(0.5)
        except StaleFrame as error:
            self.told = str(error)
            return False
        health = camera.health()
        if health.state is not CameraState.STREAMING or health.message:
            self.told = health.message or health.state.value
            return False
        return True

    def _move(self) -> bool:
        arm = self.arm
        assert arm is not None
        assert self.centre is not None
        sample = arm.read()
        if not np.all(sample.valid):
            silent = [n for n, v in zip(arm.joints.names, np.atleast_1d(sample.valid), strict=True) if not v]
            self.told = f"invalid: {', '.join(silent) if len(silent) < len(arm.joints) else 'all joints'}"
            if words := arm.faults():
                self.told = words[0]
            return False
        if not self.leader:
            target = self.centre.copy()
            target[0] += 0.15 * np.sin(2 * np.pi * 0.5 * self.tick_count / HZ)
            try:
                arm.command(target, time.monotonic_ns() + 10**9 // HZ)
            except DeviceError as error:
                self.told = str(error)
                return False
        if words := arm.faults():
            self.told = words[0]
            return False
        return True

    def enable(self) -> bool:
        """As the user would, when the driver is back and asks for it."""
        if self.arm is None or self.leader:
            return False
        if self.arm.health().state in (ArmState.TORQUE_OFF, ArmState.STOPPED) and np.all(
            self.arm.read().valid
        ):
            try:
                self.arm.enable()
            except DeviceError as error:
                self.told = str(error)
                return False
            self.centre, self.tick_count = self.arm.read().data, 0
            return True
        return False


def run_fault(bench: Bench, driven: Driven, fault: dict[str, Any]) -> dict[str, Any]:
    loop_until(lambda: False, driven, 0.7)
    driven.told = ""
    began = time.monotonic()
    inject(bench, fault)
    noticed = loop_until(lambda: not driven.tick(), driven, PATIENCE_S, ticking=True)
    told, notice_s = driven.told, time.monotonic() - began
    moved = 0.0
    if noticed and bench.plant is not None:
        here = bench.plant.position.copy()
        until = time.monotonic() + FAULT_S
        while time.monotonic() < until:
            driven.tick()
            moved = max(moved, float(np.abs(bench.plant.position - here).max()))
            time.sleep(1 / HZ)
    elif noticed:
        loop_until(lambda: False, driven, FAULT_S)
    mend(bench, fault)
    began, good, enabled = time.monotonic(), 0, False
    recovered = False
    while time.monotonic() - began < 2 * PATIENCE_S and not recovered:
        good = good + 1 if driven.tick() else 0
        if not good and noticed:
            enabled |= driven.enable()
        recovered = good >= 10
        time.sleep(1 / HZ)
    return {
        "noticed": noticed,
        "notice_s": notice_s if noticed else None,
        "told": told if noticed else "",
        "recovered": recovered,
        "recover_s": time.monotonic() - began - 10 / HZ if noticed and recovered else None,
        "by_enable": enabled,
        "moved_rad": moved if noticed and bench.plant is not None else None,
    }


def loop_until(done: Callable[[], bool], driven: Driven, seconds: float, ticking: bool = False) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not ticking:
            driven.tick()
        if done():
            return True
        time.sleep(1 / HZ)
    return False


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[tuple[Bench, Driven]]:
    bench = BENCHES[name](folder)
    with bench.closing:
        bench.device.open()
        try:
            if bench.plant is None:
                bench.device.next(-1, 5.0)
            elif not name.endswith("-leader"):
                bench.device.enable()
            driven = Driven(bench)
            loop_until(driven.tick, driven, 5.0, ticking=True)
            yield bench, driven
        finally:
            bench.device.close()


def soak(name: str, seconds: float, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Random faults, several at once, at 100 Hz. What must never be: an exception other than a refused command; a reading that
    calls itself valid and is old or wrong; torque that comes on though nobody enabled it."""
    rng = random.Random(seed)
    with running(name, folder) as (bench, driven):
        arm, plant = driven.arm, bench.plant
        assert arm is not None
        assert plant is not None
        history: deque[tuple[int, np.ndarray]] = deque(maxlen=2000)
        enabling, uninvited, stopping = threading.Event(), [], threading.Event()

        def watch() -> None:
            before = plant.torque.copy()
            while not stopping.wait(0.001):
                history.append((time.monotonic_ns(), plant.position.copy()))
                now = plant.torque.copy()
                if (now > before).any() and not enabling.is_set():
                    uninvited.append(time.monotonic())
                before = now

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        counts = dict.fromkeys(("ticks", "valid", "invalid", "refused", "enabled", "injected"), 0)
        bad: dict[str, list[str]] = {"exceptions": [], "stale": [], "wrong": []}
        active: list[dict[str, Any]] = []
        until, change, due = time.monotonic() + seconds, 0.0, time.monotonic()
        centre, phase = arm.read().data, 0
        while (now := time.monotonic()) < until:
            if now > change:
                for fault in active:
                    mend(bench, fault)
                chosen = rng.sample(list(faults_of(bench).values()), rng.choice([0, 1, 1, 2]))
                active = [f for f in chosen if "stuck" not in f]
                for fault in active:
                    inject(bench, fault)
                counts["injected"] += len(active)
                change = now + rng.uniform(0.5, 3.0)
            try:
                sample = arm.read()
                fresh = np.atleast_1d(sample.valid)
                age_s = (time.monotonic_ns() - sample.t_capture_ns) * 1e-9
                counts["valid" if fresh.all() else "invalid"] += 1
                if fresh.all() and age_s > FRESH_S + 0.5:
                    bad["stale"].append(f"{age_s:.3f} s")
                near = [p for t, p in list(history) if abs(t - sample.t_capture_ns) < 15_000_000]
                if near and fresh.any():
                    off = np.min([np.abs(p - sample.data) for p in near], axis=0)
                    if (off[fresh] > TRUE_RAD).any():
                        bad["wrong"].append(f"{off[fresh].max():.3f} rad")
                target = centre.copy()
                target[0] += 0.15 * np.sin(2 * np.pi * 0.5 * phase / HZ)
                phase += 1
                try:
                    arm.command(target, time.monotonic_ns() + 10**9 // HZ)
                except DeviceError:
                    counts["refused"] += 1
                    if rng.random() < 0.02 and fresh.all():
                        enabling.set()
                        with contextlib.suppress(DeviceError):
                            arm.enable()
                            counts["enabled"] += 1
                            centre, phase = arm.read().data, 0
                        time.sleep(0.05)
                        enabling.clear()
                arm.faults()
                arm.health()
            except Exception as error:  # noqa: BLE001  what must not be
                bad["exceptions"].append(repr(error))
            counts["ticks"] += 1
            due = max(due + 1 / HZ, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        stopping.set()
        watcher.join()
        for fault in active:
            mend(bench, fault)
        return {
            "seconds": seconds,
            **counts,
            "exceptions": bad["exceptions"][:5],
            "stale_as_fresh": len(bad["stale"]),
            "wrong_as_valid": len(bad["wrong"]),
            "examples": [*bad["stale"][:3], *bad["wrong"][:3]],
            "torque_uninvited": len(uninvited),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=BENCHES, action="append")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds, of each arm that is commanded")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    soaks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.driver or BENCHES:
            with running(name, Path(folder)) as (bench, driven):
                for fault, values in faults_of(bench).items():
                    if name.endswith("-leader") and "stuck" in values:
                        continue  # a hand moves it
                    table.setdefault(name, {})[fault] = r = run_fault(bench, driven, values)
                    print(
                        name,
                        "|",
                        fault,
                        "|",
                        {k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()},
                        flush=True,
                    )
            if args.soak and not name.endswith("-leader") and name not in ("opencv", "realsense"):
                soaks[name] = soak(name, args.soak, Path(folder))
                print(name, "soak", soaks[name], flush=True)
    if not args.no_save:
        save("faults", {"drivers": table, "soak": soaks})


if __name__ == "__main__":
    main()
