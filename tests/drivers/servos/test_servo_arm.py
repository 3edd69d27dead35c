"""Arms of bus servos on twins behind real ptys: the contract, wrong or missing servos, and commanders."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from contracts.arm import check_arm
from contracts.servo_arm import HOME, bench, go, home_with, running, torque_rises, until

from ulna.drivers.arm import ArmState, DeviceError
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.servos import koch, so101
from ulna.drivers.servos.bus import Replies
from ulna.drivers.servos.calibration import JointCalibration, scale
from ulna.drivers.servos.group import DYNAMIXEL, FEETECH, Family, Servo, ServoGroup

pytestmark = pytest.mark.realtime


@pytest.fixture(params=["so101", "koch"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_contract(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        try:
            check_arm(arm, MonotonicClock())
        finally:
            arm.close()
        assert not b.plant.torque.any(), "closing leaves no torque"


def test_opening_reads_and_gives_no_torque(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, torque_rises(b.plant) as rises, running(b.arm(), enable=False) as arm:
        assert arm.read().data == pytest.approx(HOME, abs=0.004)
        until(lambda: arm.read().seq > 30, "it reads on")
        assert arm.health().state is ArmState.TORQUE_OFF
        assert arm.health().rate_hz > 5
        assert arm.faults() == ()
        assert rises == [0]
        arm.enable()
        time.sleep(0.1)
        assert b.plant.torque.all()
        assert np.abs(b.plant.position - HOME).max() < 0.01, "torque comes on where the arm is"
        arm.disable()
        assert not b.plant.torque.any()


def test_a_leader_is_read_and_has_no_torque(tmp_path: Path) -> None:
    with (
        bench("so101_leader", tmp_path) as b,
        torque_rises(b.plant) as rises,
        running(b.arm(), False) as arm,
    ):
        with pytest.raises(DeviceError, match=r"leader.*moved by hand"):
            arm.enable()
        with pytest.raises(DeviceError, match="leader"):
            arm.command(HOME, time.monotonic_ns())
        b.plant.position[0] = 0.5
        until(lambda: abs(arm.read().data[0] - 0.5) < 0.004, "it is read")
        assert rises == [0]


def test_the_grip_of_a_koch_leader_springs_open(tmp_path: Path) -> None:
    with bench("koch_leader", tmp_path) as b:
        with running(b.arm(spring_current=0), False) as arm, pytest.raises(DeviceError, match="no spring"):
            arm.spring()
        with running(b.arm(), False) as arm:
            with pytest.raises(DeviceError, match="leader"):
                arm.enable()
            arm.spring()
            until(lambda: b.plant.position[5] > 1.7, "the spring opens it")
            assert b.plant.torque.tolist() == [0, 0, 0, 0, 0, 1]
            assert b.plant.max_effort[5] < 0.05, "a finger is stronger"
            with pytest.raises(DeviceError, match="leader"):
                arm.command(HOME, time.monotonic_ns())
            assert arm.faults() == ()


# who is there


@pytest.mark.parametrize("dead", [(3,), (1, 2, 3, 4, 5, 6)])
def test_missing_servos_are_named(kind: str, tmp_path: Path, dead: tuple[int, ...]) -> None:
    with bench(kind, tmp_path) as b:
        b.twin.faults.dead = dead
        arm = b.arm()
        with pytest.raises(
            DeviceError, match=r"elbow_flex \(servo 3\)" if len(dead) == 1 else "no servo answers"
        ):
            arm.open()
        b.twin.faults.dead = ()
        with running(arm):  # and that left nothing behind
            until(lambda: bool(np.all(arm.read().valid)), "all answer")


def test_the_wrong_arm_is_not_opened(tmp_path: Path) -> None:
    with bench("koch_leader", tmp_path) as b, torque_rises(b.plant) as rises:
        arm = koch.make("arm", koch.Config(str(b.link), str(b.calibration)))
        with pytest.raises(DeviceError, match=r"shoulder_pan \(servo 1\).*XL330-M077.*must be a XL430-W250"):
            arm.open()
        arm.close()
        assert rises == [0]


def test_the_wrong_calibration_is_refused(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, bench(kind, tmp_path, "other", 40) as other_bench:
        arm = replace(b, calibration=other_bench.calibration).arm()
        with pytest.raises(
            DeviceError, match=r"wrist_flex \(servo 4\) is 12 in the servo and 52 in the file"
        ):
            arm.open()
        with pytest.raises(DeviceError, match="closed"):
            arm.enable()


def test_counts_of_turns_are_refused(tmp_path: Path) -> None:
    with (
        bench("so101", tmp_path, phase=12 | 0x10) as b,
        pytest.raises(DeviceError, match=r"turns.*ulna calibrate"),
    ):
        b.arm().open()


@pytest.mark.parametrize(("family", "load"), [(FEETECH, -0.3), (DYNAMIXEL, 0.3)])
def test_a_load_is_signed_as_its_joint_is(family: Family, load: float) -> None:
    """Where the servo counts against it; a Dynamixel inverts what it reads by itself."""

    class Bus:
        def read(self, registers: Sequence[str], ids: Sequence[int], retries: int) -> Replies:
            values = np.array([[2048, 300, 1][: len(registers)]] * len(ids), np.int64)
            return Replies(values, np.ones(len(ids), bool), np.zeros(len(ids), np.int64), 0, 0)

    joints = so101.JOINTS
    group = ServoGroup(cast(Any, Bus()), family, joints, [Servo(i, 777) for i in range(6)], "")
    calibration = {n: JointCalibration(i, i % 2, 0, 1024, 3072) for i, n in enumerate(joints.names)}
    group.scale = scale(calibration, joints, (), family is DYNAMIXEL)
    np.testing.assert_allclose(group.read().load, [0.3, load] * 3)


def test_a_missing_port_is_a_sentence(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b:
        arm = replace(b, link=tmp_path / "nothing").arm()
        with pytest.raises(DeviceError, match="nothing"):
            arm.open()
        assert arm.health().state is ArmState.CLOSED
        with pytest.raises(DeviceError, match="never open"):
            arm.read()


# the commander


def test_a_commander_that_is_killed_leaves_the_arm_where_it_is(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b:
        program = (
            "import time\n"
            "from ulna.drivers.servos import so101\n"
            f"arm = so101.make('arm', so101.Config({str(b.link)!r}, {str(b.calibration)!r}, watchdog_s=5))\n"
            "arm.open(); arm.enable(); goal = arm.read().data; goal[0] += 1.5\n"
            "arm.max_first_step = 9\n"
            "arm.command(goal, time.monotonic_ns() + 4_000_000_000)\n"
            "time.sleep(60)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            until(lambda: b.plant.position[0] > 0.2, "it moves")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.3)
        rest = b.plant.position.copy()
        time.sleep(0.3)
        assert rest[0] < 1.4
        assert b.plant.position == pytest.approx(rest, abs=0.01)
        assert b.plant.torque.all(), "it does not fall either"
        with running(b.arm(), enable=False) as arm:
            assert any("had torque on" in f for f in arm.faults())
            with pytest.raises(DeviceError, match="enable"):
                arm.command(rest, time.monotonic_ns())
            arm.enable()
            go(arm, rest, 0.2)
            assert b.plant.position == pytest.approx(rest, abs=0.02)


def test_commands_do_not_wait_for_a_slow_bus(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        go(arm, HOME, 0.1)
        b.twin.faults.dead = (1, 2, 3, 4, 5, 6)  # each cycle is nothing but timeouts
        durations_s = []
        for _ in range(20):
            start = time.monotonic()
            with contextlib.suppress(DeviceError):
                arm.command(HOME, time.monotonic_ns() + 50_000_000)
            arm.read()
            durations_s.append(time.monotonic() - start)
            time.sleep(0.01)
        assert np.median(durations_s) < 0.005
        until(lambda: any("no servo has answered" in f for f in arm.faults()), "it is said")
        b.twin.faults.dead = ()  # or closing would say that the torque may still be on
        until(lambda: bool(np.all(arm.read().valid)), "all answer again")


def test_threads_that_read_and_command_at_once(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm()) as arm:
        wrong: list[str] = []
        stop = threading.Event()

        def watch() -> None:
            last = -1
            while not stop.is_set():
                sample = arm.read()
                if sample.seq < last or not sample.t_capture_ns <= sample.t_receive_ns:
                    wrong.append(f"{last} {sample}")
                last = sample.seq
                arm.health()
                time.sleep(0.001)

        threads = [threading.Thread(target=watch) for _ in range(2)]
        for t in threads:
            t.start()
        try:
            go(arm, home_with(0, 0.4), 1.0)
            for _ in range(3):
                arm.disable()
                arm.enable()
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert wrong == []


@pytest.mark.parametrize("middle", [-700, 4500])
def test_a_kochs_range_may_leave_one_turn(tmp_path: Path, middle: int) -> None:
    """As in public calibrations: the counts of its servos go on over turns, and below 0."""
    with bench("koch", tmp_path, middle=middle) as b, running(b.arm()) as arm:
        go(arm, home_with(0, 0.3), 0.5)
        until(lambda: abs(b.plant.position[0] - 0.3) < 0.02, "it is there")
        assert arm.read().data[0] == pytest.approx(0.3, abs=0.02)
