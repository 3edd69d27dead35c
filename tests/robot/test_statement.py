"""What a user says of a dataset's numbers: LeRobot's units become radians, and an arm goes where it went."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts.servo_arm import HOME, bench, go, running, until

from ulna.datasets.checks.check import check
from ulna.datasets.features import ACTION, STATE, Feature, FeatureMismatch
from ulna.datasets.store import EpisodeStore
from ulna.drivers.servos import koch
from ulna.drivers.servos.calibration import JointCalibration, load, save, scale
from ulna.drivers.servos.servo_arm import ServoArm
from ulna.drivers.servos.so101 import JOINTS, NAMES
from ulna.policies.serving.local import LocalPolicy
from ulna.robot.agent import PolicyAgent
from ulna.robot.cli import main

TICK = 0.0015  # rad, a count of the servo
FPS = 10
IDS = {name: i + 1 for i, name in enumerate(NAMES)}


def lerobot_folder(
    root: Path, rows: np.ndarray, names: Any = NAMES, robot: str = "so101_follower", shape: Any = None
) -> Path:
    """A LeRobot v2.1 folder with one episode, whose state and action are `rows` `(T, …)`."""
    (root / "meta").mkdir(parents=True)
    (root / "data").mkdir()
    column = pa.array(rows.tolist())
    table = {STATE: pa.array(rows.reshape(len(rows), -1)[:, -rows.shape[-1] :].tolist()), ACTION: column}
    times = np.arange(len(rows)) / FPS
    pq.write_table(pa.table({**table, "timestamp": times.astype(np.float32)}), root / "data/0.parquet")
    listed = None if names is None else [f"{n}.pos" for n in names]
    vector = {"dtype": "float32", "shape": [rows.shape[-1]], "names": listed}
    info = {
        "codebase_version": "v2.1",
        "robot_type": robot,
        "fps": FPS,
        "total_episodes": 1,
        "data_path": "data/{episode_index}.parquet",
        "features": {STATE: vector, ACTION: {**vector, "shape": list(rows.shape[1:])}},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def as_lerobot(counts: np.ndarray, calibration: Any, units: str) -> np.ndarray:
    """What LeRobot 0.6 records of a follower at `counts` `(T, 6)`: `_normalize` of its motors_bus.py."""
    values = np.empty(counts.shape)
    for j, name in enumerate(NAMES):
        c = calibration[name]
        share = (counts[:, j] - c.range_min) / (c.range_max - c.range_min)
        if name == "gripper":
            values[:, j] = 100 - 100 * share if c.drive_mode else 100 * share
        elif units == "degrees":
            values[:, j] = (counts[:, j] - (c.range_min + c.range_max) / 2) * 360 / 4095
        else:
            values[:, j] = (100 - 200 * share) if c.drive_mode else (200 * share - 100)
    return values.astype(np.float32)


def ulna(*argv: object) -> int:
    return main([str(a) for a in argv])


@pytest.mark.realtime
@pytest.mark.parametrize("units", ["degrees", "percent"])
def test_an_episode_in_lerobots_units_goes_where_it_went(tmp_path: Path, units: str) -> None:
    with bench("so101", tmp_path, middle=2100) as b, running(b.arm()) as arm:
        calibration = load(b.calibration, IDS, "feetech")
        of_servos = scale(calibration, JOINTS)
        rng = np.random.default_rng(1)
        reached, true = [], []
        for _ in range(3):
            drive(arm, np.clip(HOME + rng.uniform(-0.3, 0.3, 6), of_servos.lower, of_servos.upper))
            reached.append(arm.read().data.copy())
            true.append(b.plant.position.copy())
        source = lerobot_folder(
            tmp_path / "lerobot", as_lerobot(of_servos.counts(np.stack(reached)), calibration, units)
        )
        words = ("--units", units, "--calibration", b.calibration)
        assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 0
        store = EpisodeStore.open(tmp_path / "data")
        assert store.features[ACTION].names == NAMES
        assert store.features[ACTION].units == ("rad",) * 6
        for goal, was in zip(store.episodes[0].read(ACTION), true, strict=True):
            drive(arm, goal.astype(np.float64))
            assert np.abs(b.plant.position - was).max() < TICK


def drive(arm: ServoArm, goal: np.ndarray) -> None:
    """To `goal`, as near as its servos can tell."""

    def there() -> bool:
        go(arm, goal, 0.1)
        return float(np.abs(arm.read().data - goal).max()) < TICK / 1.5

    until(there, "the arm arrives")


# conversions


CALIBRATION = {
    name: JointCalibration(i, int(name == "elbow_flex"), 0, 700 + 10 * i, 3300) for name, i in IDS.items()
}


@pytest.mark.parametrize("units", ["degrees", "percent"])
@pytest.mark.parametrize("robot", ["so101_follower", "koch_follower"])
def test_numbers_become_what_our_drivers_count(tmp_path: Path, units: str, robot: str) -> None:
    save(tmp_path / "arm.json", CALIBRATION)
    dynamixel = robot.startswith("koch")
    joints = koch.JOINTS if dynamixel else JOINTS
    counts = np.random.default_rng(0).integers(1000, 3000, (8, 6))
    # a Dynamixel servo turns round by itself
    lerobot_sees = {
        n: replace(c, drive_mode=0 if dynamixel else c.drive_mode) for n, c in CALIBRATION.items()
    }
    rows = as_lerobot(counts, lerobot_sees, units)
    source = lerobot_folder(tmp_path / "lerobot", rows, robot=robot)
    words = ("--units", units, "--calibration", tmp_path / "arm.json")
    assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 0
    of_servos = scale(CALIBRATION, joints, inverted_in_servo=dynamixel)
    store = EpisodeStore.open(tmp_path / "data")
    for key in (STATE, ACTION):
        np.testing.assert_allclose(
            store.episodes[0].read(key), np.stack([of_servos.radians(c) for c in counts]), atol=2e-6
        )
    said = store.provenance["units"]
    assert said.startswith(f"stated: {units}, by the calibration arm.json")
    assert ("since May 2025" in said) == (units == "degrees")


def test_degrees_of_a_known_arm_need_no_calibration(tmp_path: Path) -> None:
    rows = np.array([[0, 30, -60, 90, 5, 0], [10, 20, 30, 40, 50, 100]], np.float32)
    source = lerobot_folder(tmp_path / "lerobot", rows)
    assert ulna("data", "import", source, "--out", tmp_path / "data", "--units", "degrees") == 0
    values = EpisodeStore.open(tmp_path / "data").episodes[0].read(ACTION)
    np.testing.assert_allclose(values[:, :5], np.radians(rows[:, :5]), atol=5e-4)  # 4095 counts for 4096
    np.testing.assert_allclose(values[:, 5], [JOINTS.lower[5], JOINTS.upper[5]], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "names", "says"),
    [
        (("--units", "percent"), NAMES, "give LeRobot's calibration of the arm"),
        (("--units", "percent"), ("a", "b", "c", "d", "e", "f"), "only joints of an SO-100, SO-101 or Koch"),
        (("--units", "degrees"), ("a", "b", "c", "d", "e", "gripper"), "say what gripper is in"),
        (("--units", "furlongs"), NAMES, "--units is radians, degrees or percent"),
        (("--units", "degrees,knee=rad"), NAMES, "--units names knee, and there is shoulder_pan"),
        (("--names", "a,b"), None, "--names gives 2 names, and the vectors have 6 and 6"),
        (("--units", "gripper=%"), None, "has no names: state them with --names"),
        (("--units", "percent", "--calibration", "none.json"), NAMES, "there is no calibration none.json"),
    ],
)
def test_what_is_not_known_is_not_guessed(
    tmp_path: Path, words: tuple[str, ...], names: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lerobot_folder(tmp_path / "lerobot", np.ones((3, 6), np.float32), names, robot="mine")
    assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_single_elements_are_stated_beside_the_rest(tmp_path: Path) -> None:
    names = ("j1", "j2", "rail", "gripper")
    rows = np.array([[90, 180, 500, 50]] * 2, np.float32)
    source = lerobot_folder(tmp_path / "lerobot", rows, names, "mine")
    words = ("--units", "degrees,ra*=mm,gripper=percent")
    assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 0
    store = EpisodeStore.open(tmp_path / "data")
    assert store.features[STATE].units == ("rad", "rad", "m", "1")
    np.testing.assert_allclose(store.episodes[0].read(STATE)[0], [np.pi / 2, np.pi, 0.5, 0.5], rtol=1e-6)


def test_two_arms_have_two_calibrations(tmp_path: Path) -> None:
    for side, low in (("left", 500), ("right", 1000)):
        save(
            tmp_path / f"{side}.json",
            {n: JointCalibration(i, 0, 0, low, 4000 - low) for n, i in IDS.items()},
        )
    names = [f"{side}_{n}" for side in ("left", "right") for n in NAMES]
    source = lerobot_folder(tmp_path / "lerobot", np.full((2, 12), 50, np.float32), names, "bi_so101")
    files = f"left={tmp_path}/left.json,right={tmp_path}/right.json"
    words = ("--units", "percent", "--calibration", files)
    assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 0
    row = EpisodeStore.open(tmp_path / "data").episodes[0].read(STATE)[0]
    count = 2 * np.pi / 4096
    np.testing.assert_allclose(row[[0, 6]], [750 * count, 500 * count], rtol=1e-5)


# what a robot is given


@pytest.fixture(scope="module")
def degrees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of degrees that do not say so, in `policy`, and its dataset, in `data`."""
    root = tmp_path_factory.mktemp("degrees")
    rows = (60 * np.sin(np.arange(40)[:, None] / 9 + np.arange(6))).astype(np.float32)
    lerobot_folder(root / "lerobot", rows)
    assert ulna("data", "import", root / "lerobot", "--out", root / "data") == 0
    words = ("--data", root / "data", "--out", root / "policy", "--track", "none", "--device", "cpu")
    assert ulna("train", "flow", *words, "--training.steps", "2", "--training.batch-size", "4") == 0
    return root


