"""Control cycles per second on a servo bus (sync read of six positions and sync write of six goals), with
ours and other clients; and the seconds that it takes to import each module of `ulna.drivers`.

The servos are a twin in another process, on a pty whose bytes take their time at 1 Mbaud. A cycle that lacks
a servo counts as failed.

    python benchmarks/servo_rates.py
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import results

import ulna.drivers.servos.bus
from ulna.drivers.servos.feetech import FeetechBus
from ulna.drivers.twins.plant import Plant
from ulna.drivers.twins.serial_twin import TwinServo

IDS = [1, 2, 3, 4, 5, 6]
BAUD = 1_000_000
CYCLES, WARM_UP, ROUNDS = 1000, 100, 3
# bytes of a cycle: sync read request, six replies, sync write
WIRE = {"feetech": 14 + 6 * 8 + 26, "dynamixel": 20 + 6 * 15 + 44, "dynamixel fast": 20 + 58 + 44}

type Cycle = Callable[[int], bool]  # one cycle to a goal; whether all six answered


@contextlib.contextmanager
def twin(protocol: str, model: int) -> Iterator[str]:
    """The port of six servos that another process plays."""
    plant = Plant.create(tuple("abcdef"), np.zeros(6), np.ones(6))
    description = {
        "protocol": protocol,
        "plant": str(plant.path),
        "servos": [asdict(TwinServo(i, model, i - 1, 2048, registers={"return_delay_time": 0})) for i in IDS],
        "baud": BAUD,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "ulna.drivers.twins.serial_twin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(description) + "\n")
        process.stdin.flush()
        try:
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.communicate()
            plant.remove()


@contextlib.contextmanager
def ours(bus: Any) -> Iterator[Cycle]:
    bus.open()

    def cycle(goal: int) -> bool:
        replies = bus.read(["present_position"], IDS)
        bus.write("goal_position", dict.fromkeys(IDS, goal))
        return bool(replies.valid.all())

    yield cycle
    bus.close()


def our_dynamixel(port: str, fast: bool) -> contextlib.AbstractContextManager[Cycle]:
    from ulna.drivers.servos.dynamixel import DynamixelBus

    return ours(DynamixelBus(port, BAUD, fast=fast))


@contextlib.contextmanager
def scservo(port: str) -> Iterator[Cycle]:
    import scservo_sdk as scs

    line = scs.PortHandler(port)
    assert line.openPort()
    assert line.setBaudRate(BAUD)

    # the packaged one mixes seconds and milliseconds, and times out at once
    def packet_timeout(packet_length: int) -> None:
        line.packet_start_time = line.getCurrentTime()
        line.packet_timeout = line.tx_time_per_byte * (packet_length + 3) + 50

    line.setPacketTimeout = packet_timeout
    talk = scs.PacketHandler(0)
    read = scs.GroupSyncRead(line, talk, 56, 2)
    for servo in IDS:
        read.addParam(servo)

    def cycle(goal: int) -> bool:
        fine = read.txRxPacket() == 0 and all(read.getData(servo, 56, 2) >= 0 for servo in IDS)
        write = scs.GroupSyncWrite(line, talk, 42, 2)
        for servo in IDS:
            write.addParam(servo, [goal & 255, goal >> 8])
        write.txPacket()
        return fine

    yield cycle
    line.closePort()


@contextlib.contextmanager
def dynamixel_sdk(port: str, fast: bool) -> Iterator[Cycle]:
    import dynamixel_sdk as dxl

    line = dxl.PortHandler(port)
    assert line.openPort()
    assert line.setBaudRate(BAUD)
    talk = dxl.PacketHandler(2.0)
    read = dxl.GroupSyncRead(line, talk, 132, 4)
    for servo in IDS:
        read.addParam(servo)

    def cycle(goal: int) -> bool:
        fine = (read.fastSyncRead() if fast else read.txRxPacket()) == 0
        fine = fine and all(read.getData(servo, 132, 4) >= 0 for servo in IDS)
        write = dxl.GroupSyncWrite(line, talk, 116, 4)
        for servo in IDS:
            write.addParam(servo, list(goal.to_bytes(4, "little")))
        write.txPacket()
        return fine

    yield cycle
    line.closePort()


@contextlib.contextmanager
def rustypot(port: str, name: str) -> Iterator[Cycle]:
    import rustypot

    client = getattr(rustypot, name)(serial_port=port, baudrate=BAUD, timeout=0.05)

    def cycle(goal: int) -> bool:
        try:
            fine = len(client.sync_read_raw_present_position(IDS)) == 6
        except RuntimeError:
            fine = False
        client.sync_write_raw_goal_position(IDS, [goal] * 6)
        return fine

    yield cycle
    client.close()


@contextlib.contextmanager
def lerobot(port: str) -> Iterator[Cycle]:
    from lerobot.motors import Motor, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    names = {f"joint{i}": Motor(i, "sts3215", MotorNormMode.RANGE_M100_100) for i in IDS}
    bus = FeetechMotorsBus(port, names)
    bus.connect()

    def cycle(goal: int) -> bool:
        try:
            fine = len(bus.sync_read("Present_Position", normalize=False)) == 6
        except ConnectionError:
            fine = False
        bus.sync_write("Goal_Position", dict.fromkeys(names, goal), normalize=False)
        return fine

    yield cycle
    bus.disconnect(disable_torque=False)


def measure(make: Callable[[], contextlib.AbstractContextManager[Cycle]]) -> dict[str, float]:
    """cpu: of one core, in this process (all of its threads)."""
    durations_s, failed = np.zeros(CYCLES), 0
    with make() as cycle:
        for k in range(WARM_UP):
            cycle(2048 + k)
        start, start_cpu = time.perf_counter(), time.process_time()
        for k in range(CYCLES):
            at = time.perf_counter()
            failed += not cycle(2048 + k % 200)
            durations_s[k] = time.perf_counter() - at
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "rate_hz": round(CYCLES / wall_s, 1),
        "p50_ms": round(float(np.percentile(durations_s, 50)) * 1e3, 3),
        "p99_ms": round(float(np.percentile(durations_s, 99)) * 1e3, 3),
        "cpu_of_a_core": round(cpu_s / wall_s, 3),
        "failed": failed,
    }


def import_seconds() -> dict[str, float]:
    """In a fresh interpreter that has numpy already, the best of three; beside them numpy's own."""
    folder = Path(ulna.drivers.servos.bus.__file__).parents[1]
    code = (
        "import sys, time; sys.argv[1] == 'numpy' or __import__('numpy'); t = time.perf_counter(); "
        "__import__(sys.argv[1]); print(time.perf_counter() - t)"
    )
    modules = {"numpy": "numpy"}
    for file in sorted(folder.rglob("*.py")):
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
        modules[name] = f"ulna.drivers.{name}"
    seconds: dict[str, float] = {}
    for name, module in modules.items():
        command = [sys.executable, "-c", code, module]
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(3)]
        seconds[name] = round(min(float(run.stdout) for run in runs), 3)
    return seconds


