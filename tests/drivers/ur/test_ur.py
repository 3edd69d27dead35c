"""The UR driver, and ur_rtde itself, against a controller twin on TCP."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from contracts.arm import PERIOD_NS, check_arm, drive
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.drivers.arm import ArmState, DeviceError
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.config import parse
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.ur import URTwin
from ulna.drivers.twins.ur_controller import URFaults
from ulna.drivers.ur import arm as ur
from ulna.drivers.ur.process import ask_dashboard, follow

pytestmark = pytest.mark.realtime

HOME = np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0])
CLOCK = MonotonicClock()


@dataclass
class Cell:
    """A controller twin with its plant and faults."""

    twin: URTwin
    plant: Plant
    faults: URFaults

    def arm(self, **settings: object) -> ur.UR:
        """A driver with timeouts long enough for a busy machine."""
        table = {
            "host": self.twin.host,
            "max_velocity": 3.14,
            "link_watchdog_s": 4.0,
            "lost_s": 2.0,
            **settings,
        }
        return ur.make("arm", parse(ur.Config, table, "test"))


@pytest.fixture
def cell() -> Iterator[Cell]:
    # with a gripper behind the six joints, which is none of the arm's business
    plant = Plant.create((*ur.NAMES, "gripper"), np.append(HOME, 0.03), np.full(7, 150.0))
    faults = URFaults()
    # any address in 127.0.0.0/8 is this machine: two suites at a time take two
    host = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    try:
        with SimpleMechanics(plant, 3.3), URTwin(plant, host, faults) as twin:
            yield Cell(twin, plant, faults)
    finally:
        plant.remove()


@pytest.fixture
def arm(cell: Cell) -> Iterator[ur.UR]:
    arm = cell.arm()
    arm.open()
    yield arm
    arm.close()


def wait(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def nudge(arm: ur.UR, by: float = 0.1, ticks: int = 10) -> np.ndarray:
    goal = arm.read().data.copy()
    goal[0] += by
    drive(arm, CLOCK, goal, ticks)
    return goal


def valid(arm: ur.UR) -> bool:
    return bool(np.all(arm.read().valid))


def test_keeps_the_contract_of_an_arm(cell: Cell) -> None:
    check_arm(cell.arm(), CLOCK)


def test_reads_at_the_rate_of_the_controller_and_in_its_time(cell: Cell, arm: ur.UR) -> None:
    time.sleep(1.2)
    assert 50 < arm.health().rate_hz < 600  # 500 on a machine with nothing else to do
    ages = []
    for _ in range(50):
        sample = arm.read()
        assert sample.t_capture_ns <= sample.t_receive_ns <= time.monotonic_ns()
        ages.append(sample.t_receive_ns - sample.t_capture_ns)
        time.sleep(0.005)
    assert np.median(ages) < 20e6
    cell.plant.position[3] = -1.0  # as by hand: what is read is the plant
    wait(lambda: abs(arm.read().data[3] + 1.0) < 1e-9 or abs(arm.read().data[3] + 1.57) < 0.5)


def test_a_stream_that_stalls_is_old_data_and_no_exception(cell: Cell, arm: ur.UR) -> None:
    arm.enable()
    nudge(arm)
    cell.faults.stalled = True
    while True:
        read_ns = time.monotonic_ns()
        first = arm.read()
        if not np.any(first.valid):
            break
        assert read_ns - first.t_receive_ns < 0.1e9, "what is older is not valid"
        time.sleep(0.001)
    time.sleep(0.2)
    second = arm.read()
    assert (second.seq, second.t_capture_ns) == (first.seq, first.t_capture_ns)
    assert (second.data == first.data).all()
    cell.faults.stalled = False
    wait(lambda: valid(arm))
    assert arm.read().seq > first.seq


def test_gone_and_back_waits_for_enable(cell: Cell, arm: ur.UR) -> None:
    arm.enable()
    nudge(arm)
    sample_before = arm.read()
    cell.faults.unplugged = True
    wait(lambda: arm.health().state is ArmState.RECONNECTING)
    assert not valid(arm)
    assert arm.read().seq >= sample_before.seq
    assert "cable" in arm.faults()[0]
    with pytest.raises(DeviceError, match="away"):
        arm.command(sample_before.data, time.monotonic_ns() + PERIOD_NS)
    with pytest.raises(DeviceError, match="away"):
        arm.enable()
    time.sleep(0.8)  # at least one attempt fails
    cell.faults.unplugged = False
    wait(lambda: arm.health().state is ArmState.TORQUE_OFF and valid(arm))
    after = arm.read()
    assert after.seq > sample_before.seq
    assert after.t_capture_ns > sample_before.t_capture_ns
    assert arm.health().reconnects == 1
    assert "false" in ask_dashboard(cell.twin.host, "running"), "no program comes back by itself"
    with pytest.raises(DeviceError, match="enable"):
        arm.command(after.data, time.monotonic_ns() + PERIOD_NS)
    arm.enable()
    goal = nudge(arm)
    wait(lambda: abs(arm.read().data[0] - goal[0]) < 0.05, 3.0)


def test_a_driver_process_that_dies_is_replaced(cell: Cell, arm: ur.UR) -> None:
    """As when ur_rtde corrupts the heap and aborts."""
    arm.enable()
    assert arm._child
    os.kill(arm._child.process.pid, signal.SIGABRT)
    wait(lambda: arm.health().state is ArmState.TORQUE_OFF and valid(arm))
    assert "false" in ask_dashboard(cell.twin.host, "running")


def test_a_protective_stop_latches_until_enable(cell: Cell, arm: ur.UR) -> None:
    arm.enable()
    nudge(arm)
    cell.faults.protective_stop = True
    wait(lambda: any("protective stop" in f for f in arm.faults()))
    wait(lambda: arm.health().state is ArmState.TORQUE_OFF)
    assert "unlock" in arm.health().message
    with pytest.raises(DeviceError, match=r"protective stop.*enable"):
        arm.command(arm.read().data, time.monotonic_ns() + PERIOD_NS)
    with pytest.raises(DeviceError, match="unlock"):
        arm.enable()
    assert valid(arm), "reading goes on"
    ask_dashboard(cell.twin.host, "unlock protective stop")
    wait(lambda: "script ended" in arm.faults()[0])
    with pytest.raises(DeviceError, match="enable"):
        arm.command(arm.read().data, time.monotonic_ns() + PERIOD_NS)
    arm.enable()
    nudge(arm)


def test_an_arm_that_is_held_fast_stops_itself(cell: Cell, arm: ur.UR) -> None:
    arm.enable()
    nudge(arm)
    cell.faults.stuck = (0,)
    goal = arm.read().data.copy()
    goal[0] += 1.5
    with pytest.raises(DeviceError, match="protective stop"):
        drive(arm, CLOCK, goal, 100)
    assert cell.plant.stuck[0]
    cell.faults.stuck = ()
    wait(lambda: not cell.plant.stuck[0])


def test_says_what_stands_in_the_way(cell: Cell, arm: ur.UR) -> None:
    for fault, words in (
        ("emergency_stop", "release the button"),
        ("powered_off", "power it on"),
        ("local_control", "Remote Control"),
    ):
        setattr(cell.faults, fault, True)
        wait(lambda words=words: any(words in f for f in arm.faults()))
        with pytest.raises(DeviceError, match=words):
            arm.enable()
        setattr(cell.faults, fault, False)
        wait(lambda words=words: not any(words in f for f in arm.faults()))
        arm.enable()
        assert arm.faults() == ()


def test_the_watchdog_brakes_and_a_long_hold_keeps_the_script(cell: Cell) -> None:
    arm = cell.arm(link_watchdog_s=1.0, watchdog_s=0.3)
    arm.open()
    arm.enable()
    nudge(arm, 0.02, 2)
    goal = arm.read().data.copy()
    goal[0] += 1.0
    arm.command(goal, time.monotonic_ns() + 2_000_000_000)
    time.sleep(1.5)
    rest = arm.read().data
    assert HOME[0] < rest[0] < goal[0] - 0.3
    time.sleep(1.5)  # longer than the controller waits for a word
    assert arm.health().state is ArmState.ACTIVE
    assert np.abs(arm.read().data - rest).max() < 1e-3
    arm.close()


def test_the_controller_stops_when_the_computer_falls_silent(cell: Cell) -> None:
    arm = cell.arm(link_watchdog_s=0.5, lost_s=10.0)
    arm.open()
    arm.enable()
    assert arm._child
    os.kill(arm._child.process.pid, signal.SIGSTOP)
    wait(lambda: "false" in ask_dashboard(cell.twin.host, "running"), 5.0)
    os.kill(arm._child.process.pid, signal.SIGCONT)
    wait(lambda: arm.health().state is ArmState.TORQUE_OFF)
    assert any("ended" in f for f in (arm.health().message,))
    arm.close()


def test_a_step_of_the_controllers_clock_is_noticed(cell: Cell, arm: ur.UR) -> None:
    time.sleep(0.3)
    before = arm.read()
    for step_s in (-100.0, 100.0):
        steps = arm._require_memory().control.read()["clock_steps"]
        cell.faults.clock_step_s = step_s
        wait(lambda steps=steps: arm._require_memory().control.read()["clock_steps"] > steps, 5.0)
        for _ in range(20):
            time.sleep(0.01)
            sample = arm.read()
            assert before.t_capture_ns <= sample.t_capture_ns <= sample.t_receive_ns
            assert sample.t_receive_ns - sample.t_capture_ns < 0.5e9
            before = sample


def test_late_data_are_known_to_be_late(cell: Cell, arm: ur.UR) -> None:
    time.sleep(0.5)
    cell.faults.delay_s = 0.05
    time.sleep(0.5)
    sample = arm.read()
    assert sample.t_receive_ns - sample.t_capture_ns > 0.04e9


def test_closing_stops_the_program(cell: Cell, arm: ur.UR) -> None:
    arm.enable()
    assert "true" in ask_dashboard(cell.twin.host, "running")
    arm.close()
    wait(lambda: "false" in ask_dashboard(cell.twin.host, "running"), 5.0)
    with pytest.raises(DeviceError, match="open"):
        arm.read()
    assert arm.health().state is ArmState.CLOSED


def test_a_program_whose_computer_process_is_killed_is_stopped(cell: Cell) -> None:
    script = f"""
