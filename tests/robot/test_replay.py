"""Recorded actions once more, in simulation and through the drivers of a servo arm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.servo_arm import bench
from hypothesis import given
from hypothesis import strategies as st

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature, FeatureMismatch
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.drivers.servos.so101 import NAMES
from ulna.robot.cli import main
from ulna.robot.config import load_robot
from ulna.robot.replay import FASTEST, SLOWEST, _at_speed, replay


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "data"
    assert main(["record", "--task", "lift", "--episodes", "2", "--out", str(path)]) == 0
    return path


def wave(path: Path, amplitude: float = 0.15, **changes: object) -> EpisodeStore:
    """One episode in which the first joint goes to and fro."""
    values = {"names": NAMES, "units": ("rad",) * 6, "control_hz": 20.0, "offset": 0.0, **changes}
    feature = Feature((6,), "float32", values["names"], values["units"])  # type: ignore[arg-type]
    store = EpisodeStore.create(path, {STATE: feature, ACTION: feature}, values["control_hz"])  # type: ignore[arg-type]
    home = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6]) + values["offset"]  # type: ignore[operator]
    with EpisodeWriter(store) as writer:
        writer.start({"task": "wave", "agent": "test"})
        for t in range(30):
            q = (home + amplitude * np.sin(0.3 * t) * np.eye(6)[0]).astype(np.float32)
            at = (t * 50_000_000, t * 50_000_000)
            writer.tick({STATE: q, ACTION: q}, {STATE: at, ACTION: at})
        writer.end({"success": True})
    return EpisodeStore.open(path)


def test_an_episode_in_simulation_succeeds_again(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    again, page = data.parent / "again", data.parent / "plot.html"
    capfd.readouterr()
    words = [str(data), "--episode", "1", "--out", str(again), "--plot", str(page)]
    assert main(["replay", *words, "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["success"] is True
    joint = answer["tracking"][0]
    assert joint["rms"] == pytest.approx(joint["recorded_rms"], rel=0.2)
    assert joint["limited"] < 1e-5
    (copy,), original = EpisodeStore.open(again).episodes, EpisodeStore.open(data).episodes[1]
    np.testing.assert_allclose(copy.read(ACTION), original.read(ACTION), atol=1e-5)
    assert copy.attrs["replay"] == {"data": str(data), "episode": 1, "speed": 1.0}
    assert page.read_text().count("<svg") == 6


def test_half_the_speed_takes_twice_as_long_over_the_same_way(data: Path) -> None:
    store = EpisodeStore.open(data)
    with load_robot("sim:so101", "lift") as rig:
        whole, half = (replay(rig, store, 0, speed) for speed in (1.0, 0.5))
    assert half.ticks == 2 * whole.ticks - 1
    np.testing.assert_allclose(half.sent[::2], whole.sent, atol=1e-5)


@given(st.integers(1, 40), st.floats(SLOWEST, FASTEST))
def test_any_speed_begins_and_ends_where_the_recording_does(n: int, speed: float) -> None:
    actions = np.random.default_rng(n).normal(size=(n, 2)).cumsum(0)
    path = _at_speed(actions, speed)
    np.testing.assert_array_equal(path[[0, -1]], actions[[0, -1]])
    assert (path.min(0) >= actions.min(0) - 1e-9).all()
    assert (path.max(0) <= actions.max(0) + 1e-9).all()
    if n > 1:
        assert abs(len(path) - ((n - 1) / speed + 1)) <= 1


@pytest.mark.realtime
def test_a_servo_arm_is_brought_there_slowly_and_follows(tmp_path: Path) -> None:
    store = wave(tmp_path / "d", offset=0.2)
    with bench("so101", tmp_path) as b:
        path = tmp_path / "my.toml"
        path.write_text(
            f'name = "my"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "{b.link}"\n'
            f'calibration = "{b.calibration}"\nstale_s = 1.5\n'
        )
        with load_robot(str(path)) as rig:
            result = replay(rig, store, 0)
    assert result.ticks == 30
    assert result.success is None
    assert result.tracking[0].rms < 0.1
    assert {t.unit for t in result.tracking} == {"rad"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": NAMES[::-1]}, "shoulder_pan"),
        ({"units": ("deg",) * 6}, "deg"),
        ({"control_hz": 30.0}, "recorded at 30 Hz and the robot sim:so101 runs at 20 Hz"),
        ({"offset": 3.0}, "beyond this robot's limits"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(tmp_path: Path, changes: dict, words: str) -> None:  # type: ignore[type-arg]
    store = wave(tmp_path / "d", **changes)
    with load_robot("sim:so101", "lift") as rig:
        before = rig.robot.observe().values[STATE]
        with pytest.raises((FeatureMismatch, ValueError), match=words):
            replay(rig, store, 0)
        np.testing.assert_array_equal(rig.robot.observe().values[STATE], before)


def test_what_cannot_be_replayed_is_named(tmp_path: Path) -> None:
    store = wave(tmp_path / "d")
    with load_robot("sim:so101", "lift") as rig:
        with pytest.raises(StoreError, match="has episodes 0 to 0, not 7"):
            replay(rig, store, 7)
        for speed in (0.0, 9.0, float("nan")):
            with pytest.raises(ValueError, match=r"must lie in 0.05..4"):
                replay(rig, store, 0, speed)
