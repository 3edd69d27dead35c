"""Calibration: files as LeRobot's, no wrap inside any travel, and a whole one by a scripted hand on twins
behind ptys."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError, Joints
from ulna.drivers.servos import koch, koch_leader, so101, so101_leader
from ulna.drivers.servos.calibration import (
    Calibration,
    JointCalibration,
    check,
    check_servos,
    lerobot_path,
    load,
    save,
    scale,
)
from ulna.drivers.servos.old_calibration import convert
from ulna.drivers.twins.dynamixel import DynamixelTwin
from ulna.drivers.twins.faults import BusFaults
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.plant import Plant
from ulna.drivers.twins.serial_twin import TwinServo
from ulna.robot.calibrate import Calibrator, Sweep, centre
from ulna.robot.cli import main

pytestmark = pytest.mark.realtime

NAMES = so101.JOINTS.names
IDS = {name: i + 1 for i, name in enumerate(NAMES)}
GOOD = {name: JointCalibration(i, 0, 100 * i, 800, 3300) for name, i in IDS.items()}


def write_file(path: Path, joints: Calibration, **changes: object) -> Path:
    """A file of `joints`, elbow_flex changed."""
    save(path, joints)
    table = json.loads(path.read_text())
    table["elbow_flex"] |= changes
    path.write_text(json.dumps(table))
    return path


# files


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "new folder" / "arm.json", GOOD)
    assert load(tmp_path / "new folder" / "arm.json", IDS, "feetech") == GOOD
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["arm.json"]


def test_lerobot_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    draccus = pytest.importorskip("draccus")
    motors = pytest.importorskip("lerobot.motors")
    save(tmp_path / "ours.json", GOOD)
    with (tmp_path / "ours.json").open() as file, draccus.config_type("json"):
        theirs = draccus.load(dict[str, motors.MotorCalibration], file)
    assert theirs["gripper"].range_max == GOOD["gripper"].range_max
    with (tmp_path / "theirs.json").open("w") as file, draccus.config_type("json"):
        draccus.dump(theirs, file, indent=4)
    assert load(tmp_path / "theirs.json", IDS, "feetech") == GOOD


def test_lerobot_keeps_its_files_where_we_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_LEROBOT_CALIBRATION", "HF_LEROBOT_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    place = lerobot_path("robots/so_follower", "blue")
    assert place == Path.home() / ".cache/huggingface/lerobot/calibration/robots/so_follower/blue.json"
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path))
    assert lerobot_path("robots/so_follower", "blue") == tmp_path / "robots/so_follower/blue.json"
    with pytest.raises(DeviceError, match="name"):
        lerobot_path("robots/so_follower", "../../blue")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 4}, "another arm: elbow_flex is servo 4 there and 3 here"),
        ({"homing_offset": 2114}, "Magnitude exceeds 2047.*calibrate it again"),
        ({"range_min": 3250}, "too short"),
        ({"range_min": 3400}, "too short"),
        ({"range_max": 5000}, "wraps inside the joint's travel"),
        ({"drive_mode": 2}, "drive_mode is 0 or 1"),
        ({"range_min": 3.5}, "range_min must be a whole number"),
        ({"more": 1}, "must have the fields"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        load(write_file(tmp_path / "arm.json", GOOD, **change), IDS, "feetech")


def test_files_of_other_arms_and_no_files(tmp_path: Path) -> None:
    path = tmp_path / "arm.json"
    with pytest.raises(DeviceError, match="ulna calibrate --out"):
        load(path, IDS, "feetech")
    save(path, {f"left_{n}": c for n, c in GOOD.items()})
    with pytest.raises(DeviceError, match="another arm: its joints are left_shoulder_pan"):
        load(path, IDS, "feetech")
    path.write_text("{")
    with pytest.raises(DeviceError, match="cannot be read"):
        load(path, IDS, "feetech")
    path.write_text("[]")
    with pytest.raises(DeviceError, match="JSON object"):
        load(path, IDS, "feetech")


def test_servos_that_hold_other_offsets_are_refused() -> None:
    offsets = {n: c.homing_offset for n, c in GOOD.items()}
    check_servos(GOOD, offsets, None, "arm.json")
    check_servos(GOOD, offsets, dict.fromkeys(GOOD, 0), "arm.json")
    with pytest.raises(DeviceError, match=r"wrist_roll \(servo 5\) is 501 in the servo and 500 in the file"):
        check_servos(GOOD, offsets | {"wrist_roll": 501}, None, "arm.json")
    with pytest.raises(DeviceError, match="other way round"):
        check_servos(GOOD, offsets, dict.fromkeys(GOOD, 1), "arm.json")


@pytest.mark.parametrize(("low", "high"), [(-600, 2400), (1800, 5200), (-5000, -1500), (-2000, 2090)])
def test_the_counts_of_a_dynamixel_go_on_over_turns(tmp_path: Path, low: int, high: int) -> None:
    """Its servo counts signed turns; what it reads there are the angles of the range's place in one turn."""
    path = write_file(tmp_path / "koch.json", GOOD, range_min=low, range_max=high)
    calibration = load(path, IDS, "dynamixel")
    s = scale(calibration, koch.JOINTS, inverted_in_servo=True)
    counts = np.array([c.range_min for c in calibration.values()])
    for turn in (0, 3, -2):  # of a servo that woke in another turn
        seen = counts + 4096 * turn
        angles = s.radians(seen - 4096 * s.turns(seen))
        assert angles[2] == pytest.approx(-(high - low) / 2 * 2 * np.pi / 4096)
    with pytest.raises(DeviceError, match="wraps inside"):
        load(path, IDS, "feetech")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"range_min": -1000, "range_max": 3200}, "more than a turn"),
        ({"range_max": 2_000_000}, "leaves -1048575"),
    ],
)
def test_ranges_that_no_dynamixel_has(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        load(write_file(tmp_path / "koch.json", GOOD, **change), IDS, "dynamixel")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    save(tmp_path / "arm.json", GOOD)
    text = (tmp_path / "arm.json").read_text()
    (tmp_path / "arm.json").write_text(text, encoding="utf-8-sig")
    assert load(tmp_path / "arm.json", IDS, "feetech") == GOOD


OLD = {  # counts of servos without offsets; each number is of one joint
    "homing_offset": [-2048, 4, -1401, -3126, 2970, -1769],
    "drive_mode": [0, 1, 0, 0, 1, 0],
    "start_pos": [2085, 56, 1285, 3237, 3080, 1983],
    "end_pos": [3169, 1020, 2425, 4150, 946, 2793],
    "calib_mode": ["DEGREE"] * 5 + ["LINEAR"],
    "motor_names": list(NAMES),
}
# the count of each servo where its joint stands in the middle of its travel
OLD_MIDDLES = (2048, 4 - 1024, 1024 + 1401, 3126, 2970, (1983 + 2793) // 2)


def test_a_file_of_before_may_2025_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "main_follower.json"
    path.write_text(json.dumps(OLD))
    with pytest.raises(DeviceError, match=r"before May 2025.*ulna calibrate --convert .*main_follower\.json"):
        load(path, IDS, "feetech")


@pytest.mark.parametrize("protocol", ["feetech", "dynamixel"])
def test_a_file_of_before_may_2025_becomes_one_of_today(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLD), encoding="utf-8-sig")
    limits = so101.JOINTS if protocol == "feetech" else koch.JOINTS
    calibration = convert(path, IDS, limits, protocol)
    check(calibration, IDS, protocol, "the new one")
    s = scale(calibration, limits, inverted_in_servo=protocol == "dynamixel")
    sign = -1 if protocol == "feetech" else 1
    reported = np.array(OLD_MIDDLES) + sign * np.array([c.homing_offset for c in calibration.values()])
    angles = s.radians(reported - 4096 * s.turns(reported))
    middle = (limits.lower + limits.upper) / 2
    assert angles == pytest.approx(middle, abs=0.004)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"motor_names": ["a", "b", "c", "d", "e", "f"]}, "another arm: its joints are a, b"),
        ({"motor_names": None}, "does not name its motors"),
        ({"homing_offset": [1, 2]}, "homing_offset must be a list with one entry for each"),
        ({"start_pos": ["x"] * 6}, "start_pos must be whole numbers"),
        ({"end_pos": [float("inf")] * 6}, "end_pos must be whole numbers"),
        ({"drive_mode": 0}, "is not in LeRobot's format before May 2025"),
    ],
)
def test_an_old_file_that_is_wrong_is_explained(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLD | change))
    with pytest.raises(DeviceError, match=words):
        convert(path, IDS, so101.JOINTS, "feetech")