import time
from ulna.drivers.ur import arm as ur
arm = ur.make("arm", ur.Config(host="{cell.twin.host}", link_watchdog_s=5.0))
arm.open()
arm.enable()
print("enabled", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "enabled\n"
        process.kill()
    wait(lambda: "false" in ask_dashboard(cell.twin.host, "running"), 4.0)


def test_no_controller_is_one_sentence() -> None:
    arm = ur.make("left", ur.Config(host="127.9.9.9"))
    with pytest.raises(DeviceError, match=r"UR left at 127\.9\.9\.9 does not answer"):
        arm.open()
    arm.close()
    with pytest.raises(DeviceError, match="lower must be a list of 6"):
        ur.make("left", parse(ur.Config, {"host": "x", "lower": [0.0]}, "robot.toml: arms.left"))
    with pytest.raises(DeviceError, match="upper"):
        ur.make("left", parse(ur.Config, {"host": "x", "upper": [9.0] * 6}, "robot.toml: arms.left"))
    with pytest.raises(DeviceError, match=r"must lie in 20\.\.500 Hz"):
        parse(ur.Config, {"host": "x", "hz": 1000}, "robot.toml: arms.left")


def test_ur_rtde_itself_finds_a_controller(cell: Cell) -> None:
    """The whole default recipe, a script upload, and its own moves. In a process of its own, as the driver
    has it."""
    script = f"""
import json, time
from rtde_control import RTDEControlInterface
from rtde_receive import RTDEReceiveInterface
from dashboard_client import DashboardClient
receive = RTDEReceiveInterface("{cell.twin.host}")
control = RTDEControlInterface("{cell.twin.host}")
d = DashboardClient("{cell.twin.host}")
d.connect()
out = {{"modes": [receive.getRobotMode(), receive.getSafetyMode()], "program": control.isProgramRunning()}}
out["remote"], out["dashboard"] = d.isInRemoteControl(), [d.robotmode(), d.safetystatus(), d.running()]
q = receive.getActualQ()
q[0] += 0.4
out["moved"] = control.moveJ(q, 2.0, 2.0)
time.sleep(0.3)
out["move"] = receive.getActualQ()[0] - q[0]
control.speedJ([-1.0, 0, 0, 0, 0, 0], 5.0, 0.1)
time.sleep(0.5)
control.speedStop()
time.sleep(0.3)
out["speed"] = receive.getActualQ()[0] - q[0]
rest = receive.getActualQ()[0]
time.sleep(0.3)
out["creep"] = receive.getActualQ()[0] - rest
q[0] = receive.getActualQ()[0] + 0.1
for _ in range(50):
    control.servoJ(q, 0.0, 0.0, 0.008, 0.1, 300)
    time.sleep(0.008)
out["stopped"] = control.servoStop()
out["servo"] = receive.getActualQ()[0] - q[0]
control.stopScript()
time.sleep(0.2)
out["after"] = control.isProgramRunning()
print(json.dumps(out), flush=True)
import os; os._exit(0)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    out = json.loads(process.stdout.strip().splitlines()[-1])
    assert out["modes"] == [7, 1]
    assert out["program"]
    assert out["moved"]
    assert out["stopped"]
    assert out["remote"]
    assert not out["after"]
    assert out["dashboard"] == ["Robotmode: RUNNING", "Safetystatus: NORMAL", True]
    assert abs(out["move"]) < 0.01
    assert -3.0 < out["speed"] < -0.1
    assert abs(out["creep"]) < 1e-6
    assert abs(out["servo"]) < 0.01


def test_rtde_on_the_wire(cell: Cell) -> None:
    """Byte by byte, after the RTDE guide: versions, types, unknown variables, a rate, pause."""

    def ask(kind: str, body: bytes) -> bytes:
        link.sendall(struct.pack(">HB", len(body) + 3, ord(kind)) + body)
        while True:
            answer_kind, answer = package()
            if answer_kind == kind:
                return answer

    def package() -> tuple[str, bytes]:
        size, kind = struct.unpack(">HB", stream.read(3))
        return chr(kind), stream.read(size - 3)

    with socket.create_connection((cell.twin.host, 30004), 5) as link, link.makefile("rb") as stream:
        assert ask("V", b"\0\7") == b"\0"
        assert ask("V", b"\0\2") == b"\1"
        assert struct.unpack(">4I", ask("v", b""))[0] == 5
        assert ask("O", struct.pack(">d", 125.0) + b"timestamp,no_such_thing") == b"\0DOUBLE,NOT_FOUND"
        assert ask("S", b"") == b"\0", "nothing to send yet"
        names = b"timestamp,actual_q,robot_mode,joint_mode,actual_digital_input_bits,"
        assert ask("O", struct.pack(">d", 125.0) + names) == b"\1DOUBLE,VECTOR6D,INT32,VECTOR6INT32,UINT64"
        assert (
            ask("I", b"input_int_register_0,input_bit_register_64,standard_digital_output")
            == b"\1INT32,BOOL,UINT8"
        )
        assert ask("S", b"") == b"\1"
        layout = struct.Struct(">Bd6di6iQ")
        rows = [layout.unpack(package()[1]) for _ in range(50)]
        assert all(row[0] == 1 and row[8] == 7 for row in rows)
        np.testing.assert_allclose(rows[0][2:8], HOME)
        assert np.median(np.diff([row[1] for row in rows])) == pytest.approx(0.008, abs=0.003)
        assert ask("P", b"") == b"\1"
        link.sendall(b"\0\1U")  # a size that cannot be: it hangs up
        assert stream.read() == b""


def test_the_twin_as_a_process() -> None:
    plant = Plant.create(ur.NAMES, HOME, np.full(6, 150.0))
    host = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    description = {"plant": str(plant.path), "host": host, "faults": {"local_control": True}}
    with subprocess.Popen(
        [sys.executable, "-m", "ulna.drivers.twins.ur"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def say(order: object) -> dict[str, object]:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert say(description) == {"host": host}
        assert ask_dashboard(host, "is in remote control") == "false"
        assert say({"faults": {"local_control": False, "protective_stop": True}}) == {"ok": True}
        wait(lambda: "PROTECTIVE" in ask_dashboard(host, "safetystatus"))
        assert "protective_stop" in str(say({"faults": {"protective_stp": True}})["error"])
        assert "understands" in str(say({"ok": 1})["error"])
        assert say({"faults": {"protective_stop": False}}) == {"ok": True}
        assert say({"reset": True}) == {"ok": True}
        wait(lambda: "NORMAL" in ask_dashboard(host, "safetystatus"))
        with pytest.raises(DeviceError, match="choose another host"):
            URTwin(plant, host).start()
        process.stdin.close()
        assert process.wait(10) == 0
    plant.remove()


@settings(max_examples=25, deadline=None)
@given(st.floats(-6.0, 6.0), st.floats(0.1, 3.1), st.floats(0.5, 40.0), st.sampled_from([0.002, 0.008, 0.02]))
def test_setpoints_keep_speed_and_acceleration_and_arrive(
    goal: float, max_speed: float, acceleration: float, dt: float
) -> None:
    target, q, v = np.array([goal]), np.zeros(1), np.zeros(1)
    for _ in range(round((abs(goal) / max_speed + 2 * max_speed / acceleration + 2.0) / dt)):
        q_next, v_next = follow(q, v, target, dt, max_speed, acceleration)
        assert abs(v_next[0]) <= max_speed + 1e-9
        assert abs(v_next[0] - v[0]) <= acceleration * dt + 1e-9
        q, v = q_next, v_next
    assert q[0] == pytest.approx(goal, abs=1e-3 + acceleration * dt**2)
