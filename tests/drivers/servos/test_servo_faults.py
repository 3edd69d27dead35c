"""Arms of bus servos when things go wrong: bad lines, dead servos, cables, power, too much load. On twins
behind real ptys."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.servo_arm import (
    COUNTS_PER_RAD,
    HOME,
    bench,
    enables,
    go,
    home_with,
    interruption,
    running,
    torque_rises,
    until,
)

from ulna.drivers.arm import ArmState, DeviceError
from ulna.drivers.servos.bus import Replies
from ulna.drivers.servos.obstacles import Obstacles

pytestmark = pytest.mark.realtime


@pytest.fixture(params=["so101", "koch"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# bad lines


@pytest.mark.parametrize("fault", ["drop", "corrupt", "late"])
def test_bad_lines_lose_readings_and_never_make_them_up(kind: str, tmp_path: Path, fault: str) -> None:
    """A wrist swings while the other joints stand; no reading says otherwise."""
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        setattr(b.twin.faults, fault, 0.05)
        n_valid, end = 0, time.monotonic() + 1.5
        while time.monotonic() < end or n_valid < 30:
            goal = home_with(3, 0.3 * np.sin(4 * time.monotonic()))
            arm.command(goal, time.monotonic_ns() + 50_000_000)
            time.sleep(0.01)
            sample = arm.read()
            deviation = np.delete(sample.data - HOME, 3)
            assert np.abs(deviation).max() < 0.02, f"{fault}: {sample}"
            assert abs(sample.data[3] - HOME[3]) < 0.35
            n_valid += bool(np.all(sample.valid))
            assert time.monotonic() < end + 20
        assert arm.health().state is ArmState.ACTIVE
        assert arm.health().retries > 0
        setattr(b.twin.faults, fault, 0.0)
        go(arm, HOME, 0.6)
        assert arm.read().data == pytest.approx(HOME, abs=0.02)


def test_an_adapter_that_holds_bytes_back_is_waited_for(kind: str, tmp_path: Path) -> None:
    """It holds them for 16 ms, from the first request on, as an FTDI chip whose latency timer cannot be
    set."""
    with bench(kind, tmp_path) as b:
        b.twin.faults.delay_s = 0.016
        with running(b.arm()) as arm:
            go(arm, home_with(0, 0.2), 0.5)
            until(lambda: abs(arm.read().data[0] - 0.2) < 0.03, "it moves")
            until(lambda: bool(np.all(arm.read().valid)), "and is read")


def test_an_answer_that_was_long_under_way_counts_as_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        read_bus = arm.group.bus.read

        def on_a_busy_machine(*args: Any, **options: Any) -> Replies:
            replies = read_bus(*args, **options)
            return replace(replies, t_request_ns=replies.t_request_ns - 60_000_000)

        with monkeypatch.context() as busy:
            busy.setattr(arm.group.bus, "read", on_a_busy_machine)
            until(lambda: not np.any(arm.read().valid), "nobody knows when it was there")
            until(lambda: "no servo has answered" in " ".join(arm.faults()), "that goes on, and it says so")
            with pytest.raises(DeviceError, match="takes no command"):
                go(arm, HOME, 0.2)
        until(lambda: bool(np.all(arm.read().valid)), "it reads on")
        assert arm.faults() == ()


def test_a_dead_servo_makes_the_arm_hold_and_says_so(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, running(b.arm(watchdog_s=5.0, stale_s=0.5)) as arm:
        go(arm, HOME, 0.2)
        arm.command(home_with(0, 1.5), time.monotonic_ns() + 3_000_000_000)
        time.sleep(0.3)
        b.twin.faults.dead = (3,)
        until(lambda: any("elbow_flex (servo 3) has not answered" in f for f in arm.faults()), "it is said")
        sample = arm.read()
        assert sample.data[2] == pytest.approx(HOME[2], abs=0.01), "the last value is kept"
        assert not np.asarray(sample.valid)[2]
        with pytest.raises(DeviceError, match=r"elbow_flex \(servo 3\) has not answered"):
            arm.command(sample.data, time.monotonic_ns())
        time.sleep(0.3)
        rest = b.plant.position.copy()
        assert 0.05 < rest[0] < 1.4, "it was on its way, and holds"
        time.sleep(0.3)
        assert b.plant.position == pytest.approx(rest, abs=0.01)
        until(
            lambda: arm.read().seq > sample.seq + 5 and np.asarray(arm.read().valid)[0], "the others are read"
        )
        b.twin.faults.dead = ()
        until(lambda: arm.faults() == () and bool(np.all(arm.read().valid)), "it is back")
        go(arm, rest, 0.2)
        assert arm.health().state is ArmState.ACTIVE


# cables and power


@pytest.mark.parametrize("powered", [True, False], ids=["cable", "cable and power"])
def test_unplug_and_replug(kind: str, tmp_path: Path, powered: bool) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        go(arm, home_with(0, 0.3), 0.5)
        with torque_rises(b.plant) as rises:
            b.twin.faults.unplugged = True
            until(lambda: arm.health().state is ArmState.RECONNECTING, "it is noticed")
            one = arm.read()
            time.sleep(0.2)
            two = arm.read()
            assert not np.any(two.valid)
            assert (one.seq, one.t_capture_ns) == (two.seq, two.t_capture_ns)
            assert two.data == pytest.approx(b.plant.position, abs=0.2)
            with pytest.raises(DeviceError, match=r"port is gone"):
                arm.command(two.data, time.monotonic_ns())
            with pytest.raises(DeviceError, match="not there"):
                arm.enable()
            assert any("reopened" in f for f in arm.faults())
            if not powered:
                b.twin.power_cycle()
            b.twin.faults.unplugged = False
            until(lambda: arm.health().state is not ArmState.RECONNECTING, "it is back")
            until(lambda: bool(np.all(arm.read().valid)), "it reads")
            assert arm.health().reconnects == 1
            assert arm.health().state is (ArmState.STOPPED if powered else ArmState.TORQUE_OFF)
            with pytest.raises(DeviceError, match="enable"):
                arm.command(arm.read().data, time.monotonic_ns())
            position = b.plant.position.copy()
            time.sleep(0.3)
            assert b.plant.position == pytest.approx(position, abs=0.01), "it stays where it is"
            assert rises == [0], "nobody asked for torque"
        # servos that had power all the time hold the arm up, and it is said
        assert bool(b.plant.torque.all()) == powered
        assert any("had torque on" in f for f in arm.faults()) == powered
        arm.enable()
        go(arm, home_with(0, 0.1), 0.6)
        assert arm.read().data == pytest.approx(home_with(0, 0.1), abs=0.02)
        assert arm.faults() == ()


def test_another_arm_on_the_same_port_is_not_taken(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b:
        arm = b.arm()
        arm.open()
        arm.enable()
        b.twin.faults.unplugged = True
        until(lambda: arm.health().state is ArmState.RECONNECTING, "it is noticed")
        with bench("so101", tmp_path, offset=40) as other:
            until(lambda: any("12 in the file" in f for f in arm.faults()), "it is said")
            assert arm.health().state is ArmState.RECONNECTING
            assert not other.plant.torque.any()
            with pytest.raises(DeviceError, match="may still be on"):  # of the one that went away
                arm.close()


def test_a_port_that_stays_away_keeps_nobody_from_closing(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        arm.open()
        arm.enable()
        b.twin.faults.unplugged = True
        until(lambda: arm.health().state is ArmState.RECONNECTING, "it is noticed")
        with pytest.raises(DeviceError, match="not there"):
            arm.disable()
        with pytest.raises(DeviceError, match=r"closed, but its torque may still be on: cut the arm's power"):
            arm.close()
        assert arm.health().state is ArmState.CLOSED
        assert not np.any(arm.read().valid)
        b.twin.faults.unplugged = False
        until(b.link.exists, "the port is back")
        with running(arm, enable=False):
            assert any("had torque on" in f for f in arm.faults())
            arm.disable()
            assert not b.plant.torque.any()


@pytest.mark.parametrize("dark_s", [0.0, 0.3])
def test_a_loss_of_power_is_noticed_and_brings_no_torque_back(
    kind: str, tmp_path: Path, dark_s: float
) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        go(arm, HOME, 0.2)
        arm.command(home_with(0, 0.4), time.monotonic_ns() + 400_000_000)
        fallen = HOME + np.array([0, -0.8, 0.6, 0, 0, 0])
        with torque_rises(b.plant) as rises:
            b.twin.faults.dead = (1, 2, 3, 4, 5, 6) if dark_s else ()
            time.sleep(dark_s)
            b.twin.power_cycle()
            time.sleep(0.01)
            b.plant.position[:] = fallen
            b.twin.faults.dead = ()
            until(lambda: arm.health().state is ArmState.STOPPED, "it is noticed")
            until(lambda: "gripper (servo 6) went off by itself" in " ".join(arm.faults()), "it is said")
            time.sleep(0.3)
            assert rises == [0], "nobody enabled it"
        assert b.plant.position == pytest.approx(fallen), "it stays where it fell"
        b.plant.position[:] = HOME
        until(lambda: arm.read().data == pytest.approx(HOME, abs=0.01), "somebody lifts it")
        with pytest.raises(DeviceError, match="enable"):
            arm.command(HOME, time.monotonic_ns())
        arm.enable()
        assert b.plant.torque.all()
        go(arm, home_with(0, 0.2), 0.6)
        assert arm.faults() == ()


def test_one_servo_that_lost_its_power_gets_no_goal(kind: str, tmp_path: Path) -> None:
    """Its plug was loose for a moment. A goal would switch a Feetech servo's torque on again."""
    with bench(kind, tmp_path) as b, running(b.arm()) as arm, torque_rises(b.plant) as rises:
        go(arm, HOME, 0.2)
        rises_before = rises[0]
        b.twin.faults.dead = (2,)
        time.sleep(0.1)
        b.plant.torque[:] = 0  # with the registers
        b.twin.power_cycle()
        b.twin.faults.dead = ()
        until(lambda: any("shoulder_lift (servo 2)" in f for f in arm.faults()), "it is noticed")
        time.sleep(0.2)
        assert rises[0] == rises_before