def test_degrees_that_do_not_say_so_move_no_arm(degrees: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = ulna("data", "info", degrees / "data")
    out, _ = capfd.readouterr()
    assert info == 0
    assert "its unit is not stated, and no robot takes a policy of it before: ulna data units" in out
    policy = LocalPolicy(degrees / "policy")
    robot = {k: Feature((6,), "float32", NAMES, ("rad",) * 6) for k in (STATE, ACTION)}
    with pytest.raises(FeatureMismatch, match=r"of no stated unit[\s\S]*ulna data units FOLDER"):
        PolicyAgent(policy, robot)


def test_a_checkpoint_is_told_its_units_and_forgets_them(degrees: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(degrees / "policy", folder)
    before = (folder / "hash.json").read_text()
    robot = {k: Feature((6,), "float32", NAMES, ("rad",) * 6) for k in (STATE, ACTION)}
    assert ulna("data", "units", folder, "--units", "degrees") == 0
    with pytest.raises(FeatureMismatch, match="in deg, %"):
        PolicyAgent(LocalPolicy(folder), robot)
    assert ulna("data", "units", folder, "--undo") == 0
    assert (folder / "hash.json").read_text() == before
    assert ulna("data", "units", folder, "--units", "radians") == 0
    PolicyAgent(LocalPolicy(folder), robot)
    assert ulna("data", "units", folder, "--units", "radians") == 1  # it says so already
    assert ulna("data", "units", folder, "--units", "degrees", "--out", tmp_path / "x") == 1


def test_a_dataset_is_converted_into_a_new_one(
    degrees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data", "units", degrees / "data", "--units", "degrees")
    assert ulna(*words) == 1
    assert "converted into a new dataset" in capsys.readouterr().err
    assert ulna(*words, "--out", tmp_path / "radians") == 0
    old, new = EpisodeStore.open(degrees / "data"), EpisodeStore.open(tmp_path / "radians")
    assert new.features[ACTION].units == ("rad",) * 6
    old_rows, rows = (s.episodes[0].read(ACTION) for s in (old, new))
    np.testing.assert_allclose(rows[:, 0], np.radians(old_rows[:, 0]), atol=5e-4)
    assert new.episodes[0].content != old.episodes[0].content
    assert not check(new)[1:]


def test_radians_are_stated_in_place_and_taken_back(tmp_path: Path) -> None:
    source = lerobot_folder(tmp_path / "lerobot", np.ones((3, 6), np.float32), None, "mine")
    assert ulna("data", "import", source, "--out", tmp_path / "data") == 0
    words = ("data", "units", tmp_path / "data")
    assert ulna(*words, "--units", "radians,f=1", "--names", "a,b,c,d,e,f") == 0
    stated = EpisodeStore.open(tmp_path / "data").features[STATE]
    assert (stated.names, stated.units) == (("a", "b", "c", "d", "e", "f"), ("rad",) * 5 + ("1",))
    assert ulna(*words, "--undo") == 0
    assert EpisodeStore.open(tmp_path / "data").features[STATE].units == ()
    assert ulna(*words, "--undo") == 1


def test_an_export_names_its_units_and_brings_them_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lerobot_folder(tmp_path / "lerobot", np.ones((30, 6), np.float32))
    assert ulna("data", "import", source, "--out", tmp_path / "a", "--units", "degrees") == 0
    assert ulna("data", "export", tmp_path / "a", "--out", tmp_path / "out") == 0
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert info["features"][ACTION]["info"] == {"units": ["rad"] * 6}
    assert ulna("data", "import", tmp_path / "out", "--out", tmp_path / "b") == 0
    assert EpisodeStore.open(tmp_path / "b").features == EpisodeStore.open(tmp_path / "a").features
    assert ulna("data", "import", tmp_path / "out", "--out", tmp_path / "c", "--units", "degrees") == 1
    assert "states its units already, rad" in capsys.readouterr().err


# chunks


def test_an_action_that_is_a_chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 30, 7)).astype(np.float32)
    source = lerobot_folder(tmp_path / "lerobot", rows, None, "mine")
    assert ulna("data", "import", source, "--out", tmp_path / "data") == 1
    assert "chunk (30, 7) of 30 actions" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert ulna("data", "import", source, "--out", tmp_path / "data", "--first-of-chunk") == 0
    store = EpisodeStore.open(tmp_path / "data")
    np.testing.assert_array_equal(store.episodes[0].read(ACTION), rows[:, 0])
    assert store.provenance["first_of_chunk"] == "each action is the first of the source's chunk"