def compare(
    port: str, clients: dict[str, Callable[[str], contextlib.AbstractContextManager[Cycle]]]
) -> dict[str, dict[str, float]]:
    """The round with the median rate of each client; rounds take turns, so that a noisy minute hits all
    alike."""
    rounds = [
        {name: measure(lambda make=make: make(port)) for name, make in clients.items()} for _ in range(ROUNDS)
    ]
    return {
        name: sorted((r[name] for r in rounds), key=lambda row: row["rate_hz"])[ROUNDS // 2]
        for name in clients
    }


if __name__ == "__main__":
    with twin("feetech", 777) as port:
        feetech = compare(
            port,
            {
                "ulna": lambda port: ours(FeetechBus(port, BAUD)),
                "scservo_sdk": scservo,
                "rustypot": lambda port: rustypot(port, "Sts3215PyController"),
                "lerobot": lerobot,
            },
        )
    with twin("dynamixel", 1200) as port:
        dynamixel = compare(
            port,
            {
                "ulna": lambda port: our_dynamixel(port, fast=False),
                "ulna, fast sync read": lambda port: our_dynamixel(port, fast=True),
                "dynamixel_sdk": lambda port: dynamixel_sdk(port, fast=False),
                "dynamixel_sdk, fast sync read": lambda port: dynamixel_sdk(port, fast=True),
                "rustypot": lambda port: rustypot(port, "Xl330PyController"),
            },
        )
    results.save(
        "servo_rates",
        {
            "what": f"cycles of {len(IDS)} servos at {BAUD} baud: sync read of positions, sync write of "
            f"goals; median of {ROUNDS} rounds",
            "at_most_hz_on_the_wire": {name: round(BAUD / 10 / n) for name, n in WIRE.items()},
            "feetech": feetech,
            "dynamixel": dynamixel,
            "import_s": import_seconds(),
        },
    )