# between off and on


def test_an_enable_that_fails_leaves_no_torque_that_it_does_not_tell_of(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        arm.open()

        def silence() -> None:
            b.twin.faults.dead = (3,)

        with (
            interruption(b, lambda r: enables(kind, r, 6), silence),
            pytest.raises(DeviceError, match=r"elbow_flex \(servo 3\) may still be on: cut the arm's power"),
        ):
            arm.enable()
        assert b.plant.torque.tolist() == [0, 0, 1, 0, 0, 0]
        assert arm.health().state is ArmState.STOPPED
        assert any("elbow_flex (servo 3) had torque on" in f for f in arm.faults())
        with pytest.raises(DeviceError, match="elbow_flex"):
            arm.command(HOME, time.monotonic_ns())
        with pytest.raises(DeviceError, match=r"closed, but .* elbow_flex \(servo 3\) may still be on"):
            arm.close()
        assert arm.health().state is ArmState.CLOSED
        b.twin.faults.dead = ()
        arm.open()
        assert arm.health().state is ArmState.STOPPED
        arm.close()  # nobody else switched it on
        assert not b.plant.torque.any()


def test_a_cable_that_comes_out_while_the_torque_comes_on(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        arm.open()

        def unplug() -> None:
            b.twin.faults.unplugged = True

        with interruption(b, lambda r: enables(kind, r, 4), unplug), pytest.raises(DeviceError):
            arm.enable()
        b.twin.faults.unplugged = False
        until(lambda: arm.health().reconnects == 1 and bool(np.all(arm.read().valid)), "it is back")
        assert b.plant.torque.any()
        assert arm.health().state is ArmState.STOPPED
        assert any("had torque on" in f for f in arm.faults())
        arm.close()
        assert not b.plant.torque.any()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: tests that run in the background were started with it ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_close_switches_the_torque_off_all_the_same(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        arm.open()
        arm.enable()
        with (
            interruption(b, lambda r: enables(kind, r, 1, 0), lambda: os.kill(os.getpid(), signal.SIGINT)),
            pytest.raises(KeyboardInterrupt),
        ):
            arm.close()
        assert not b.plant.torque.any()
        assert arm.health().state is ArmState.CLOSED


def test_a_servo_that_does_not_confirm_at_the_end_is_named(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b:
        arm = b.arm()
        arm.open()
        arm.enable()
        b.twin.faults.dead = (3,)
        with pytest.raises(
            DeviceError, match=r"elbow_flex \(servo 3\) may still be on, it does not confirm: cut the arm's"
        ):
            arm.close()
        assert b.plant.torque.tolist() == [0, 0, 1, 0, 0, 0]
        assert arm.health().state is ArmState.CLOSED
        arm.close()


# where a Feetech servo's count of one turn ends


@pytest.mark.parametrize(("middle", "count"), [(1291, -30), (2804, 4095 + 30)], ids=["low", "high"])
def test_a_joint_beyond_the_end_of_its_servos_count_gets_no_torque(
    tmp_path: Path, middle: int, count: int
) -> None:
    with bench("so101", tmp_path, middle=middle) as b, running(b.arm(), enable=False) as arm:
        b.plant.position[0] = position = (count - middle) / COUNTS_PER_RAD
        until(lambda: abs(arm.read().data[0] - position) < 0.01, "it is read, a little beside its range")
        with torque_rises(b.plant) as rises:
            with pytest.raises(DeviceError, match=r"shoulder_pan \(servo 1\) stands where .* turn ends"):
                arm.enable()
            assert rises == [0]
        assert b.plant.position[0] == position


@pytest.mark.parametrize(("middle", "count"), [(1291, -30), (2804, 4095 + 30)], ids=["low", "high"])
def test_a_joint_pushed_beyond_the_end_of_its_servos_count_does_not_go_all_the_way_round(
    tmp_path: Path, middle: int, count: int
) -> None:
    with bench("so101", tmp_path, middle=middle) as b:
        end = (45 - middle) / COUNTS_PER_RAD if count < 0 else (4050 - middle) / COUNTS_PER_RAD
        b.plant.position[0] = end
        with running(b.arm()) as arm:
            b.plant.position[0] = b.plant.goal[0] = (count - middle) / COUNTS_PER_RAD
            furthest = 0.0
            until(lambda: abs(arm.read().data[0] - end) > 0.05, "it is read")
            for _ in range(60):
                furthest = max(furthest, abs(b.plant.position[0] - end))
                time.sleep(0.01)
            assert furthest < 1.0


# too much load


def test_an_overload_latch_stops_the_arm_and_says_what_to_do(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        go(arm, HOME, 0.2)
        b.twin.faults.overload = (2,)
        until(lambda: arm.health().state is ArmState.STOPPED, "it is noticed")
        until(lambda: any("shoulder_lift (servo 2): overload" in f for f in arm.faults()), "in words")
        with pytest.raises(DeviceError, match="stopped"):
            arm.command(HOME, time.monotonic_ns())
        with pytest.raises(DeviceError, match=r"torque stays off: shoulder_lift \(servo 2\): overload"):
            arm.enable()
        b.twin.faults.overload = ()
        b.twin.power_cycle()
        until(lambda: not any("(servo 2): overload" in f for f in arm.faults()), "it is over")
        arm.enable()
        go(arm, home_with(0, 0.2), 0.6)
        assert arm.faults() == ()


@pytest.mark.parametrize("joint", [0, 5])
def test_a_blocked_joint_backs_off_before_the_servo_lets_go(kind: str, tmp_path: Path, joint: int) -> None:
    with bench(kind, tmp_path) as b, running(b.arm()) as arm:
        go(arm, HOME, 0.2)
        b.twin.faults.stuck = (joint,)
        name = arm.joints.names[joint]
        end = time.monotonic() + 20
        while not any(f.startswith(name) and "is blocked" in f for f in arm.faults()):
            assert time.monotonic() < end
            go(arm, home_with(joint, 0.8), 0.1)
        until(lambda: abs(b.plant.goal[joint] - HOME[joint]) < 0.12, "it only leans")
        command = arm.command(home_with(joint, 0.8), time.monotonic_ns() + 50_000_000)
        assert command[joint] == pytest.approx(b.plant.goal[joint], abs=0.03), "what was sent is told"
        assert np.delete(command - HOME, joint) == pytest.approx(np.zeros(5), abs=0.01)
        go(arm, home_with(joint, 0.8), 2.5)
        assert b.plant.torque.all(), "the servo's own protection did not have to"
        assert abs(b.plant.goal[joint] - HOME[joint]) < 0.12
        b.twin.faults.stuck = ()
        end = time.monotonic() + 20
        while arm.faults():  # it feels its way on, and finds itself free
            go(arm, home_with(joint, 0.3), 0.1)
            assert time.monotonic() < end
        go(arm, home_with(joint, 0.4), 1.0)
        assert arm.read().data == pytest.approx(home_with(joint, 0.4), abs=0.02)


def test_a_joint_that_strains_to_and_fro_is_held_back_in_time() -> None:
    """It stays near its goal, moves a little and never rests, as an arm that leans on the table while its
    policy hesitates."""
    obstacles, both, q, strain_s = Obstacles(2), np.ones(2, bool), np.zeros(2), 0.0
    start = time.monotonic()
    while not obstacles.blocked.any():
        t = time.monotonic() - start
        assert t < 1.8, "the servo's own protection would have let go after 2 s"
        strain_s = t
        q = np.full(2, 0.05 * np.sin(9 * t))
        obstacles.look(q, np.array([0.9, 0.7]), both, q + 0.06)
        time.sleep(0.01)
    assert strain_s > 0.9
    assert obstacles.blocked.tolist() == [1, 0]
    assert obstacles.limit(q + 0.06) == pytest.approx([q[0] + 0.03, q[1] + 0.06])


def test_the_gripper_squeezes_with_half_its_strength(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm()):
        assert b.plant.max_effort == pytest.approx([1.91] * 5 + [0.955], abs=0.01)