# counts and radians


def joints(lower: list[float], upper: list[float]) -> Joints:
    n = len(lower)
    names = (*(f"j{i}" for i in range(n - 1)), "gripper")
    return Joints(names, ("rad",) * n, np.array(lower), np.array(upper), np.ones(n), np.ones(n))


def test_the_middle_of_a_range_is_the_middle_of_the_limits_and_a_gripper_goes_end_to_end() -> None:
    arm = joints([-1.0, -1.0, 0.0], [1.0, 2.0, 1.5])
    c = {
        "j0": JointCalibration(1, 0, 0, 1024, 3072),
        "j1": JointCalibration(2, 1, 0, 200, 1800),
        "gripper": JointCalibration(3, 0, 0, 2000, 2600),
    }
    s = scale(c, arm)
    assert s.radians(np.array([2048, 1000, 2000])) == pytest.approx([0.0, 0.5, 0.0])
    assert s.radians(np.array([2048 + 1024, 1000 + 512, 2600])) == pytest.approx(
        [np.pi / 2, 0.5 - np.pi / 4, 1.5]
    )
    # limits: the nearer of model and calibration
    assert s.lower == pytest.approx([-1.0, 0.5 - 800 * 2 * np.pi / 4096, 0.0])
    assert s.upper == pytest.approx([1.0, 0.5 + 800 * 2 * np.pi / 4096, 1.5])
    q = np.random.default_rng(0).uniform(s.lower, s.upper, (200, 3))
    assert np.abs(s.radians(s.counts(q)) - q).max() < 0.0016  # half a count, and the gripper's coarser one
    # a servo that inverts by itself is not inverted again
    assert scale(c, arm, inverted_in_servo=True).rad_per_count[1] > 0


