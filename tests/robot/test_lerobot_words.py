"""LeRobot's words and ours: what LeRobot recorded is replayed to the servo tick, what we recorded goes out in
its words, and policies of either move the other's robot."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.servo_arm import HOME, Bench, bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.drivers.servos.calibration import JointCalibration, load, save, scale
from ulna.drivers.servos.feetech_protocol import SYNC_WRITE
from ulna.drivers.servos.so101 import JOINTS, NAMES
from ulna.policies.request import Request
from ulna.policies.serving.metadata import Metadata
from ulna.robot.cli import main
from ulna.robot.config import load_robot
from ulna.robot.lerobot_words import for_robot, in_lerobots, in_ours

IDS = {name: i + 1 for i, name in enumerate(NAMES)}
HZ, HELD = 20, 10  # ticks for which each pose is asked, so that the servos' goals settle on it
GOAL_ADDRESS = 42
OURS = {k: Feature((6,), "float32", NAMES, ("rad",) * 6) for k in (STATE, ACTION)}


def ulna(*argv: object) -> int:
    return main([str(a) for a in argv])


def lerobot_bus(calibration: Any, degrees: bool) -> Any:
    """LeRobot's own bus of an SO-101 follower, its normalising code; no port is opened."""
    from lerobot.motors import Motor, MotorCalibration, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    body = MotorNormMode.DEGREES if degrees else MotorNormMode.RANGE_M100_100
    modes = dict.fromkeys(NAMES, body) | {"gripper": MotorNormMode.RANGE_0_100}
    motors = {n: Motor(IDS[n], "sts3215", modes[n]) for n in NAMES}
    return FeetechMotorsBus(
        "none", motors, {n: MotorCalibration(**asdict(c)) for n, c in calibration.items()}
    )


