"""Every fault at every driver, injected into its twin while the real driver runs: what the user sees, and
when.

   python benchmarks/faults.py

A stubborn loop of 100 Hz reads an arm and commands it whatever it read, as `robot.loop` does, and goes on
when a command is refused, where `robot.loop` would end. A leader is only read; of a camera the newest frame
is taken.

- told: what the driver reports by itself (an invalid reading, a refused command, `faults()`, the health).
- refused: how long after the fault commands were refused, and how far any joint moved until they were taken
  again.
- recovered: readings are valid and commands taken again, after the user enabled the arm where it asked for
  that."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fault_benches import BENCHES, COMMANDED, HZ, LEFT_OUT, Bench, Swing, faults_of, running
from results import save

from ulna.drivers.arm import Arm, ArmState, DeviceError
from ulna.drivers.camera import Camera, CameraState, StaleFrame

PATIENCE_S = 4.0  # for noticing, and twice that for recovering
FAULT_S = 1.5  # how long a fault stays after it was noticed


class Driven:
    """The user's loop, one tick at a time. message: what the user was told last.

    refusal_s: when commands began to be refused, monotonic s; None while they are taken. travel: rad, the
    furthest that any joint has moved since then."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.message = bench, ""
        self.swing = None if bench.plant is None else Swing(bench.device.read().data)
        self.forget()

    def forget(self) -> None:
        self.message, self.travel = "", 0.0
        self.refusal_s: float | None = None
        self._refusal_pose = np.zeros(0)

    def tick(self) -> bool:
        """Whether all is well according to the driver; `message` is what it reports otherwise."""
        words = self._film() if self.swing is None else self._move(self.swing)
        self.message = words or self.message
        return not words

    def _film(self) -> str:
        camera: Camera = self.bench.device
        try:
            camera.latest(0.5)
        except StaleFrame as error:
            return str(error)
        health = camera.health()
        if health.state is not CameraState.STREAMING or health.message:
            return health.message or health.state.value
        return ""

    def _move(self, swing: Swing) -> str:
        arm: Arm = self.bench.device
        sample = arm.read()
        valid = np.broadcast_to(sample.valid, len(arm.joints))
        refusal = ""
        if not self.bench.leader:
            try:
                arm.command(swing.next(), time.monotonic_ns() + 10**9 // HZ)
                self.refusal_s = None
            except DeviceError as error:
                refusal = str(error)
                self._note_refusal()
        if words := arm.faults():
            return refusal or words[0]
        if not valid.all():
            silent = [n for n, v in zip(arm.joints.names, valid, strict=True) if not v]
            return refusal or f"invalid: {', '.join(silent) if valid.any() else 'all joints'}"
        return refusal

    def _note_refusal(self) -> None:
        assert self.bench.plant is not None
        position = self.bench.plant.position.copy()
        if self.refusal_s is None:
            self.refusal_s, self._refusal_pose = time.monotonic(), position
        self.travel = max(self.travel, float(np.abs(position - self._refusal_pose).max()))

    def enable(self) -> bool:
        """Enable the arm, as the user would when the driver is back and asks for it."""
        arm = self.bench.device
        if self.swing is None or self.bench.leader:
            return False
        if arm.health().state not in (ArmState.TORQUE_OFF, ArmState.STOPPED) or not np.all(arm.read().valid):
            return False
        try:
            arm.enable()
        except DeviceError as error:
            self.message = str(error)
            return False
        self.swing.begin(arm.read().data)
        return True


def run_fault(bench: Bench, driven: Driven, fault: dict[str, Any]) -> dict[str, Any]:
    drive(driven, 0.7)
    driven.forget()
    start = time.monotonic()
    bench.inject(fault)
    was_noticed = drive(driven, PATIENCE_S, until_message=True)
    message, notice_s = driven.message, time.monotonic() - start
    if was_noticed:
        drive(driven, FAULT_S)
    refusal_s = driven.refusal_s
    bench.mend(fault)
    mend_s, good, was_enabled = time.monotonic(), 0, False
    while (recovering_s := time.monotonic() - mend_s) < 2 * PATIENCE_S and good < 10:
        good = good + 1 if driven.tick() else 0
        if not good:
            was_enabled |= driven.enable()
        time.sleep(1 / HZ)
    has_recovered = good >= 10
    return {
        "noticed": was_noticed,
        "notice_s": notice_s if was_noticed else None,
        "told": message if was_noticed else "",
        "refused_after_s": None if refusal_s is None else refusal_s - start,
        "moved_rad": None if refusal_s is None else driven.travel,
        "recovered": has_recovered,
        "recover_s": recovering_s - 10 / HZ if was_noticed and has_recovered else None,
        "by_enable": was_enabled,
    }


def drive(driven: Driven, seconds: float, until_message: bool = False) -> bool:
    """Tick for `seconds`. With `until_message` it returns True as soon as the user is told something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not driven.tick() and until_message:
            return True
        time.sleep(1 / HZ)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=BENCHES, action="append", help="this one only; nothing is saved")
    args = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.driver or BENCHES:
            with running(name, Path(folder)) as bench:
                driven = Driven(bench)
                drive(driven, 1.0)
                for fault, values in faults_of(name).items():
                    r = run_fault(bench, driven, values)
                    r["told"] = re.sub(rf"{re.escape(folder)}/[\w-]+", "PORT", r["told"])
                    table.setdefault(name, {})[fault] = r
                    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()}
                    print(name, "|", fault, "|", rounded, flush=True)
    if not args.driver:
        save("faults", {"drivers": table, "commanded": COMMANDED, "left_out": LEFT_OUT})


if __name__ == "__main__":
    main()
