"""Dynamixel protocol 2.0: packets, the bus against its twin over a pty, and the twin against other people's clients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_bus import check_bus
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.dynamixel import DynamixelBus
from ulna.drivers.dynamixel_packets import (
    Instruction,
    chain_head,
    chain_part,
    crc16,
    cut_packet,
    decode_chain,
    encode,
    give_up_first,
)
from ulna.drivers.dynamixel_registers import REGISTERS, describe_hardware
from ulna.drivers.servo_bus import BusError
from ulna.drivers.twins.dynamixel import DynamixelTwin
from ulna.drivers.twins.faults import BusFaults
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

pytestmark = pytest.mark.realtime

IDS = [1, 2, 3, 4, 5, 6]
PATIENT_S = 0.25  # of slack, where a loaded machine must not look like a silent servo
XL330, XL430 = 1200, 1060
TICK = 2 * math.pi / 4096  # radians


# packets


def cut_all(data: bytes) -> list[tuple[int, int, bytes]]:
    """Every packet in a stream that has ended."""
    buffer, packets = bytearray(data), []
    while True:
        packet, _ = cut_packet(buffer)
        if packet is not None:
            packets.append((packet.id, packet.instruction, packet.parameters))
        elif not give_up_first(buffer):
            return packets


def test_packets_are_those_of_the_manual() -> None:
    # e-Manual, "DYNAMIXEL Protocol 2.0": ping, sync read, write, and their status packets
    assert encode(1, Instruction.PING).hex(" ") == "ff ff fd 00 01 03 00 01 19 4e"
    sync_read = encode(254, Instruction.SYNC_READ, bytes((0x84, 0, 4, 0, 1, 2)))
    assert sync_read.hex(" ") == "ff ff fd 00 fe 09 00 82 84 00 04 00 01 02 ce fa"
    write = encode(1, Instruction.WRITE, bytes.fromhex("74 00 00 02 00 00"))
    assert write.hex(" ") == "ff ff fd 00 01 09 00 03 74 00 00 02 00 00 ca 89"
    status = bytes.fromhex("ff ff fd 00 02 08 00 55 00 1f 08 00 00 ba be")
    assert cut_all(status) == [(2, 0x55, bytes.fromhex("00 1f 08 00 00"))]


# bytes that look like headers, often
pieces = st.sampled_from(
    [b"\xff\xff\xfd", b"\xff\xff\xfd\xfd", b"\xff\xff\xfd\x00", b"\xff", b"\xfd", b"\x00", b"\x55"]
)
nasty = st.lists(pieces, max_size=8).map(b"".join) | st.binary(max_size=40)
sent = st.tuples(st.integers(0, 252), st.sampled_from([0x02, 0x03, 0x55, 0x83]), nasty)


@given(st.lists(sent, max_size=5), st.lists(st.integers(1, 9), max_size=9))
def test_packets_survive_any_parameters_and_any_pieces(
    packets: list[tuple[int, int, bytes]], cuts: list[int]
):
    stream = b"".join(encode(*p) for p in packets)
    buffer, heard = bytearray(), []
    for n in [*cuts, len(stream)]:
        buffer += stream[:n]
        stream = stream[n:]
        while (packet := cut_packet(buffer)[0]) is not None:
            heard.append((packet.id, packet.instruction, packet.parameters))
    assert heard == packets
    assert not buffer


@given(nasty, sent, nasty)
def test_a_packet_is_found_between_rubbish(before: bytes, packet: tuple[int, int, bytes], after: bytes):
    # rubbish that ends in a piece of header could make another packet of ours only with a matching CRC
    assert packet in cut_all(before + b"\x00" + encode(*packet) + after)


@given(sent, sent, st.data())
def test_a_flipped_bit_costs_its_packet_alone(
    first: tuple[int, int, bytes], then: tuple[int, int, bytes], data
):
    wire = bytearray(encode(*first))
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    assert cut_all(bytes(wire) + encode(*then)) == [then]


def test_a_stuffed_packet_holds_no_header() -> None:
    wire = encode(1, 0x55, b"\xff\xff\xfd\x00\xff\xff\xfd\xfd\xff\xff\xff\xfd")
    assert wire.count(b"\xff\xff\xfd\x00") == 1
    assert wire[5] | wire[6] << 8 == len(wire) - 7


def chain_of(parts: list[tuple[int, int, bytes]], size: int) -> bytes:
    reply = chain_head(len(parts), size)
    for servo, error, data in parts:
        reply += chain_part(reply, servo, error, data)
    return reply


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_a_chained_reply_loses_what_is_garbled_and_what_is_cut_off(count: int, size: int, data):
    parts = [
        (i + 1, data.draw(st.integers(0, 255)), data.draw(st.binary(min_size=size, max_size=size)))
        for i in range(count)
    ]
    whole = {servo: (error, values) for servo, error, values in parts}
    reply = chain_of(parts, size)
    assert crc16(reply[:-2]) == reply[-2] | reply[-1] << 8  # as one packet, too, it is right
    assert decode_chain(reply, count, size) == (whole, 0)
    # cut off anywhere: the whole ones before stand
    length = data.draw(st.integers(8, len(reply) - 1))
    found, corrupt = decode_chain(reply[:length], count, size)
    assert found == {i + 1: whole[i + 1] for i in range((length - 8) // (size + 4))}
    assert corrupt == 0
    # one flipped bit in the data of one servo costs that servo alone
    hurt = data.draw(st.integers(0, count - 1))
    garbled = bytearray(reply)
    garbled[8 + hurt * (size + 4) + 2] ^= 1 << data.draw(st.integers(0, 7))
    found, corrupt = decode_chain(bytes(garbled), count, size)
    assert found == {i: v for i, v in whole.items() if i != hurt + 1}
    assert corrupt == 1


# the bus on its twin


@contextmanager
def twin_of(
    ids: list[int] = IDS,
    model: int = XL330,
    baud: int = 1_000_000,
    link: Path | None = None,
    seed: int = 0,
    position: float = 0.0,
    directions: tuple[int, ...] = (1,),
    **registers: int,
) -> Iterator[DynamixelTwin]:
    names = tuple(f"joint_{i}" for i in ids)
    plant = Plant.create(names, np.full(len(ids), position), np.full(len(ids), 0.5))
    about = {"return_delay_time": 0} | registers
    turned = [directions[k % len(directions)] for k in range(len(ids))]
    servos = [TwinServo(i, model, k, 2048, turned[k], about) for k, i in enumerate(ids)]
    try:
        with SimpleMechanics(plant), DynamixelTwin(plant, servos, baud, BusFaults(), link, seed) as twin:
            yield twin
    finally:
        plant.remove()


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


def wait_for(what: str, true, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"{what} did not come in {timeout_s} s"
        time.sleep(0.005)


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
    # the joint stands a little below the wrap: 4090 ticks; the first turn of the encoder ends 6 ticks on
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
        # the register rounds to the nearest tick, and may show the goal while the joint still creeps up to it
        assert twin.plant.position[0] == pytest.approx(100 * TICK, abs=TICK / 2)
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
        before, began = (bus.stats.requests, bus.stats.retries), time.monotonic()
        for _ in range(50):
            assert bus.read(["present_position"], IDS, retries=5).valid.sum() == 5
        trials = bus.stats.requests - before[0] - 50 - (bus.stats.retries - before[1])
        assert trials <= 6 + (time.monotonic() - began) / 0.25
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
            with pytest.raises(BusError) as caught:
                bus.read(["present_position"], IDS)
            assert caught.value.gone
            assert not bus.connected
        with pytest.raises(BusError) as caught:
            bus.open()
        assert caught.value.gone
        twin.faults.unplugged = False
        wait_for("the cable", link.exists)
        bus.open()
        assert bus.connected
        assert bus.read(["present_position"], IDS).valid.all()
        assert bus.stats.reconnects == 1


# the twin, asked by other people's clients


@contextmanager
def sdk_of(twin: DynamixelTwin):
    import dynamixel_sdk

    port = dynamixel_sdk.PortHandler(twin.port)
    assert port.openPort()
    assert port.setBaudRate(1_000_000)
    try:
        yield dynamixel_sdk, port, dynamixel_sdk.PacketHandler(2.0)
    finally:
        port.closePort()


def again(ask, good, times: int = 20):
    """A client with a fixed timeout on a loaded machine: its answer as soon as it is a good one."""
    answers = []
    for _ in range(times):
        answers.append(ask())
        if good(answers[-1]):
            return answers[-1]
    raise AssertionError(f"no good answer among {answers}")


def test_the_makers_sdk_finds_real_servos() -> None:
    with twin_of() as twin, sdk_of(twin) as (sdk, port, packets):
        assert again(lambda: packets.ping(port, 3), lambda a: a[1] == 0) == (XL330, 0, 0)
        found, result = again(lambda: packets.broadcastPing(port), lambda a: a[1] == 0 and len(a[0]) == 6)
        assert result == 0
        assert found == {i: [XL330, 52] for i in IDS}
        for i in IDS:
            again(lambda: packets.write1ByteTxRx(port, i, 64, 1), lambda a: a == (0, 0))  # noqa: B023
        header_like = [
            0xFF,
            0xFF,
            0xFD,
            0xFF,
            0xFF,
            0xFF,
        ]  # goal_current -1, goal_velocity -3: stuffed on the way out and back
        again(lambda: packets.writeTxRx(port, 1, 102, 6, header_like), lambda a: a == (0, 0))
        assert (twin.register(1, "goal_current"), twin.register(1, "goal_velocity")) == (-1, -3)
        assert again(lambda: packets.readTxRx(port, 1, 102, 6), lambda a: a[1] == 0) == (header_like, 0, 0)
        assert again(lambda: packets.write4ByteTxRx(port, 1, 116, 9000), lambda a: a[0] == 0) == (0, 6)
        assert again(lambda: packets.write1ByteTxRx(port, 1, 11, 4), lambda a: a[0] == 0) == (0, 7)

        writer = sdk.GroupSyncWrite(port, packets, 116, 4)
        for i in IDS:
            writer.addParam(i, (2000 + i).to_bytes(4, "little"))
        assert writer.txPacket() == 0
        reader = sdk.GroupSyncRead(port, packets, 132, 4)
        for i in IDS:
            reader.addParam(i)

        def arrived(ask) -> bool:
            return ask() == 0 and all(reader.getData(i, 132, 4) == 2000 + i for i in IDS)

        wait_for("the goals, by sync read", lambda: arrived(reader.txRxPacket))
        wait_for("the goals, by fast sync read", lambda: arrived(reader.fastSyncRead))
        twin.faults.dead = (4,)
        assert reader.txRxPacket() != 0
        # the SDK stops listening at the first silent one; on a real line those behind it say nothing, either
        assert reader.txPacket() == 0
        port.is_using = False  # it waits for us to listen
        wait_for("three replies", lambda: port.getBytesAvailable() == 3 * 15)
        time.sleep(0.05)
        assert port.getBytesAvailable() == 3 * 15
        twin.faults.dead = ()
        twin.faults.overload = (2,)
        again(lambda: packets.read4ByteTxRx(port, 2, 132), lambda a: a[1:] == (0, 0x80), 2000)
        again(lambda: packets.reboot(port, 2), lambda a: a[0] == 0)
        assert again(lambda: packets.read1ByteTxRx(port, 2, 70), lambda a: a[1] == 0, 200) == (0, 0, 0)
        assert again(lambda: packets.read1ByteTxRx(port, 2, 64), lambda a: a[1] == 0) == (0, 0, 0)


def test_rustypot_drives_it() -> None:
    import rustypot

    with twin_of() as twin:
        client = rustypot.Xl330PyController(twin.port, 1_000_000, 1.0)
        try:
            assert client.ping(2)
            client.sync_write_torque_enable(IDS, [True] * 6)
            client.sync_write_goal_position(IDS, [0.1 * i for i in IDS])
            wait_for(
                "the goals",
                lambda: np.allclose(client.sync_read_present_position(IDS), 0.1 * np.array(IDS), atol=0.002),
            )
            assert twin.plant.position.tolist() == pytest.approx([0.1 * i for i in IDS], abs=0.002)
            client.set_fast_sync_read(True)
            assert np.allclose(client.sync_read_present_position(IDS), 0.1 * np.array(IDS), atol=0.002)
            # its patience is shorter than a busy machine's pauses
            wait_for("all six", lambda: client.scan(IDS) == dict.fromkeys(IDS, XL330))
        finally:
            client.close()


def test_the_register_map_is_that_of_rustypot() -> None:
    import rustypot

    theirs = {"present_voltage": "present_input_voltage"}
    for controller in (rustypot.Xl330PyController, rustypot.Xl430PyController):
        compared = 0
        for name, place in REGISTERS.items():
            other = controller.register(theirs.get(name, name))
            if other is not None:
                assert other.size == place.size, name
                compared += 1
        assert compared > 30