def test_whole_turns_are_taken_off() -> None:
    s = scale({"gripper": JointCalibration(1, 0, 0, 0, 4095)}, joints([-3.0], [3.0]), ends=())
    counts = np.arange(-9000, 9000)
    in_one_turn = counts - s.turns(counts[:, None])[:, 0] * 4096
    assert in_one_turn.min() >= 0
    assert in_one_turn.max() <= 4095


# sweeping


def sweep_of(start: np.ndarray, travel: np.ndarray, readings: np.ndarray) -> Sweep:
    """A sweep of `travel` `(T,)` counts from `start` `(J,)`, of which the servos report `read` `(T, J)`."""
    sweep = Sweep(readings[0], 0)
    for k in range(1, len(travel)):
        assert not sweep.see(readings[k], np.ones(len(start), bool), k * 20_000_000).any()
    return sweep


@pytest.mark.parametrize("counts_turns", [False, True], ids=["wraps", "counts turns"])
@pytest.mark.parametrize("reach", [120, 1400, 2900, 4094])
@pytest.mark.parametrize("offset", [-2047, 0, 1234])
def test_no_wrap_in_any_travel_from_any_start(counts_turns: bool, reach: int, offset: int) -> None:
    """Each of the 4096 angles at which a servo can be mounted, as 4096 joints at once."""
    start = np.arange(4096)
    # begins somewhere inside, goes to one end, to the other and back
    begin, step = reach // 3, 200
    travel = np.concatenate(
        [np.arange(begin, reach, step), np.arange(reach, 0, -step), np.arange(0, begin, step)]
    )
    raw = start[None, :] + travel[:, None]
    readings = raw - offset if counts_turns else (raw - offset) % 4096
    sweep = sweep_of(start, travel, readings)
    assert (sweep.high - sweep.low == travel.max() - travel.min()).all()
    everywhere = np.arange(travel.min(), travel.max() + 1)
    for j in start:
        new, low, high = centre(int(sweep.low[j]), int(sweep.high[j]), int(sweep.now[j]), offset, "feetech")
        assert abs(new) <= 2047, "Magnitude exceeds 2047"
        after = (j + everywhere - new) % 4096  # phase bit cleared: the same again after each power-up
        assert after[0] == low
        assert after[-1] == high
        assert (np.diff(after) == 1).all(), "the wrap lies inside the travel"
        assert abs((low + high) // 2 - 2047) <= 1


def test_a_dynamixel_is_centred_from_any_start() -> None:
    for start in range(4096):
        new, low, high = centre(start, start + 1500, start, 77, "dynamixel")
        assert (low + high) // 2 == 2047
        assert (start - 77 + new) % 4096 == low  # it adds its offset
        assert -2048 <= new <= 2047


def test_a_joint_that_turns_all_the_way_has_its_middle_where_it_stands() -> None:
    new, low, high = centre(-3000, 2500, 777, 0, "feetech")
    assert (low, high) == (0, 4095)
    assert (777 - new) % 4096 == 2047


def test_a_servo_silent_too_long_is_swept_anew() -> None:
    sweep = Sweep(np.array([100, 100]), 0)
    both, one = np.array([True, True]), np.array([True, False])
    sweep.see(np.array([400, 400]), both, 20_000_000)
    assert not sweep.see(np.array([500, 0]), one, 40_000_000).any()
    assert sweep.now.tolist() == [500, 400], "what was not heard does not count"
    sweep.see(np.array([500, 0]), one, 400_000_000)
    assert sweep.see(np.array([500, 3000]), both, 700_000_000).tolist() == [False, True]
    assert sweep.high[1] == sweep.low[1]


# whole calibrations

MODELS = {"so101": (777,) * 6, "koch": (1060, 1060, 1200, 1200, 1200, 1200), "koch_leader": (1190,) * 6}
LOW = np.array([-1.9, -1.7, -1.6, -1.6, -2.7, -0.1])
HIGH = np.array([1.9, 1.7, 1.6, 1.6, 2.7, 1.7])
# so that counts wrap inside the travels as mounted, and the offsets in the servos are some earlier attempt's
ZEROS = (0, 4095, 2048, 300, 3900, 1000)
OFFSETS = (-1000, 2047, 0, 512, -2047, 5)


@contextlib.contextmanager
def bench(
    kind: str, tmp_path: Path, **registers: int
) -> Iterator[tuple[Plant, FeetechTwin | DynamixelTwin, Path]]:
    plant = Plant.create(NAMES, 0.3 * LOW + 0.7 * HIGH, np.ones(6))
    servos = [
        TwinServo(i + 1, MODELS[kind][i], i, ZEROS[i], (-1) ** i, {"homing_offset": OFFSETS[i], **registers})
        for i in range(6)
    ]
    cls = FeetechTwin if kind == "so101" else DynamixelTwin
    try:
        with cls(plant, servos, 1_000_000, BusFaults(), tmp_path / "port", 1) as twin:
            yield plant, twin, tmp_path / "port"
    finally:
        plant.remove()


def places(steps: int = 12) -> Iterator[np.ndarray]:
    """A hand that takes all joints from where they are to the one end, to the other, and near the middle."""
    ends = [0.7, 0.0, 1.0, 0.45]
    for a, b in itertools.pairwise(ends):
        for w in np.linspace(a, b, steps):
            yield LOW + w * (HIGH - LOW)


def calibrate(kind: str, tmp_path: Path, plant: Plant, port: Path) -> Path:
    module = {"so101": so101, "koch": koch, "koch_leader": koch_leader}[kind]
    path = tmp_path / "arm.json"
    group = module.make(kind, module.Config(str(port), str(path))).group  # type: ignore[attr-defined]
    calibrator = Calibrator(group, getattr(module, "DRIVE_MODES", {}))
    try:
        calibrator.start()
        assert not plant.torque.any()
        for place in places():
            plant.position[:] = place
            calibrator.look()
        assert calibrator.look().enough.all()
        save(path, calibrator.finish())
    finally:
        calibrator.close()
    return path


def check_angles(kind: str, path: Path, plant: Plant, port: Path) -> None:
    """An arm with this calibration says where its joints are, over all of their travel."""
    module = {"so101": so101, "koch": koch, "koch_leader": koch_leader}[kind]
    arm = module.make(kind, module.Config(str(port), str(path)))  # type: ignore[attr-defined]
    sign = np.array([1, -1, 1, -1, 1, -1])  # as mounted
    if kind == "koch_leader":
        sign[2] *= -1  # by its drive mode
    limits = arm.joints
    readings: list[np.ndarray] = []
    try:
        arm.open()
        for w in (0.0, 0.25, 0.5, 0.75, 1.0):
            plant.position[:] = LOW + w * (HIGH - LOW)
            move_ns = time.monotonic_ns()
            while (sample := arm.read()).t_capture_ns < move_ns + 20_000_000 or not np.all(sample.valid):
                time.sleep(0.005)
            readings.append(sample.data)
    finally:
        arm.close()
    for w, q in zip((0.0, 0.25, 0.5, 0.75, 1.0), readings, strict=True):
        want = sign * (w - 0.5) * (HIGH - LOW) + (limits.lower + limits.upper) / 2
        assert q[:5] == pytest.approx(want[:5], abs=0.01)
    ends = (limits.upper[5], limits.lower[5])  # mounted the other way round: it opens where it closed
    assert (readings[0][5], readings[-1][5]) == pytest.approx(ends, abs=0.01)


@pytest.mark.parametrize("phase", [12, 12 | 0x10], ids=["wraps", "counts turns"])
def test_a_hand_calibrates_an_so101(tmp_path: Path, phase: int) -> None:
    with bench("so101", tmp_path, phase=phase) as (plant, twin, port):
        path = calibrate("so101", tmp_path, plant, port)
        check_angles("so101", path, plant, port)
        plant.position[:] = HIGH
        twin.power_cycle()  # and the count is the same wherever it woke
        check_angles("so101", path, plant, port)


@pytest.mark.parametrize("kind", ["koch", "koch_leader"])
def test_a_hand_calibrates_a_koch(tmp_path: Path, kind: str) -> None:
    with bench(kind, tmp_path) as (plant, twin, port):
        path = calibrate(kind, tmp_path, plant, port)
        check_angles(kind, path, plant, port)
        plant.position[:] = LOW
        twin.power_cycle()  # it now counts from another turn
        check_angles(kind, path, plant, port)


def test_nothing_is_written_when_a_joint_was_not_moved(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as (plant, _, port):
        group = so101.make("arm", so101.Config(str(port), "")).group
        calibrator = Calibrator(group)
        try:
            calibrator.start()
            for place in places():
                plant.position[:] = np.where(np.arange(6) == 4, plant.position, place)
                calibrator.look()
            with pytest.raises(
                DeviceError, match=r"wrist_roll \(servo 5\) was moved by 0 degrees only: nothing"
            ):
                calibrator.finish()
            assert group.values("homing_offset").tolist() == list(OFFSETS)
        finally:
            calibrator.close()


def test_the_wrong_arm_is_not_calibrated(tmp_path: Path) -> None:
    with bench("koch_leader", tmp_path) as (_, twin, port):
        group = koch.make("arm", koch.Config(str(port), "")).group
        calibrator = Calibrator(group)
        try:
            with pytest.raises(
                DeviceError, match=r"shoulder_pan \(servo 1\).*XL330-M077.*must be a XL430-W250"
            ):
                calibrator.start()
            twin.faults.dead = (3,)
            with pytest.raises(DeviceError, match=r"elbow_flex \(servo 3\).*does not answer"):
                calibrator.start()
        finally:
            calibrator.close()


@contextlib.contextmanager
def calibrate_command(
    out: Path, plant: Plant, twin: FeetechTwin | DynamixelTwin
) -> Iterator[subprocess.Popen[str]]:
    """`ulna calibrate` on an SO-101 whose joints a hand has moved all; it waits for Enter."""
    process = subprocess.Popen(
        f"{sys.executable} -m ulna.robot.cli calibrate --json --driver so101 --port {twin.port} --out "
        f"{out}".split(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while twin.requests < 30:  # it has checked who is there, and is looking
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(1.0)
        for _ in range(2):
            for place in places():
                requests = twin.requests
                plant.position[:] = place
                while twin.requests < requests + 2:
                    time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_command_takes_a_hand_and_an_enter(tmp_path: Path) -> None:
    out = tmp_path / "arm.json"
    out.write_text("{}")
    with bench("so101", tmp_path) as (plant, twin, port):
        with calibrate_command(out, plant, twin) as process:
            stdout, stderr = process.communicate("\n", timeout=60)
        assert process.returncode == 0, stderr
        answer = json.loads(stdout)
        assert answer["path"] == str(out)
        assert "torque is off" in stderr
        calibration = load(out, IDS, "feetech")
        assert answer["joints"]["gripper"]["range_max"] == calibration["gripper"].range_max
        assert (tmp_path / "arm.json.before").read_text() == "{}"
        check_angles("so101", out, plant, port)


def test_the_command_converts_an_old_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On servos that stand in the middle of their travel by the old file."""
    old, new = tmp_path / "main_follower.json", tmp_path / "arm.json"
    old.write_text(json.dumps(OLD))
    plant = Plant.create(NAMES, np.zeros(6), np.ones(6))
    servos = [
        TwinServo(i + 1, 777, i, OLD_MIDDLES[i] % 4096, 1, {"homing_offset": OFFSETS[i]}) for i in range(6)
    ]
    argv = ["calibrate", "--driver", "so101", "--port", str(tmp_path / "port"), "--out", str(new)]
    try:
        with FeetechTwin(plant, servos, 1_000_000, BusFaults(), tmp_path / "port", 1):
            plant.position[3] = 2.5  # where the wrist cannot be
            assert main([*argv, "--convert", str(old)]) == 1
            assert "wrist_flex (servo 4) stands 48 degrees outside its travel" in capfd.readouterr().err
            assert not new.exists()
            plant.position[3] = 0.0
            assert main([*argv, "--convert", str(old)]) == 0
            printed = capfd.readouterr().out
            assert "before May 2025" in printed
            assert "assumed" in printed
            arm = so101.make("arm", so101.Config(str(tmp_path / "port"), str(new)))
            arm.open()
            try:
                assert arm.read().data[:5] == pytest.approx(np.zeros(5), abs=0.004)
            finally:
                arm.close()
            assert main([*argv, "--convert", str(new)]) == 1
            assert "needs no conversion" in capfd.readouterr().err
    finally:
        plant.remove()


def test_nothing_is_begun_where_the_file_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blocker").write_text("")
    with bench("so101", tmp_path) as (_, twin, port):
        for out in (tmp_path / "blocker" / "arm.json", tmp_path):
            assert main(["calibrate", "--driver", "so101", "--port", str(port), "--out", str(out)]) == 1
            assert f"could not be written to {out}" in capfd.readouterr().err
        assert twin.requests == 0


def test_a_calibration_that_cannot_be_written_after_all_is_told(tmp_path: Path) -> None:
    """The servos hold it by then."""
    out = tmp_path / "there" / "arm.json"
    with bench("so101", tmp_path) as (plant, twin, port):
        with calibrate_command(out, plant, twin) as process:
            out.parent.rmdir()
            out.parent.write_text("")
            _, stderr = process.communicate("\n", timeout=60)
        assert process.returncode == 1, stderr
        assert "cannot be written" in stderr
        by_hand = tmp_path / "by-hand.json"
        by_hand.write_text(stderr[stderr.index('{"shoulder_pan') : stderr.rindex("}") + 1])
        check_angles("so101", by_hand, plant, port)


def test_the_command_says_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, argv in (
        ("--robot", []),
        ("--port", ["--driver", "so101"]),
        ("--out FILE, or --id", ["--driver", "so101", "--port", "/dev/none"]),
        ("did you mean so101", ["--driver", "so10", "--port", "/dev/none", "--out", "x.json"]),
        ("not both", ["--driver", "so101", "--port", "/dev/none", "--out", "x.json", "--id", "blue"]),
        ("/dev/none", ["--driver", "so101", "--port", "/dev/none", "--out", "x.json"]),
        ("no robot file", ["--robot", str(tmp_path / "no.toml")]),
    ):
        assert main(["calibrate", *argv]) in (1, 2)
        assert words.replace("no robot file", "cannot read the robot file") in capfd.readouterr().err


def test_the_command_finds_arms_and_leaders_in_a_robots_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    robot = tmp_path / "robot.toml"
    robot.write_text(
        'name = "two"\ncontrol_hz = 20\n'
        f'[arms.arm]\ndriver = "so101"\nport = "{tmp_path}/a"\ncalibration = "{tmp_path}/a.json"\n'
        f'[leaders.arm]\ndriver = "so101-leader"\nport = "{tmp_path}/b"\ncalibration = "{tmp_path}/b.json"\n'
    )
    assert main(["calibrate", "--robot", str(robot)]) == 2
    assert "say --arm arm or --arm leaders.arm" in capfd.readouterr().err
    assert main(["calibrate", "--robot", str(robot), "--arm", "leaders.arm"]) == 1
    assert f"{tmp_path}/b" in capfd.readouterr().err


def test_so101_has_one_set_of_numbers() -> None:
    from ulna.sim.robots import ROBOTS

    ours, in_sim = so101.JOINTS, ROBOTS["so101"]().joints
    assert ours.names == in_sim.names
    assert ours.units == in_sim.units
    for field in ("lower", "upper", "max_velocity", "max_effort"):
        assert getattr(ours, field).tolist() == getattr(in_sim, field).tolist(), field
    from_config = so101.make("arm", so101.Config("/dev/none", "")).joints
    assert from_config.max_effort == pytest.approx(in_sim.max_effort, abs=0.01)
    assert so101_leader.make("arm", so101_leader.Config("/dev/none", "")).joints.names == ours.names
