"""The Feetech driver against servos on a pty: the contract of a bus, faults, ports."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_bus import check_bus, contents, eventually

from ulna.drivers.servos.bus import BusError
from ulna.drivers.servos.feetech import FeetechBus
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.feetech_servo import STALL_NM
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

pytestmark = pytest.mark.realtime

IDS = [1, 2, 3, 4, 5, 6]
SLACK_S = 0.1  # a busy machine may put the twin aside for a while


@pytest.fixture
def plant() -> Iterator[Plant]:
    plant = Plant.create(tuple("abcdef"), np.linspace(-0.5, 0.5, 6), np.full(6, STALL_NM))
    with SimpleMechanics(plant):
        yield plant
    plant.remove()


def servos(**registers: int) -> list[TwinServo]:
    return [TwinServo(i, 777, i - 1, 2048, -1 if i == 2 else 1, registers) for i in IDS]


@pytest.fixture
def twin(plant: Plant, tmp_path: Path) -> Iterator[FeetechTwin]:
    with FeetechTwin(plant, servos(), link=tmp_path / "follower") as twin:
        yield twin


@pytest.fixture
def bus(twin: FeetechTwin) -> Iterator[FeetechBus]:
    bus = FeetechBus(twin.port, slack_s=SLACK_S)
    bus.open()
    yield bus
    bus.close()


def test_keeps_the_contract_of_a_servo_bus(twin: FeetechTwin, plant: Plant) -> None:
    check_bus(lambda: FeetechBus(twin.port, slack_s=SLACK_S), twin, plant, "max_temperature", 65)


def test_a_dead_servo_costs_a_cycle_little(twin: FeetechTwin, bus: FeetechBus) -> None:
    twin.faults.dead = (4,)
    requests = []
    for _ in range(40):
        before = bus.stats.requests
        assert bus.read(["present_position"], IDS).valid.sum() == 5
        requests.append(bus.stats.requests - before)
    assert sum(requests) < 50, "after three times it is no longer asked again one by one"
    assert bus.stats.silent < 15, "nor waited for in every cycle"


def test_a_number_that_a_register_cannot_hold_is_refused_before_anything_is_sent(
    twin: FeetechTwin, bus: FeetechBus
) -> None:
    requests = twin.requests
    with pytest.raises(ValueError, match=r"homing_offset of servo 3 .* -2047\.\.2047, not 2114"):
        bus.write_checked("homing_offset", 3, 2114)
    assert twin.requests == requests


def test_what_no_servo_can_be_asked_is_refused(twin: FeetechTwin, bus: FeetechBus) -> None:
    requests = twin.requests
    for call in (
        lambda: bus.read(["present_position"], [1, 254]),  # 254 would be all of them
        lambda: bus.write("torque_enable", {254: 1}),
        lambda: bus.write_checked("torque_enable", 254, 1),
        lambda: bus.read(["present_position"], [-1]),
    ):
        with pytest.raises(ValueError, match=r"0\.\.253"):
            call()
    assert bus.read(["present_position"], []).values.shape == (0, 1)
    assert bus.read([], [1]).values.shape == (1, 0)
    bus.write("goal_position", {})
    assert twin.requests == requests


def test_a_locked_servo_says_yes_and_is_not_believed(bus: FeetechBus) -> None:
    with pytest.raises(BusError, match=r"servo 2 .* max_temperature = 60: its EEPROM is locked"):
        bus.write_checked("max_temperature", 2, 60)
    bus.write_checked("lock", 2, 0)
    bus.write_checked("max_temperature", 2, 60)
    bus.write_checked("lock", 2, 1)
    assert contents(bus, "max_temperature", [1, 2]).tolist() == [70, 60]


def test_a_late_confirmation_is_not_that_of_a_later_write(twin: FeetechTwin, bus: FeetechBus) -> None:
    # one write and two readings later
    twin.faults.late, twin.faults.late_s = 1.0, 3.4 * SLACK_S
    with pytest.raises(BusError, match="did not answer"):
        bus.write_checked("goal_time", 1, 7, retries=0)
    # the next write is lost, and the confirmation of the one before arrives during it
    twin.faults.late, twin.faults.dead = 0.0, (1,)
    with pytest.raises(BusError):
        bus.write_checked("goal_time", 1, 9, retries=0)
    twin.faults.dead = ()
    assert contents(bus, "goal_time", [1])[0] == 7
    bus.write_checked("goal_time", 1, 9)
    assert contents(bus, "goal_time", [1])[0] == 9


def test_a_scan_of_all_ids_is_quick(twin: FeetechTwin) -> None:
    bus = FeetechBus(twin.port, slack_s=0.02)
    bus.open()
    start = time.monotonic()
    models = bus.scan()
    assert set(models.items()) <= set(dict.fromkeys(IDS, 777).items())  # a busy machine may miss one
    assert models
    assert time.monotonic() - start < 253 * 0.06, "it grows no more patient with each id that nobody has"
    bus.close()


def test_wrong_speed_gets_no_answer_and_is_named(plant: Plant) -> None:
    with FeetechTwin(plant, servos(), baud=500_000) as twin:
        bus = FeetechBus(twin.port, slack_s=0.05)
        bus.open()
        assert bus.scan(IDS) == {}
        message = bus.explain_silence([1, 2])
        assert "answered at 500000 baud, not at 1000000" in message
        bus.close()
        right = FeetechBus(twin.port, baud=500_000, slack_s=SLACK_S)
        right.open()
        assert right.scan(IDS) == dict.fromkeys(IDS, 777)
        twin.faults.dead = (3,)
        assert "servo 3 did not answer" in right.explain_silence([1, 2, 3])
        assert "at no speed" in right.explain_silence([3])
        right.close()


def test_a_servo_takes_a_new_id_and_speed(bus: FeetechBus) -> None:
    bus.write_checked("lock", 6, 0)
    bus.write_checked("id", 6, 9)
    assert list(bus.scan([5, 6, 9])) == [5, 9]
    bus.write_checked("baud_rate", 9, 1)
    assert "answered at 500000" in bus.explain_silence([9])


def test_a_latched_overload_until_power_is_cycled(twin: FeetechTwin, plant: Plant, bus: FeetechBus) -> None:
    twin.faults.overload = (5,)
    assert eventually(lambda: bus.read(["present_position"], [5]).errors[0] == 0x20)
    with pytest.raises(BusError, match=r"torque_enable = 1: overload.*free what blocks"):
        bus.write_checked("torque_enable", 5, 1)
    bus.write("goal_position", {5: 2100})
    assert not plant.torque[4], "not by a goal either"
    twin.power_cycle()
    assert eventually(lambda: bus.ping(5) is not None)
    assert bus.read(["present_position"], [5]).errors[0] == 0
    bus.write_checked("torque_enable", 5, 1)
    bus.write_checked("torque_enable", 5, 0)


def test_status_bits_in_words(bus: FeetechBus) -> None:
    for bit, word in {1: "voltage", 2: "sensor", 4: "hot", 8: "current", 32: "overload"}.items():
        (message,) = bus.describe(bit)
        assert word in message
        assert ":" in message
    assert len(bus.describe(0x21)) == 2
    assert "0x40" in bus.describe(0x40)[0]


# the port


def test_a_busy_port_names_who_has_it(twin: FeetechTwin, bus: FeetechBus) -> None:
    with pytest.raises(BusError, match="busy: this process itself"):
        FeetechBus(twin.port).open()
    bus.close()
    hold = f"import serial, sys; s = serial.Serial({twin.port!r}); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        # it did not lock, and half of the replies would be its
        with pytest.raises(BusError, match=rf"busy: python.* \(pid {other.pid}\)") as error:
            bus.open()
        assert error.value.gone
        other.communicate()
    bus.open()
    assert bus.ping(1) == 777


def test_a_port_that_does_not_exist_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=f"no port {tmp_path}/x") as error:
        FeetechBus(str(tmp_path / "x")).open()
    assert error.value.gone
    (tmp_path / "file").write_text("")
    with pytest.raises(BusError, match="no serial port"):
        FeetechBus(str(tmp_path / "file")).open()
    with pytest.raises(BusError, match="no serial port"):
        FeetechBus("/dev/null").open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as somebody else")
def test_a_port_that_is_not_permitted_says_which_group() -> None:
    master, slave = os.openpty()
    path = os.ttyname(slave)
    group = grp.getgrnam("dialout")
    os.chown(path, -1, group.gr_gid)
    os.chmod(path, 0o660)
    code = (
        "import os, sys; from ulna.drivers.servos.feetech import FeetechBus; "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); FeetechBus(sys.argv[1]).open()"
    )
    child = subprocess.run([sys.executable, "-c", code, path], check=False, capture_output=True, text=True)
    assert f"you may not open {path}: run `sudo usermod -aG dialout $USER`" in child.stderr
    os.close(master)
    os.close(slave)
