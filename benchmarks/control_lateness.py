"""How late the ticks of a control process are at 100 Hz beside loaded cores: of ours, of a bare spinner that
does nothing but wait, and of a loop in the process that also reads the bus, as ours was before. And whether
ticks wait for a policy that thinks for two seconds.

The arm is a twin in another process, on a pty whose bytes take their time at 1 Mbaud.

    python benchmarks/control_lateness.py [SECONDS]
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import results

from ulna.drivers.clock import MonotonicClock
from ulna.drivers.servos import so101
from ulna.drivers.servos.bus import COUNTS_PER_TURN
from ulna.drivers.servos.calibration import Calibration, JointCalibration, save
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo
from ulna.robot.config import load_robot, make_devices, read_config
from ulna.robot.control.process import hurry
from ulna.robot.control.ticker import wait_until

RATE_HZ, ROUNDS = 100.0, 3
HOME = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6])
THINKS_S = 2.0
BURN = "while True: pass"


@contextlib.contextmanager
def arm_file() -> Iterator[str]:
    """The file of a robot whose arm another process plays."""
    names = so101.JOINTS.names
    plant = Plant.create(names, HOME, so101.JOINTS.max_effort)
    servos: list[TwinServo] = []
    with tempfile.TemporaryDirectory() as folder, SimpleMechanics(plant):
        counts = COUNTS_PER_TURN / (2 * np.pi)
        calibration = Calibration()
        for i, name in enumerate(names):
            low, high = (round(2048 + q[i] * counts) for q in (so101.JOINTS.lower, so101.JOINTS.upper))
            calibration[name] = JointCalibration(i + 1, 0, 0, low, high)
            registers = {"min_position_limit": low, "max_position_limit": high}
            servos.append(TwinServo(i + 1, so101.STS3215, i, 2048, registers=registers))
        path = Path(folder) / "calibration.json"
        save(path, calibration)
        description = {
            "protocol": "feetech",
            "plant": str(plant.path),
            "servos": [asdict(s) for s in servos],
            "link": str(Path(folder) / "port"),
        }
        with subprocess.Popen(
            [sys.executable, "-m", "ulna.drivers.twins.serial_twin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(description) + "\n")
            process.stdin.flush()
            port = json.loads(process.stdout.readline())["port"]
            file = Path(folder) / "robot.toml"
            file.write_text(
                f'name = "bench"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "{port}"\n'
                f'calibration = "{path}"\nstale_s = 5.0\n'
            )
            try:
                yield str(file)
            finally:
                process.communicate()
                plant.remove()


def spinner(seconds: float) -> np.ndarray:
    """Lateness of a process that does nothing else, ns."""
    command = [sys.executable, __file__, "--spin", str(seconds)]
    return np.array(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def spin(seconds: float) -> None:
    hurry()
    period, late, due = round(1e9 / RATE_HZ), [], time.monotonic_ns()
    for _ in range(round(seconds * RATE_HZ)):
        due += period
        late.append(wait_until(due) - due)
        due = max(due, time.monotonic_ns() - period)
    print(json.dumps(late))


def control(file: str, seconds: float) -> tuple[np.ndarray, float]:
    """(Lateness of the control process that is commanded at 20 Hz, ns; the longest time between two of its
    ticks while the policy thinks, s)."""
    with load_robot(file) as rig:
        robot, host = rig.robot, rig.robot.host
        assert host is not None
        due, period = time.monotonic_ns(), robot.period_ns
        for i in range(round(seconds * robot.control_hz)):
            robot.observe()
            robot.command(HOME + 0.2 * np.sin(i / 20))
            due += period
            robot.clock.sleep_until(due)
        late = host.lateness_ns()[-round(seconds * RATE_HZ) :]
        time.sleep(THINKS_S)
        since = host.lateness_ns()[-round(0.95 * THINKS_S * RATE_HZ) :]
        return late, float(since.max()) * 1e-9 + 1 / RATE_HZ


def in_process(file: str, seconds: float) -> np.ndarray:
    """Lateness of a loop beside the bus' thread in one process, at the same rate, ns."""
    arm, clock = make_devices(file, read_config(file), "arms")["arm"], MonotonicClock()
    arm.open()
    arm.enable()
    period, late, due = round(1e9 / RATE_HZ), [], time.monotonic_ns()
    for i in range(round(seconds * RATE_HZ)):
        due += period
        clock.sleep_until(due)
        late.append(time.monotonic_ns() - due)
        arm.read()
        arm.command(HOME + 0.2 * np.sin(i / 100), due + period)
        due = max(due, time.monotonic_ns() - period)
    arm.close()
    return np.array(late)


def summary(late_ns: list[np.ndarray]) -> dict[str, float]:
    ms = np.concatenate(late_ns) * 1e-6
    return {
        "p50_ms": round(float(np.percentile(ms, 50)), 4),
        "p99_ms": round(float(np.percentile(ms, 99)), 4),
        "max_ms": round(float(ms.max()), 4),
        "ticks": len(ms),
    }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    burners = [
        subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(max(1, (os.cpu_count() or 2) // 2))
    ]
    late: dict[str, list[np.ndarray]] = {"spinner": [], "control process": [], "in one process": []}
    longest: list[float] = []
    try:
        for _ in range(ROUNDS):  # in turn, so that what else the computer does meets all of them
            late["spinner"].append(spinner(seconds))
            with arm_file() as file:
                ours, gap = control(file, seconds)
                late["control process"].append(ours)
                longest.append(gap)
            with arm_file() as file:
                late["in one process"].append(in_process(file, seconds))
    finally:
        for burner in burners:
            burner.kill()
    rows: dict[str, Any] = {name: summary(values) for name, values in late.items()}
    results.save(
        "control_lateness",
        {
            "rate_hz": RATE_HZ,
            "loaded_cores": len(burners),
            "lateness": rows,
            "p99_over_spinner_ms": round(rows["control process"]["p99_ms"] - rows["spinner"]["p99_ms"], 4),
            "longest_tick_while_the_policy_thinks_2_s_ms": round(1000 * max(longest), 3),
        },
    )


if __name__ == "__main__":
    if "--spin" in sys.argv:
        spin(float(sys.argv[-1]))
    else:
        main()
