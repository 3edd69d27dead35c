"""Every fault at every driver, injected into its twin while the real driver runs: what the user sees, and
when.

   python benchmarks/faults.py

A stubborn loop, 100 times a second: it reads an arm and commands it whatever was read, as `robot.loop` does,
and goes on where that one would end, when a command is refused. A leader is only read, a camera's newest
frame taken. Told: what the driver says by itself (an invalid reading, a refused command, a word in `faults()`
or the health). Refused: from when on commands were, and how far any joint went from then on until they were
taken again. Working again: fresh valid readings and commands taken, after the user enabled the arm where it
asked for that."""

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
    """One tick of the user's loop at a time; remembers what the user was told.

    refused_s: when commands began to be refused (monotonic), None while they are taken. moved: rad, the
    furthest that any joint has gone while they were."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.told = bench, ""
        self.swing = None if bench.plant is None else Swing(bench.device.read().data)
        self.forget()

    def forget(self) -> None:
        self.told, self.moved = "", 0.0
        self.refused_s: float | None = None
        self._refused_at = np.zeros(0)

    def tick(self) -> bool:
        """Whether all is well as far as the driver says; `told` is what it says otherwise."""
        words = self._film() if self.swing is None else self._move(self.swing)
        self.told = words or self.told
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
        refused = ""
        if not self.bench.leader:
            try:
                arm.command(swing.next(), time.monotonic_ns() + 10**9 // HZ)
                self.refused_s = None
            except DeviceError as error:
                refused = str(error)
                self._note_refusal()
        if words := arm.faults():
            return refused or words[0]
        if not valid.all():
            silent = [n for n, v in zip(arm.joints.names, valid, strict=True) if not v]
            return refused or f"invalid: {', '.join(silent) if valid.any() else 'all joints'}"
        return refused

    def _note_refusal(self) -> None:
        assert self.bench.plant is not None
        here = self.bench.plant.position.copy()
        if self.refused_s is None:
            self.refused_s, self._refused_at = time.monotonic(), here
        self.moved = max(self.moved, float(np.abs(here - self._refused_at).max()))

    def enable(self) -> bool:
        """As the user would, when the driver is back and asks for it."""
        arm = self.bench.device
        if self.swing is None or self.bench.leader:
            return False
        if arm.health().state not in (ArmState.TORQUE_OFF, ArmState.STOPPED) or not np.all(arm.read().valid):
            return False
        try:
            arm.enable()
        except DeviceError as error:
            self.told = str(error)
            return False
        self.swing.begin(arm.read().data)
        return True


def run_fault(bench: Bench, driven: Driven, fault: dict[str, Any]) -> dict[str, Any]:
    drive(driven, 0.7)
    driven.forget()
    began = time.monotonic()
    bench.inject(fault)
    noticed = drive(driven, PATIENCE_S, until_told=True)
    told, notice_s = driven.told, time.monotonic() - began
    if noticed:
        drive(driven, FAULT_S)
    refused_s = driven.refused_s
    bench.mend(fault)
    mended, good, enabled = time.monotonic(), 0, False
    while (recovering_s := time.monotonic() - mended) < 2 * PATIENCE_S and good < 10:
        good = good + 1 if driven.tick() else 0
        if not good:
            enabled |= driven.enable()
        time.sleep(1 / HZ)
    recovered = good >= 10
    return {
        "noticed": noticed,
        "notice_s": notice_s if noticed else None,
        "told": told if noticed else "",
        "refused_after_s": None if refused_s is None else refused_s - began,
        "moved_rad": None if refused_s is None else driven.moved,
        "recovered": recovered,
        "recover_s": recovering_s - 10 / HZ if noticed and recovered else None,
        "by_enable": enabled,
    }


def drive(driven: Driven, seconds: float, until_told: bool = False) -> bool:
    """Tick for so long. Whether it ended sooner, because the user was told something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not driven.tick() and until_told:
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
                    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()}
                    print(name, "|", fault, "|", shown, flush=True)
    if not args.driver:
        save("faults", {"drivers": table, "commanded": COMMANDED, "left_out": LEFT_OUT})


if __name__ == "__main__":
    main()
