"""Dynamixel protocol 2.0: the bus against its twin over a pty."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from contracts.dynamixel import IDS, XL330, twin_of, wait_for
from contracts.servo_bus import check_bus

from ulna.drivers.servos.bus import BusError
from ulna.drivers.servos.dynamixel import DynamixelBus
from ulna.drivers.servos.dynamixel_registers import describe_hardware
from ulna.drivers.twins.dynamixel import DynamixelTwin

pytestmark = pytest.mark.realtime

PATIENT_S = 0.25  # of slack, where a loaded machine must not look like a silent servo
RAD_PER_COUNT = 2 * math.pi / 4096


@contextmanager
def bus_of(
    twin: DynamixelTwin, slack_s: float = PATIENT_S, fast: bool = False, baud: int = 1_000_000
) -> Iterator[DynamixelBus]:
    bus = DynamixelBus(twin.port, baud, slack_s=slack_s, fast=fast)
    bus.open()
    try:
        yield bus
    finally:
        bus.close()


def value(bus: DynamixelBus, register: str, servo: int) -> int:
    reply = bus.read([register], [servo], retries=3)
    assert reply.valid[0]
    return int(reply.values[0, 0])


@pytest.mark.parametrize("fast", [False, True])
def test_keeps_the_contract_of_a_servo_bus(fast: bool, tmp_path: Path) -> None:
    with twin_of(link=tmp_path / "follower", directions=(1, -1)) as twin:
        twin.plant.position[:] = twin.plant.goal[:] = np.linspace(-0.5, 0.5, 6)
        check_bus(
            lambda: DynamixelBus(twin.port, slack_s=0.1, fast=fast), twin, twin.plant, "temperature_limit", 65
        )


@pytest.mark.parametrize("fast", [False, True])
def test_reads_and_writes_of_several_servos(fast: bool) -> None:
    with twin_of() as twin, bus_of(twin, fast=fast) as bus:
        twin.plant.position[:] = np.arange(6) * 0.1
        assert bus.scan(IDS) == dict.fromkeys(IDS, XL330)
        assert bus.ping(3) == XL330
        bus.write("goal_position", {i: 2048 + 10 * i for i in IDS})
        reply = bus.read(["goal_position", "present_position", "present_temperature"], IDS)
        assert reply.valid.all()
        assert reply.values.dtype == np.int64
        assert reply.t_request_ns < reply.t_receive_ns
        assert reply.values[:, 0].tolist() == [2048 + 10 * i for i in IDS]
        assert reply.values[:, 1].tolist() == [round(2048 + k * 0.1 * 4096 / (2 * math.pi)) for k in range(6)]
        assert (reply.values[:, 2] == 31).all()
        assert bus.read(["present_position"], []).values.shape == (0, 1)
        assert bus.fast == fast


def test_negative_and_header_like_numbers_come_back_as_written() -> None:
    with twin_of([1, 2]) as twin, bus_of(twin) as bus:
        for offset in (-1, -300, 0x00FDFF, -0x00020001 & 0xFFFFF):
            bus.write_checked("homing_offset", 1, offset)
            assert value(bus, "homing_offset", 1) == offset
        bus.write("goal_current", {1: -700, 2: 700})
        assert bus.read(["goal_current"], [1, 2]).values[:, 0].tolist() == [-700, 700]
        for name, bad, why in (
            ("led", 256, "8 bits"),
            ("return_delay_time", -1, "unsigned"),
            ("goal_positon", 1, "goal_position"),
        ):
            requests = twin.requests
            with pytest.raises(ValueError, match=why):
                bus.write_checked(name, 1, bad)
            with pytest.raises(ValueError, match=why):
                bus.write(name, {1: bad})
            assert twin.requests == requests
        with pytest.raises(ValueError, match="252"):
            bus.ping(254)


def test_moves_to_a_goal_and_reports_it() -> None:
    with twin_of([1]) as twin, bus_of(twin) as bus:
        bus.write_checked("goal_position", 1, 2300)
        assert twin.plant.torque[0] == 0
        assert value(bus, "present_position", 1) == 2048
        bus.write_checked("torque_enable", 1, 1)
        wait_for("the goal", lambda: value(bus, "present_position", 1) == 2300)
        wait_for("its rest", lambda: value(bus, "moving", 1) == 0)


def test_extended_mode_counts_turns_and_position_mode_does_not() -> None:
    # the joint stands a little below the wrap: 4090 counts; the first turn of the encoder ends 6 counts on
    with twin_of([1], position=2042 * 2 * math.pi / 4096) as twin, bus_of(twin) as bus:
        assert value(bus, "present_position", 1) == 4090
        bus.write_checked("operating_mode", 1, 4)
        bus.write_checked("goal_position", 1, 4300)
        bus.write_checked("torque_enable", 1, 1)
        wait_for("the goal", lambda: value(bus, "present_position", 1) == 4300)
        bus.write_checked("torque_enable", 1, 0)
        bus.write_checked("operating_mode", 1, 3)
        assert value(bus, "present_position", 1) == 4300 - 4096


def test_homing_offset_shifts_what_is_read_and_wanted() -> None:
    with twin_of([1], position=0.0) as twin, bus_of(twin) as bus:
        bus.write_checked("operating_mode", 1, 4)
        bus.write_checked("homing_offset", 1, -2048)
        assert value(bus, "present_position", 1) == 0
        bus.write_checked("goal_position", 1, 100)
        bus.write_checked("torque_enable", 1, 1)
        wait_for("the goal", lambda: value(bus, "present_position", 1) == 100)
        # the register rounds to the nearest count, and may show the goal while the joint still creeps up to
        # it
        assert twin.plant.position[0] == pytest.approx(100 * RAD_PER_COUNT, abs=RAD_PER_COUNT / 2)
        # beyond a quarter turn position mode ignores it
        bus.write_checked("torque_enable", 1, 0)
        bus.write_checked("operating_mode", 1, 3)
        assert value(bus, "present_position", 1) == 2148


def test_current_based_mode_limits_the_effort() -> None:
    with twin_of([1]) as twin, bus_of(twin) as bus:
        bus.write_checked("operating_mode", 1, 5)
        bus.write_checked("goal_current", 1, 147)
        assert twin.plant.max_effort[0] == pytest.approx(0.052)
        twin.faults.stuck = (0,)
        bus.write_checked("goal_position", 1, 3000)
        bus.write_checked("torque_enable", 1, 1)
        wait_for("the current", lambda: value(bus, "present_current", 1) == 147)
        assert value(bus, "present_position", 1) == 2048


def test_refusals_are_explained() -> None:
    with twin_of([1, 2]) as twin, bus_of(twin) as bus:
        with pytest.raises(BusError, match="limits set in the servo"):
            bus.write_checked("goal_position", 1, 4096)
        assert value(bus, "goal_position", 1) == 2048
        with pytest.raises(BusError, match="outside of what the register may hold"):
            bus.write_checked("operating_mode", 1, 16)
        with pytest.raises(BusError, match="read-only"):
            bus.write_checked("present_position", 1, 7)
        bus.write_checked("torque_enable", 1, 1)
        with pytest.raises(BusError, match=r"EEPROM.*torque_enable = 0"):
            bus.write_checked("operating_mode", 1, 4)
        bus.write_checked("torque_enable", 1, 0)
        bus.write_checked("operating_mode", 1, 4)
        bus.write_checked("goal_position", 1, 4096)
        with pytest.raises(BusError, match=r"did not confirm .*power"):
            DynamixelBus.write_checked(bus, "led", 9, 1, retries=0)
        for code in range(1, 8):
            assert bus.describe(code)
            assert not bus.describe(code)[0].startswith("unknown")
        assert bus.describe(0) == ()
        assert bus.describe(0x80 | 6)[0].startswith("hardware error")


def test_an_overload_latches_until_power_is_cycled() -> None:
    with twin_of([1, 2]) as twin, bus_of(twin) as bus:
        bus.write("goal_position", {1: 3000, 2: 3000})
        twin.faults.stuck = (0,)
        for i in (1, 2):
            bus.write_checked("torque_enable", i, 1)
        wait_for("the overload", lambda: bus.read(["present_position"], [1, 2]).errors[0] == 0x80)
        reply = bus.read(["torque_enable", "hardware_error_status"], [1, 2])
        assert reply.errors.tolist() == [0x80, 0]
        assert reply.values.tolist() == [[0, 0x20], [1, 0]]
        assert twin.plant.torque.tolist() == [0, 1]
        (words,) = bus.hardware_faults(1)
        assert words.startswith("overload")
        assert "switch the power off and on" in words
        assert bus.hardware_faults(2) == ()
        with pytest.raises(BusError, match="overload"):
            bus.write_checked("torque_enable", 1, 1)
        twin.faults.stuck = ()
        twin.power_cycle()
        assert bus.hardware_faults(1) == ()
        assert value(bus, "torque_enable", 1) == 0
        bus.write_checked("torque_enable", 1, 1)


def test_a_fault_set_from_outside_latches_and_a_weak_supply_is_named() -> None:
    with twin_of([1, 2]) as twin, bus_of(twin) as bus:
        twin.faults.overload = (2,)
        wait_for("the overload", lambda: bus.read(["led"], [1, 2]).errors[1] == 0x80)
        twin.faults.overload = ()
        twin.power_cycle()
        assert bus.hardware_faults(2) == ()
        twin.faults.voltage = 3.0
        wait_for("the fault", lambda: bus.hardware_faults(1) != ())
        assert bus.hardware_faults(1)[0].startswith("input voltage")
        assert value(bus, "present_voltage", 1) == 30
        assert [w.split(":")[0] for w in describe_hardware(0x3D)] == [
            "input voltage",
            "overheating",
            "motor encoder",
            "electrical shock",
            "overload",
        ]
        twin.faults.voltage = None
        twin.power_cycle()
        assert bus.hardware_faults(1) == ()


def test_registers_in_ram_are_lost_with_the_power_and_those_in_eeprom_kept() -> None:
    with twin_of([1], profile_velocity=33) as twin, bus_of(twin) as bus:
        bus.write_checked("homing_offset", 1, 55)
        bus.write_checked("led", 1, 1)
        bus.write_checked("profile_velocity", 1, 44)
        bus.write_checked("torque_enable", 1, 1)
        twin.power_cycle()
        assert [value(bus, r, 1) for r in ("homing_offset", "led", "profile_velocity", "torque_enable")] == [
            55,
            0,
            33,
            0,
        ]
        assert twin.plant.torque[0] == 0


# what goes wrong on a line


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dead", [1, 4, 6])
def test_a_dead_servo_silences_nobody(fast: bool, dead: int) -> None:
    with twin_of() as twin, bus_of(twin, slack_s=0.05, fast=fast) as bus:
        twin.faults.dead = (dead,)
        for _ in range(5):
            # asked again often enough that a loaded machine is not in question
            reply = bus.read(["present_position"], IDS, retries=5)
            assert reply.valid.tolist() == [i != dead for i in IDS]
            assert (reply.values[reply.valid] == 2048).all()
        assert bus.stats.silent > 0
        # known to be dead, it is no longer waited for, but for a trial now and then
        counts_before, start = (bus.stats.requests, bus.stats.retries), time.monotonic()
        for _ in range(50):
            assert bus.read(["present_position"], IDS, retries=5).valid.sum() == 5
        trials = bus.stats.requests - counts_before[0] - 50 - (bus.stats.retries - counts_before[1])
        assert trials <= 6 + (time.monotonic() - start) / 0.25
        twin.faults.dead = ()
        wait_for("its return", lambda: bus.read(["present_position"], IDS).valid.all())
        assert bus.fast == fast


@pytest.mark.parametrize("fast", [False, True])
def test_the_living_come_back_though_a_dead_one_stands_before_them(fast: bool) -> None:
    with twin_of() as twin, bus_of(twin, slack_s=0.02, fast=fast) as bus:
        twin.faults.dead = tuple(IDS)
        for _ in range(5):
            assert not bus.read(["present_position"], IDS).valid.any()
        twin.faults.dead = (1,)
        wait_for(
            "the living", lambda: bus.read(["present_position"], IDS).valid.tolist() == [False] + [True] * 5
        )


def test_an_adapter_that_holds_bytes_back_is_waited_for() -> None:
    with twin_of() as twin, bus_of(twin, slack_s=0.005) as bus:
        twin.faults.delay_s = 0.016
        wait_for("an answer", lambda: bus.read(["present_position"], IDS).valid.all())


def test_old_firmware_without_fast_sync_read_is_read_the_plain_way() -> None:
    with twin_of(firmware_version=40) as twin, bus_of(twin, slack_s=0.1, fast=True) as bus:
        assert bus.read(["present_position"], IDS, retries=5).valid.all()
        wait_for(
            "the plain way",
            lambda: bus.read(["present_position"], IDS, retries=5).valid.all() and not bus.fast,
        )


def test_a_late_confirmation_is_not_that_of_a_later_write() -> None:
    with twin_of([1]) as twin, bus_of(twin, slack_s=0.01) as bus:
        twin.faults.late, twin.faults.late_s = 0.5, 0.015
        for k in range(30):
            with_limits = k % 3 == 2
            try:
                bus.write_checked("goal_position", 1, 5000 if with_limits else 1000 + k, retries=5)
            except BusError:
                continue
            assert not with_limits
            assert twin.register(1, "goal_position") == 1000 + k


@pytest.mark.parametrize("fast", [False, True])
def test_garbled_and_lost_replies_give_right_values_or_none(fast: bool) -> None:
    with twin_of(seed=1) as twin, bus_of(twin, slack_s=0.03, fast=fast) as bus:
        right = [2048 + 10 * k for k in range(6)]
        twin.plant.position[:] = np.arange(6) * 10 * 2 * math.pi / 4096
        twin.faults.corrupt, twin.faults.drop = 0.1, 0.05
        missing = 0
        for _ in range(100):
            reply = bus.read(["present_position"], IDS, retries=3)
            assert reply.values[reply.valid, 0].tolist() == [right[k] for k in np.flatnonzero(reply.valid)]
            missing += int((~reply.valid).sum())
        assert bus.stats.corrupt > 5
        assert bus.stats.retries > 20
        assert missing < 60  # of 600: asking again helps


def test_wrong_speed_is_silence_and_is_explained() -> None:
    with twin_of([1, 2], baud=57_600) as twin, bus_of(twin, slack_s=0.05) as bus:
        assert bus.ping(1) is None
        assert bus.scan([1, 2]) == {}
        with pytest.raises(BusError, match="baud"):
            bus.write_checked("led", 1, 1)
        bus.slack_s = PATIENT_S
        assert "answered at 57600 baud, not at 1000000" in bus.explain_silence([1, 2])
        assert bus.ping(1) is None
        bus.set_baud(57_600)
        assert bus.ping(1) == XL330
        # a servo whose own speed is changed answers at the new one from then on
        bus.write_checked("baud_rate", 2, 3)
        assert bus.ping(2) is None
        bus.set_baud(1_000_000)
        assert bus.ping(2) == XL330


def test_an_id_can_be_changed() -> None:
    with twin_of([1]) as twin, bus_of(twin) as bus:
        bus.write_checked("id", 1, 7)
        assert bus.scan(range(10)) == {7: XL330}


def test_a_servo_that_only_answers_reads_confirms_by_its_register() -> None:
    with twin_of([1], status_return_level=1) as twin, bus_of(twin) as bus:
        bus.write_checked("led", 1, 1)
        assert twin.register(1, "led") == 1
        with pytest.raises(BusError):
            bus.write_checked("goal_position", 1, 9999, retries=0)


def test_unplug_and_replug(tmp_path: Path) -> None:
    link = tmp_path / "ttyTWIN"
    with twin_of(link=link) as twin, bus_of(twin) as bus:
        assert bus.read(["present_position"], IDS).valid.all()
        twin.faults.unplugged = True
        wait_for("the cable", lambda: not link.exists())
        for _ in range(2):
            with pytest.raises(BusError) as error:
                bus.read(["present_position"], IDS)
            assert error.value.gone
            assert not bus.connected
        with pytest.raises(BusError) as error:
            bus.open()
        assert error.value.gone
        twin.faults.unplugged = False
        wait_for("the cable", link.exists)
        bus.open()
        assert bus.connected
        assert bus.read(["present_position"], IDS).valid.all()
        assert bus.stats.reconnects == 1
