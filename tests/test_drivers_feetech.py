"""The Feetech driver against servos on a pty, and those servos against the clients that other people use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_bus import check_bus, eventually, ticks
from hypothesis import given
from hypothesis import strategies as st

from ulna.drivers.arm import DeviceError
from ulna.drivers.feetech import FeetechBus
from ulna.drivers.feetech_protocol import REGISTERS, decode, encode, packet, packets
from ulna.drivers.serial_port import ReplySizes
from ulna.drivers.servo_bus import BusError
from ulna.drivers.twins.feetech import STALL_NM, FeetechTwin
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo

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


# packets


@given(st.integers(0, 253), st.integers(0, 255), st.binary(max_size=100), st.binary(max_size=40))
def test_a_packet_is_found_whole_behind_rubbish(servo: int, code: int, data: bytes, rubbish: bytes) -> None:
    sent = packet(servo, code, data)
    assert packets(sent) == ([(servo, code, data)], len(sent))
    found, used = packets(rubbish.replace(b"\xff", b"\xfe") + sent)
    assert found == [(servo, code, data)]
    assert used == len(rubbish) + len(sent)


@given(st.binary(max_size=200))
def test_rubbish_never_breaks_the_decoder(data: bytes) -> None:
    found, used = packets(data)
    assert 0 <= used <= len(data)
    for one in found:
        assert packet(*one) in data


@given(st.integers(0, 253), st.binary(min_size=2, max_size=8), st.integers(0, 13), st.integers(1, 255))
def test_one_wrong_byte_is_never_an_answer_of_the_same_servo(
    servo: int, data: bytes, at: int, flip: int
) -> None:
    sent = bytearray(packet(servo, 0, data))
    sent[at % len(sent)] ^= flip
    assert (servo, 0, data) not in packets(sent)[0]


@given(st.sampled_from(sorted(REGISTERS)), st.data())
def test_registers_hold_what_was_written(name: str, data: st.DataObject) -> None:
    r = REGISTERS[name]
    bits = 8 * r.size if r.sign_bit is None else r.sign_bit
    low = 0 if r.sign_bit is None else 1 - (1 << bits)
    value = data.draw(st.integers(low, (1 << bits) - 1))
    assert decode(r, encode(r, value)) == value
    for beyond in (low - 1, 1 << bits):
        with pytest.raises(ValueError, match=str(beyond)):
            encode(r, beyond)


def test_a_lost_reply_is_not_asked_for_again_in_the_same_size() -> None:
    sizes = ReplySizes()
    assert sizes.choose(2) == 2
    sizes.lost(2)
    assert sizes.choose(2) == 3
    sizes.lost(3)
    assert sizes.choose(2) == 4
    assert sizes.choose(3) == 4
    assert sizes.choose(5) == 5


# the driver


def test_a_dead_servo_costs_a_cycle_little(twin: FeetechTwin, bus: FeetechBus) -> None:
    twin.faults.dead = (4,)
    asked = []
    for _ in range(40):
        before = bus.stats.requests
        assert bus.read(["present_position"], IDS).valid.sum() == 5
        asked.append(bus.stats.requests - before)
    assert sum(asked) < 50, "after three times it is no longer asked again one by one"
    assert bus.stats.silent < 15, "nor waited for in every cycle"


def test_a_number_that_a_register_cannot_hold_is_refused_before_anything_is_sent(
    twin: FeetechTwin, bus: FeetechBus
) -> None:
    heard = twin.requests
    with pytest.raises(ValueError, match=r"homing_offset of servo 3 .* -2047\.\.2047, not 2114"):
        bus.write_checked("homing_offset", 3, 2114)
    assert twin.requests == heard


def test_a_locked_servo_says_yes_and_is_not_believed(bus: FeetechBus) -> None:
    with pytest.raises(BusError, match=r"servo 2 .* max_temperature = 60: its EEPROM is locked"):
        bus.write_checked("max_temperature", 2, 60)
    with bus.unlocked([2]):
        bus.write_checked("max_temperature", 2, 60)
    assert ticks(bus, "max_temperature", [1, 2]).tolist() == [70, 60]
    assert ticks(bus, "lock", [2])[0] == 1


def test_wrong_speed_gets_no_answer_and_is_named(plant: Plant) -> None:
    with FeetechTwin(plant, servos(), baud=500_000) as twin:
        bus = FeetechBus(twin.port, slack_s=0.05)
        bus.open()
        assert bus.scan(IDS) == {}
        said = bus.explain_silence([1, 2])
        assert "answered at 500000 baud, not at 1000000" in said
        bus.close()
        right = FeetechBus(twin.port, baud=500_000, slack_s=SLACK_S)
        right.open()
        assert right.scan(IDS) == dict.fromkeys(IDS, 777)
        twin.faults.dead = (3,)
        assert "servo 3 did not answer" in right.explain_silence([1, 2, 3])
        assert "at no speed" in right.explain_silence([3])
        right.close()


def test_a_servo_takes_a_new_id_and_speed(bus: FeetechBus) -> None:
    with pytest.raises(BusError, match=r"servo 5 .* already"):
        bus.set_id(6, 5)
    bus.set_id(6, 9)
    assert list(bus.scan([5, 6, 9])) == [5, 9]
    assert ticks(bus, "lock", [9])[0] == 1
    bus.write_checked("lock", 9, 0)
    bus.write_checked("baud_rate", 9, 1)
    assert "answered at 500000" in bus.explain_silence([9])


def test_set_middle_and_reboot(twin: FeetechTwin, plant: Plant, bus: FeetechBus) -> None:
    plant.position[4] = plant.goal[4] = 0.7
    bus.set_middle(5)
    assert abs(ticks(bus, "present_position", [5])[0] - 2048) <= 1
    twin.faults.overload = (5,)
    assert eventually(lambda: bus.read(["present_position"], [5]).errors[0] == 0x20)
    with pytest.raises(BusError, match=r"torque_enable = 1: overload.*free what blocks"):
        bus.write_checked("torque_enable", 5, 1)
    bus.reboot(5)
    assert bus.read(["present_position"], [5]).errors[0] == 0
    bus.write_checked("torque_enable", 5, 1)
    bus.write_checked("torque_enable", 5, 0)


def test_status_bits_in_words(bus: FeetechBus) -> None:
    for bit, word in {1: "voltage", 2: "sensor", 4: "hot", 8: "current", 32: "overload"}.items():
        (said,) = bus.describe(bit)
        assert word in said
        assert ":" in said
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
        with pytest.raises(BusError, match=rf"busy: python.* \(process {other.pid}\)") as refused:
            bus.open()
        assert refused.value.gone
        other.communicate()
    bus.open()
    assert bus.ping(1) == 777


def test_a_port_that_does_not_exist_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=f"no port {tmp_path}/x") as refused:
        FeetechBus(str(tmp_path / "x")).open()
    assert refused.value.gone
    (tmp_path / "file").write_text("")
    with pytest.raises(BusError, match="no serial port"):
        FeetechBus(str(tmp_path / "file")).open()
    with pytest.raises(BusError, match="no serial port"):
        FeetechBus("/dev/null").open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as somebody else")
def test_a_port_that_is_not_permitted_says_which_group(tmp_path: Path) -> None:
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.chmod(path, 0o620)
    child = os.fork()
    if child == 0:  # nothing but the attempt: no imports, no files
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            FeetechBus(path).open()
        except BusError as error:
            os._exit(0 if "usermod -aG" in str(error) and "not permitted" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(master)
    os.close(slave)


# the twin


def test_homing_offset_and_wrap_for_every_encoder_reading(plant: Plant) -> None:
    """A joint may stand anywhere on its encoder when power comes; what it reads must follow the joint without a jump."""
    with FeetechTwin(plant, servos()) as twin:
        servo = twin._all[0]
        for zero in range(0, 4096, 5):
            for phase in (12, 12 | 0x10):
                servo.zero = zero
                plant.position[0] = 0.0
                servo.set("phase", phase)
                servo.set("homing_offset", 0)
                servo.lose_power()
                servo.write(40, b"\x80")  # set middle
                offset = servo.get("homing_offset")
                assert offset == max(-2047, zero - 2048)
                seen = []
                for position in np.linspace(-2.9, 2.9, 9):
                    plant.position[0] = position
                    seen.append(decode(REGISTERS["present_position"], servo.read(56, 2)))
                steps = np.diff(seen)
                assert (np.abs(steps - 5.8 / 8 * 4096 / (2 * np.pi)) <= 1.01).all(), (zero, phase, seen)
        servo.set("phase", 12 | 0x10)  # counts on where the other mode wraps
        servo.set("homing_offset", 0)
        servo.zero, plant.position[0] = 4000, 0.0
        servo.lose_power()
        plant.position[0] = 0.5
        assert decode(REGISTERS["present_position"], servo.read(56, 2)) == 4326
        servo.set("phase", 12)
        assert decode(REGISTERS["present_position"], servo.read(56, 2)) == 230
        servo.set("homing_offset", 500)
        servo.set("phase", 12 | 0x10)
        plant.position[0] = -6.0
        assert decode(REGISTERS["present_position"], servo.read(56, 2)) < 0


def test_goals_are_clipped_and_velocity_is_kept(plant: Plant) -> None:
    limits = {"min_position_limit": 1900, "max_position_limit": 2200}
    with FeetechTwin(plant, [TwinServo(1, 777, 0, 2048, 1, limits)]) as twin:
        bus = FeetechBus(twin.port, slack_s=SLACK_S)
        bus.open()
        bus.write("goal_position", {1: 2048})
        bus.write_checked("torque_enable", 1, 1)
        assert eventually(lambda: abs(ticks(bus, "present_position", [1])[0] - 2048) <= 1)
        bus.write("goal_velocity", {1: 100})
        began = time.monotonic()
        bus.write("goal_position", {1: 3000})
        assert eventually(lambda: abs(ticks(bus, "present_position", [1])[0] - 2200) <= 1)
        assert time.monotonic() - began > 1.3, "152 ticks at 100 ticks/s"
        bus.close()


def test_torque_limit_load_current_and_overload(twin: FeetechTwin, plant: Plant, bus: FeetechBus) -> None:
    with bus.unlocked([3]):
        bus.write_checked("protection_time", 3, 30)
        bus.write_checked("phase", 3, 12)
    bus.write_checked("torque_limit", 3, 500)
    here = int(ticks(bus, "present_position", [3])[0])
    bus.write("goal_position", {3: here})
    bus.write_checked("torque_enable", 3, 1)
    assert plant.max_effort[2] == pytest.approx(STALL_NM / 2)
    twin.faults.stuck = (2,)
    bus.write("goal_position", {3: here + 800})

    def pushes() -> bool:
        seen = bus.read(["present_load", "present_current"], [3])
        return bool(seen.valid[0] and seen.values[0, 0] == 500 and seen.values[0, 1] > 180)

    assert eventually(pushes)
    assert eventually(lambda: bus.read(["present_load"], [3]).errors[0] == 0x20)
    assert plant.torque[2] == 0
    assert ticks(bus, "torque_enable", [3])[0] == 0
    twin.faults.stuck = ()
    bus.write("torque_enable", {3: 1})
    time.sleep(0.05)
    assert plant.torque[2] == 0, "latched until power is cycled"
    twin.power_cycle()
    assert bus.read(["present_load"], [3]).errors[0] == 0
    assert ticks(bus, "torque_limit", [3])[0] == 1000
    assert ticks(bus, "protection_time", [3])[0] == 30, "EEPROM stays"
    assert ticks(bus, "goal_position", [3])[0] == ticks(bus, "present_position", [3])[0]


def test_supply_voltage_shows_in_register_and_status(twin: FeetechTwin, bus: FeetechBus) -> None:
    assert ticks(bus, "present_voltage", [1])[0] == 74
    twin.faults.voltage = 3.1
    replies = bus.read(["present_voltage"], [1])
    assert (replies.values[0, 0], replies.errors[0]) == (31, 1)


def test_bytes_take_their_time(plant: Plant) -> None:
    with FeetechTwin(plant, servos(), baud=19_200) as twin:
        bus = FeetechBus(twin.port, baud=19_200, slack_s=SLACK_S)
        bus.open()
        bus.read(["present_position"], IDS)
        replies = bus.read(["present_position"], IDS)
        wire_s = ((8 + 6) + 6 * 8) * 10 / 19_200
        took = (replies.t_receive_ns - replies.t_request_ns) * 1e-9
        assert replies.valid.all()
        assert wire_s <= took
        bus.close()


def test_twin_names_what_is_described_wrongly(plant: Plant) -> None:
    with pytest.raises(DeviceError, match=r"goal_positon.*goal_position"):
        FeetechTwin(plant, [TwinServo(1, 777, 0, 0, registers={"goal_positon": 1})])
    with pytest.raises(DeviceError, match="joint 7"):
        FeetechTwin(plant, [TwinServo(1, 777, 7, 0)])
    with pytest.raises(DeviceError, match="4000000"):
        FeetechTwin(plant, servos(), baud=4_000_000)


def test_twin_in_a_process_of_its_own(plant: Plant, tmp_path: Path) -> None:
    link = tmp_path / "arm"
    about = {
        "protocol": "feetech",
        "plant": str(plant.path),
        "servos": [asdict(servo) for servo in servos()],
        "link": str(link),
        "faults": {"dead": [2]},
    }
    with subprocess.Popen(
        [sys.executable, "-m", "ulna.drivers.twins.serial_twin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def tell(order: object) -> dict[str, object]:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert tell(about) == {"port": str(link)}
        bus = FeetechBus(str(link), slack_s=SLACK_S)
        bus.open()
        assert list(bus.scan(IDS)) == [1, 3, 4, 5, 6]
        assert tell({"faults": {"dead": []}}) == {"ok": True}
        assert list(bus.scan(IDS)) == IDS
        bus.write_checked("torque_enable", 1, 1)
        assert tell({"reset": True}) == {"ok": True}
        assert ticks(bus, "torque_enable", [1])[0] == 0
        assert "dropp" in str(tell({"faults": {"dropp": 0.1}})["error"])
        assert "error" in tell({"dance": 1})
        assert "error" in tell([1])
        bus.close()
        process.communicate()
    assert process.returncode == 0
    assert not link.is_symlink()


# what others' clients make of the twin


def test_vendor_sdk_understands_the_twin(twin: FeetechTwin, plant: Plant) -> None:
    import scservo_sdk as scs

    line = scs.PortHandler(twin.port)
    assert line.openPort()
    assert line.setBaudRate(1_000_000)
    talk = scs.PacketHandler(0)
    # its timeouts are too short for a busy machine; asking again is what its users do

    def again(call: Callable[..., tuple[int, ...]], *arguments: int) -> tuple[int, ...]:
        got = call(line, *arguments)
        for _ in range(20):
            if got[-2] == 0:
                break
            got = call(line, *arguments)
        assert got[-2] == 0
        return got

    assert again(talk.ping, 1)[0] == 777
    assert again(talk.read2ByteTxRx, 3, 56)[0] == round(2048 + plant.position[2] * 4096 / (2 * np.pi))
    again(talk.write1ByteTxRx, 1, 40, 1)
    group = scs.GroupSyncWrite(line, talk, 42, 2)
    group.addParam(1, [2100 & 255, 2100 >> 8])
    assert group.txPacket() == 0
    assert eventually(lambda: again(talk.read2ByteTxRx, 1, 56)[0] == 2100)
    read = scs.GroupSyncRead(line, talk, 56, 2)
    for servo in IDS:
        assert read.addParam(servo)
    assert eventually(lambda: read.txRxPacket() == 0)
    assert all(read.isAvailable(servo, 56, 2) for servo in IDS)
    line.closePort()


def test_rustypot_understands_the_twin(twin: FeetechTwin, plant: Plant) -> None:
    from rustypot import Sts3215PyController

    client = Sts3215PyController(serial_port=twin.port, baudrate=1_000_000, timeout=0.5)
    assert client.ping(1)
    np.testing.assert_allclose(
        client.sync_read_present_position(IDS), plant.position * np.array([1, -1, 1, 1, 1, 1]), atol=0.01
    )
    client.sync_write_torque_enable(IDS, [True] * 6)
    client.sync_write_goal_position(IDS, [0.1] * 6)
    assert eventually(lambda: bool(np.allclose(client.sync_read_present_position(IDS), 0.1, atol=0.01)), 5.0)
    client.close()


def test_lerobot_calibrates_the_twin(
    twin: FeetechTwin, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.motors import Motor, MotorNormMode, motors_bus
    from lerobot.motors.feetech import FeetechMotorsBus

    motors = {
        name: Motor(i, "sts3215", MotorNormMode.RANGE_M100_100) for name, i in zip("abcdef", IDS, strict=True)
    }
    # all that it asks of deepdiff, which it does not bring along, is whether two tables are equal
    monkeypatch.setattr(motors_bus, "DeepDiff", lambda one, other: one != other)
    monkeypatch.setattr(motors_bus, "require_package", lambda *_, **__: None)
    theirs = FeetechMotorsBus(twin.port, motors)
    theirs.connect()
    theirs.disable_torque(num_retry=5)
    theirs.configure_motors()
    plant.position[:] = plant.goal[:] = 0.3
    offsets = theirs.set_half_turn_homings()
    assert offsets["a"] == round(2048 + 0.3 * 4096 / (2 * np.pi)) - 2047
    seen = theirs.sync_read("Present_Position", normalize=False, num_retry=5)
    assert all(abs(p - 2047) <= 1 for p in seen.values())
    theirs.enable_torque(num_retry=5)
    theirs.sync_write("Goal_Position", dict.fromkeys(motors, 2200), normalize=False)
    assert eventually(
        lambda: all(
            abs(p - 2200) <= 2
            for p in theirs.sync_read("Present_Position", normalize=False, num_retry=5).values()
        )
    )
    calibration = theirs.read_calibration()
    assert calibration["a"].homing_offset == offsets["a"]
    theirs.disconnect()