def recorded_by_lerobot(root: Path, bus: Any, ticks: np.ndarray, rows: int) -> Path:
    """A LeRobot v3.0 dataset, by its own writer, of a follower that was at `ticks` `(N, 6)`, each for `rows`
    ticks of control."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"{n}.pos" for n in NAMES]
    vector = {"dtype": "float32", "shape": (6,), "names": names}
    data = LeRobotDataset.create(
        "test/arm", HZ, {STATE: vector, ACTION: vector}, root, "so101_follower", use_videos=False
    )
    for counts in np.repeat(ticks, rows, axis=0).tolist():
        values = bus._normalize(dict(zip(range(1, 7), counts, strict=True)))
        row = np.array([values[i] for i in range(1, 7)], np.float32)
        data.add_frame({STATE: row, ACTION: row, "task": "wave"})
    data.save_episode()
    data.finalize()
    return root


@contextlib.contextmanager
def goals(b: Bench) -> Iterator[list[np.ndarray]]:
    """The goals `(6,)` in ticks that the servos of `b` are written, one after the other."""
    real, written = b.twin.answer, list[np.ndarray]()

    def answer(request: bytes, speed: int) -> Any:
        if request[4] == SYNC_WRITE:
            address, size = request[5:7]
            at, rows = GOAL_ADDRESS - address, {}
            for start in range(7, len(request) - 1 - size, size + 1):
                data = request[start + 1 + at : start + 3 + at]
                if 0 <= at < size - 1:
                    rows[request[start]] = int.from_bytes(data, "little")
            if len(rows) == 6:
                written.append(np.array([rows[i] for i in range(1, 7)]))
        return real(request, speed)

    b.twin.answer = answer
    try:
        yield written
    finally:
        b.twin.answer = real


@pytest.mark.realtime
@pytest.mark.parametrize("degrees", [True, False])
def test_what_lerobot_recorded_is_replayed_to_the_tick(tmp_path: Path, degrees: bool) -> None:
    with bench("so101", tmp_path, middle=2100) as b:
        calibration = load(b.calibration, IDS, "feetech")
        of_servos, bus = scale(calibration, JOINTS), lerobot_bus(calibration, degrees)
        walk = np.random.default_rng(3).uniform(-0.15, 0.15, (5, 6)).cumsum(0)
        poses = np.stack([of_servos.counts(q) for q in HOME + walk])
        source = recorded_by_lerobot(tmp_path / "lerobot", bus, poses, HELD)
        said = ("--units", "degrees" if degrees else "percent", "--calibration", b.calibration)
        assert ulna("data", "import", source, "--out", tmp_path / "data", *said) == 0
        robot = tmp_path / "my.toml"
        robot.write_text(
            f'name = "my"\ncontrol_hz = {HZ}\n[arms.arm]\ndriver = "so101"\nport = "{b.link}"\n'
            f'calibration = "{b.calibration}"\nstale_s = 1.5\n'
        )
        with goals(b) as written:
            assert ulna("replay", tmp_path / "data", "--robot", robot, "--speed", "0.5") == 0
        assert len(written) > 50
        by_id = dict(zip(range(1, 7), poses.T, strict=True))
        for pose in poses:
            # what LeRobot itself would write for what it recorded
            values = bus._normalize({i: int(p) for i, p in zip(by_id, pose, strict=True)})
            theirs = bus._unnormalize({i: float(np.float32(v)) for i, v in values.items()})
            own = np.array([theirs[i] for i in range(1, 7)])
            for goal in (own, pose):
                off = min(int(np.abs(w - goal).max()) for w in written)
                assert off <= 1, (goal, off)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first one imports LeRobot
@given(
    st.lists(st.tuples(st.integers(300, 1500), st.integers(2500, 3800)), min_size=6, max_size=6),
    st.integers(0, 5),
    st.booleans(),
)
def test_our_words_are_lerobots_to_the_tick_and_back(
    ranges: list[tuple[int, int]], turned: int, degrees: bool
) -> None:
    calibration = {n: JointCalibration(IDS[n], int(i == turned), 0, *ranges[i]) for i, n in enumerate(NAMES)}
    bus, of_servos = lerobot_bus(calibration, degrees), scale(calibration, JOINTS)
    rng = np.random.default_rng(turned)
    counts = np.stack([rng.integers(lo, hi + 1, 4) for lo, hi in ranges], 1)
    with _file(calibration) as file:
        words = in_lerobots(OURS, "degrees" if degrees else "percent", {"": file}, "so101")
    said = words.values(ACTION, np.stack([of_servos.radians(c) for c in counts]))
    for row, ticks in zip(said, counts, strict=True):
        theirs = bus._normalize(dict(zip(range(1, 7), ticks.tolist(), strict=True)))
        np.testing.assert_allclose(row, [theirs[i] for i in range(1, 7)], atol=1e-3)
        goals = bus._unnormalize({i + 1: float(v) for i, v in enumerate(row)})
        assert np.abs(np.array([goals[i] for i in range(1, 7)]) - ticks).max() <= 1
    back = words.inverse(OURS).values(ACTION, said)
    np.testing.assert_allclose(back, np.stack([of_servos.radians(c) for c in counts]), atol=1e-9)


@contextlib.contextmanager
def _file(calibration: Any) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "arm.json", calibration)
        yield Path(folder) / "arm.json"


def recording(path: Path, features: Any = OURS, rows: int = 30, robot: str = "my-so101") -> EpisodeStore:
    """One episode of ours, in radians, with limits among its attributes."""
    store = EpisodeStore.create(path, features, float(HZ), robot)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "wave", "agent": "test", "limits": {"gripper": [-0.17, 1.74]}})
        for t in range(rows):
            q = (HOME + 0.2 * np.sin(0.3 * t) * np.eye(6)[t % 6]).astype(np.float32)
            at = (t * 50_000_000, t * 50_000_000)
            writer.tick({STATE: q, ACTION: q}, {STATE: at, ACTION: at})
        writer.end({"success": True})
    return EpisodeStore.open(path)


CALIBRATION = {n: JointCalibration(i, 0, 0, 700 + 10 * i, 3300) for n, i in IDS.items()}


@pytest.mark.parametrize("units", ["degrees", "percent"])
def test_an_export_in_lerobots_words_comes_back_in_ours(tmp_path: Path, units: str) -> None:
    store = recording(tmp_path / "ours")
    save(tmp_path / "arm.json", CALIBRATION)
    words = ("--units", units, "--calibration", tmp_path / "arm.json")
    assert ulna("data", "export", store.path, "--out", tmp_path / "lerobot", *words) == 0
    info = json.loads((tmp_path / "lerobot/meta/info.json").read_text())["features"][ACTION]
    assert info["names"] == [f"{n}.pos" for n in NAMES]
    assert info["info"]["units"] == ["deg" if units == "degrees" else "%"] * 5 + ["%"]
    stats = json.loads((tmp_path / "lerobot/meta/stats.json").read_text())
    assert 40 < stats[ACTION]["max"][3] < 110  # wrist_flex at 1.2 rad
    assert ulna("data", "import", tmp_path / "lerobot", "--out", tmp_path / "back", *words) == 0
    back, (was,) = EpisodeStore.open(tmp_path / "back"), store.episodes
    assert back.features == store.features
    for key in (STATE, ACTION):
        np.testing.assert_allclose(back.episodes[0].read(key), was.read(key), atol=1e-5)
    assert back.episodes[0].attrs["limits"]["gripper"] == pytest.approx([-0.17, 1.74])
    assert back.episodes[0].times_ns(ACTION)[0].tolist() == was.times_ns(ACTION)[0].tolist()


def test_an_export_that_states_degrees_is_replayed_as_it_is(tmp_path: Path) -> None:
    """Imported without a word, it stays in degrees, which the robot's own calibration turns back."""
    store = recording(tmp_path / "ours")
    assert ulna("data", "export", store.path, "--out", tmp_path / "lerobot", "--units", "degrees") == 0
    assert ulna("data", "import", tmp_path / "lerobot", "--out", tmp_path / "back") == 0
    assert set(EpisodeStore.open(tmp_path / "back").features[ACTION].units) == {"deg", "%"}
    for data in ("ours", "back"):
        words = ("--robot", "sim:so101", "--task", "lift", "--out", tmp_path / f"{data}-again")
        assert ulna("replay", tmp_path / data, *words) == 0
    one, other = (
        EpisodeStore.open(tmp_path / f"{d}-again").episodes[0].read(ACTION) for d in ("ours", "back")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--units", "percent"), "robots/so_follower/NAME.json"),
        (("--units", "percent", "--calibration", "none.json"), "there is no calibration none.json"),
        (("--calibration", "none.json"), "say --units degrees or percent"),
        (("--units", "furlongs"), "--units is radians, degrees or percent"),
    ],
)
def test_an_export_says_what_it_lacks(
    tmp_path: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = recording(tmp_path / "ours", rows=3)
    assert ulna("data", "export", store.path, "--out", tmp_path / "out", *words) != 0
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_radians_are_put_into_other_words(tmp_path: Path) -> None:
    for units, said in (((), "no stated unit"), (("deg",) * 6, "deg")):
        features = {k: Feature((6,), "float32", NAMES, units) for k in (STATE, ACTION)}
        with pytest.raises(ValueError, match=f"is in {said}: only named joints in radians"):
            in_lerobots(features)


# numbers that are not in what they are said to be in


@pytest.mark.parametrize(
    ("stated", "size", "says"),
    [
        ("radians", 60.0, "shoulder_pan goes beyond -13 to 13, which it cannot in radians"),
        ("percent", 150.0, "shoulder_pan goes beyond -101 to 101, which it cannot in percent"),
        ("degrees", 170.0, "shoulder_pan goes beyond -144 to 144, which it cannot in degrees"),
    ],
)
def test_numbers_in_another_unit_than_stated_are_refused(
    tmp_path: Path, stated: str, size: float, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "arm.json", CALIBRATION)
    rows = (size * np.sin(np.arange(40)[:, None] / 5) * np.ones(6)).astype(np.float32)
    source = recorded_plainly(tmp_path / "lerobot", rows)
    words = ("--units", stated, *(() if stated == "radians" else ("--calibration", tmp_path / "arm.json")))
    assert ulna("data", "import", source, "--out", tmp_path / "data", *words) == 1
    assert says in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not (tmp_path / "data").exists()
    # nor in place
    assert ulna("data", "import", source, "--out", tmp_path / "data") == 0
    if stated == "radians":
        assert ulna("data", "units", tmp_path / "data", "--units", stated) == 1
        assert says in capsys.readouterr().err
        assert not EpisodeStore.open(tmp_path / "data").features[ACTION].units


def test_a_glitch_is_no_other_unit() -> None:
    rows = np.zeros((100, 6))
    rows[50, 2] = 1e4
    unnamed = {k: Feature((6,), "float32", NAMES) for k in (STATE, ACTION)}
    from ulna.robot.statement import Statement

    restated = Statement("radians").applied(unnamed, "")
    restated.values(ACTION, rows)
    with pytest.raises(StoreError, match="elbow_flex goes beyond"):
        restated.values(ACTION, rows + 90 * np.eye(6)[2])


def recorded_plainly(root: Path, rows: np.ndarray) -> Path:
    """A LeRobot v2.1 folder of an SO-101 whose state and action are `rows`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "meta").mkdir(parents=True)
    column = pa.array(rows.tolist())
    times = pa.array((np.arange(len(rows)) / HZ).astype(np.float32))
    pq.write_table(pa.table({STATE: column, ACTION: column, "timestamp": times}), root / "0.parquet")
    vector = {"dtype": "float32", "shape": [6], "names": [f"{n}.pos" for n in NAMES]}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so101_follower",
        "fps": HZ,
        "total_episodes": 1,
        "data_path": "{episode_index}.parquet",
        "features": {STATE: vector, ACTION: vector},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


# policies


class Echo:
    """A policy in degrees that answers with the state that it is shown, and keeps what it was asked."""

    def __init__(self, units: tuple[str, ...]) -> None:
        features = {
            k: Feature((6,), "float32", tuple(f"{n}.pos" for n in NAMES), units) for k in (STATE, ACTION)
        }
        goal = {"goal." + STATE: features[STATE]}
        self.metadata = Metadata(
            "echo", features, n_past_actions=1, horizon=3, needs_past=True, conditions=goal
        )
        self.asked: list[Any] = []

    def infer(self, request: Any) -> dict[str, Any]:
        self.asked.append(request)
        return {"actions": np.tile(request[STATE][-1:], (2, 1)), "nfe": 1, "checkpoint": "x"}


def test_a_policy_in_degrees_moves_our_robot_in_radians() -> None:
    policy = Echo(("deg",) * 5 + ("%",))
    with load_robot("sim:so101", "lift") as rig:
        told = for_robot(policy, rig)
        metadata = told.metadata
        assert metadata.features == OURS
        assert metadata.conditions["goal." + STATE] == OURS[STATE]
        q = HOME.astype(np.float32)[None]
        request = Request({STATE: q, "goal." + STATE: q[0]}, 0, q, None, q).to_wire()
        reply = told.infer(request)
    np.testing.assert_allclose(reply["actions"], np.tile(q, (2, 1)), atol=1e-5)
    (asked,) = policy.asked
    for rows in (asked[STATE], asked["action.past"], asked["_rt"]["previous"], asked["goal." + STATE][None]):
        np.testing.assert_allclose(rows[0, :5], np.degrees(HOME[:5]), atol=0.1)
        share = (HOME[5] - JOINTS.lower[5]) / (JOINTS.upper[5] - JOINTS.lower[5])
        assert rows[0, 5] == pytest.approx(100 * share, abs=1e-3)


def test_what_a_policy_says_is_not_judged_by_its_unit() -> None:
    """Its answers may go a little beyond what a recording can hold; the robot's limits are for that."""
    policy = Echo(("deg",) * 5 + ("%",))
    with load_robot("sim:so101", "lift") as rig:
        far = JOINTS.upper.astype(np.float32)[None] + 0.3
        request = Request({STATE: far, "goal." + STATE: far[0]}, 0).to_wire()
        np.testing.assert_allclose(for_robot(policy, rig).infer(request)["actions"][:1], far, atol=1e-5)


def test_percent_need_the_robots_calibration(tmp_path: Path) -> None:
    policy = Echo(("%",) * 6)
    with load_robot("sim:so101", "lift") as rig, pytest.raises(ValueError, match="--calibration FILE"):
        for_robot(policy, rig)
    save(tmp_path / "arm.json", CALIBRATION)
    path = tmp_path / "my.toml"
    path.write_text(
        'name = "my"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "/nowhere"\n'
        f'calibration = "{tmp_path}/arm.json"\n'
    )
    rig = load_robot(str(path))
    (element,) = in_ours(policy.metadata.features, rig).elements[ACTION][:1]
    assert element.scale == pytest.approx((3300 - 710) / 200 * 2 * np.pi / 4096)
    assert for_robot(policy, rig).metadata.features[ACTION] == OURS[ACTION]


def test_a_policy_in_radians_is_left_alone() -> None:
    policy = Echo(("rad",) * 6)
    with load_robot("sim:so101", "lift") as rig:
        assert for_robot(policy, rig) is policy


def two_policies(tmp_path: Path) -> tuple[Path, Path]:
    """The same random weights for numbers in radians and for LeRobot's: scaled, both see the same."""
    import torch

    from ulna.datasets.stats import vector_stats
    from ulna.policies.checkpoint import save_checkpoint
    from ulna.policies.parts import override
    from ulna.policies.policy import Policy
    from ulna.policies.recipes.mip import regression_mlp
    from ulna.policies.train.record import TrainingRecord

    near = HOME + 0.3 * np.random.default_rng(0).standard_normal((300, 6))
    words = in_lerobots(OURS)
    spoken = words.features(OURS)
    changes = {"codec": "Absolute", "backbone.width": 32, "backbone.depth": 1}
    folders = []
    for features, rows in ((OURS, near), (spoken, words.values(ACTION, near))):
        torch.manual_seed(0)
        stats = {key: vector_stats(rows) for key in (STATE, ACTION)}
        policy = Policy(override(regression_mlp(features), changes), features, stats)
        folders.append(tmp_path / features[ACTION].units[0])
        save_checkpoint(folders[-1], policy, TrainingRecord(control_hz=20.0))
    return folders[0], folders[1]


def test_a_checkpoint_in_degrees_is_evaluated_as_its_twin_in_radians(tmp_path: Path) -> None:
    traces = []
    for folder in two_policies(tmp_path):
        words = ("--task", "reach", "--episodes", "2", "--videos", "0")
        assert ulna("evaluate", folder, *words) == 0
        assert ulna("evaluate", folder, *words, "--batch", "2") == 0
        (report,) = (folder / "validation").glob("*.json")
        outcomes = json.loads(report.read_text())["outcomes"]
        traces.append([o["score"] for o in outcomes])
    np.testing.assert_allclose(traces[0], traces[1], atol=0.02)
