"""The twin's Feetech servos: what they do, and whether other people's clients understand them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_bus import contents, eventually

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos.feetech import FeetechBus
from ulna.drivers.servos.feetech_protocol import REGISTERS, decode
from ulna.drivers.twins import feetech_servo
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.feetech_servo import STALL_NM, FeetechServo
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


def test_homing_offset_and_wrap_for_every_encoder_reading(plant: Plant) -> None:
    """A joint may stand anywhere on its encoder when power comes; what it reads must follow the joint without
    a jump."""
    with FeetechTwin(plant, servos()) as twin:
        servo = FeetechServo(twin.servos[0], twin, 0)
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
                readings = []
                for position in np.linspace(-2.9, 2.9, 9):
                    plant.position[0] = position
                    readings.append(decode(REGISTERS["present_position"], servo.read(56, 2)))
                steps = np.diff(readings)
                assert (np.abs(steps - 5.8 / 8 * 4096 / (2 * np.pi)) <= 1.01).all(), (zero, phase, readings)
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
        assert eventually(lambda: abs(contents(bus, "present_position", [1])[0] - 2048) <= 1)
        bus.write("goal_velocity", {1: 100})
        start = time.monotonic()
        bus.write("goal_position", {1: 3000})
        assert eventually(lambda: abs(contents(bus, "present_position", [1])[0] - 2200) <= 1)
        assert time.monotonic() - start > 1.3, "152 counts at 100 counts/s"
        bus.close()


def test_a_goal_switches_the_torque_on_as_the_real_servo_does(plant: Plant, bus: FeetechBus) -> None:
    bus.write_checked("acceleration", 2, 100)
    assert not plant.torque.any()
    positions = contents(bus, "present_position", IDS)
    bus.write("goal_position", {2: int(positions[1]) + 200})
    assert eventually(lambda: abs(contents(bus, "present_position", [2])[0] - positions[1] - 200) <= 1)
    assert plant.torque.tolist() == [0, 1, 0, 0, 0, 0]
    assert contents(bus, "torque_enable", IDS).tolist() == [0, 1, 0, 0, 0, 0]


def test_set_middle_puts_2048_where_a_joint_stands(plant: Plant, bus: FeetechBus) -> None:
    plant.position[4] = plant.goal[4] = 0.7
    bus.write_checked("torque_enable", 5, 128)
    assert abs(contents(bus, "present_position", [5])[0] - 2048) <= 1


def test_a_servo_is_silent_until_it_has_started(
    twin: FeetechTwin, bus: FeetechBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feetech_servo, "BOOT_S", 0.5)
    bus.write("goal_position", dict.fromkeys(IDS, 2048))
    twin.power_cycle()
    bus.write("goal_position", dict.fromkeys(IDS, 2048))
    assert eventually(lambda: bool(bus.read(["torque_enable"], IDS).valid.all()))
    assert not contents(bus, "torque_enable", IDS).any(), "it did not hear that"


def test_torque_limit_load_current_and_overload(twin: FeetechTwin, plant: Plant, bus: FeetechBus) -> None:
    bus.write_checked("lock", 3, 0)
    bus.write_checked("protection_time", 3, 30)
    bus.write_checked("phase", 3, 12)
    bus.write_checked("lock", 3, 1)
    bus.write_checked("torque_limit", 3, 500)
    position = int(contents(bus, "present_position", [3])[0])
    bus.write("goal_position", {3: position})
    bus.write_checked("torque_enable", 3, 1)
    assert plant.max_effort[2] == pytest.approx(STALL_NM / 2)
    twin.faults.stuck = (2,)
    bus.write("goal_position", {3: position + 800})

    def pushes() -> bool:
        replies = bus.read(["present_load", "present_current"], [3])
        return bool(replies.valid[0] and replies.values[0, 0] == 500 and replies.values[0, 1] > 180)

    assert eventually(pushes)
    assert eventually(lambda: bus.read(["present_load"], [3]).errors[0] == 0x20)
    assert plant.torque[2] == 0
    assert contents(bus, "torque_enable", [3])[0] == 0
    twin.faults.stuck = ()
    bus.write("torque_enable", {3: 1})
    time.sleep(0.05)
    assert plant.torque[2] == 0, "latched until power is cycled"
    twin.power_cycle()
    assert bus.read(["present_load"], [3]).errors[0] == 0
    assert contents(bus, "torque_limit", [3])[0] == 1000
    assert contents(bus, "protection_time", [3])[0] == 30, "EEPROM stays"
    assert contents(bus, "goal_position", [3])[0] == contents(bus, "present_position", [3])[0]


def test_supply_voltage_shows_in_register_and_status(twin: FeetechTwin, bus: FeetechBus) -> None:
    assert contents(bus, "present_voltage", [1])[0] == 74
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
        exchange_s = (replies.t_receive_ns - replies.t_request_ns) * 1e-9
        assert replies.valid.all()
        assert wire_s <= exchange_s
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
    description = {
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

        assert tell(description) == {"port": str(link)}
        bus = FeetechBus(str(link), slack_s=SLACK_S)
        bus.open()
        assert list(bus.scan(IDS)) == [1, 3, 4, 5, 6]
        assert tell({"faults": {"dead": []}}) == {"ok": True}
        assert list(bus.scan(IDS)) == IDS
        bus.write_checked("torque_enable", 1, 1)
        assert tell({"reset": True}) == {"ok": True}
        assert contents(bus, "torque_enable", [1])[0] == 0
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

    def ask(call: Callable[..., tuple[int, ...]], *arguments: int) -> tuple[int, ...]:
        answer = call(line, *arguments)
        for _ in range(20):
            if answer[-2] == 0:
                break
            answer = call(line, *arguments)
        assert answer[-2] == 0
        return answer

    assert ask(talk.ping, 1)[0] == 777
    assert ask(talk.read2ByteTxRx, 3, 56)[0] == round(2048 + plant.position[2] * 4096 / (2 * np.pi))
    ask(talk.write1ByteTxRx, 1, 40, 1)
    group = scs.GroupSyncWrite(line, talk, 42, 2)
    group.addParam(1, [2100 & 255, 2100 >> 8])
    assert group.txPacket() == 0
    assert eventually(lambda: ask(talk.read2ByteTxRx, 1, 56)[0] == 2100)
    reader = scs.GroupSyncRead(line, talk, 56, 2)
    for servo in IDS:
        assert reader.addParam(servo)
    assert eventually(lambda: reader.txRxPacket() == 0)
    assert all(reader.isAvailable(servo, 56, 2) for servo in IDS)
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


def test_lerobot_calibrates_the_twin(twin: FeetechTwin, plant: Plant) -> None:
    from lerobot.motors import Motor, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    motors = {
        name: Motor(i, "sts3215", MotorNormMode.RANGE_M100_100) for name, i in zip("abcdef", IDS, strict=True)
    }
    theirs = FeetechMotorsBus(twin.port, motors)
    theirs.connect()
    theirs.disable_torque(num_retry=5)
    theirs.configure_motors()
    plant.position[:] = plant.goal[:] = 0.3
    offsets = theirs.set_half_turn_homings()
    assert offsets["a"] == round(2048 + 0.3 * 4096 / (2 * np.pi)) - 2047
    positions = theirs.sync_read("Present_Position", normalize=False, num_retry=5)
    assert all(abs(p - 2047) <= 1 for p in positions.values())
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
