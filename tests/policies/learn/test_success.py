"""A detector learns from the outcomes of episodes when a task is done, and is asked on the robot's side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ENVIRONMENT, STATE, Feature, FeatureMismatch, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.detector import Detector
from ulna.policies.hashed import CheckpointError
from ulna.policies.learn.success import learn_success


def recording(path: Path, features: Features, n: int = 20) -> EpisodeStore:
    """Successes end with the cube at 1 m, or a white picture; failures never come there."""
    store = EpisodeStore.create(path, features, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for i in range(n):
            writer.start({"agent": "test"})
            success = i % 4 != 3
            for t in range(50):
                done = success and t >= 40
                values = frame(rng, features, t)
                values[ENVIRONMENT] = np.array([float(done), 0.0], np.float32) + 0.05 * rng.normal(size=2)
                values[ENVIRONMENT] = values[ENVIRONMENT].astype(np.float32)
                if CAMERA in features:
                    values[CAMERA] = np.full((24, 32, 3), 250 if done else 30, np.uint8)
                times = {k: (t * 50_000_000, t * 50_000_000) for k in values}
                writer.tick(values, times)
            writer.end({"success": success})
    return EpisodeStore.open(path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("success")
    recording(folder / "d", FEATURES)
    return folder / "done", learn_success(folder / "d", folder / "done", steps=300)


def observation(cube: float) -> dict[str, np.ndarray]:
    return {STATE: np.zeros(3, np.float32), ENVIRONMENT: np.array([cube, 0], np.float32)}


def test_what_it_had_not_seen_is_judged_as_it_was_marked(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = learned
    assert answer["found"] == answer["held_out_successes"] > 0
    assert answer["too_early"] == answer["taken_for_done"] == 0
    assert answer["held_out_failures"] > 0, "both outcomes are held out, whatever the episodes are called"
    detector = Detector(folder, FEATURES)
    assert detector.is_done(observation(1.0))
    assert not detector.is_done(observation(0.0))
    assert detector.measured["found"] == answer["found"]


def test_pictures_are_seen_too(tmp_path: Path) -> None:
    recording(tmp_path / "d", WITH_IMAGE, 8)
    learn_success(tmp_path / "d", tmp_path / "done", [CAMERA], steps=200)
    detector = Detector(tmp_path / "done", {CAMERA: Feature((48, 64, 3), "uint8")})
    assert detector.is_done({CAMERA: np.full((48, 64, 3), 250, np.uint8)})
    assert not detector.is_done({CAMERA: np.full((48, 64, 3), 30, np.uint8)})


def test_the_same_seed_learns_the_same(learned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again = learn_success(learned[0].parent / "d", tmp_path / "again", steps=300)
    assert again["checkpoint"] == learned[1]["checkpoint"]


def test_what_does_not_fit_is_named(learned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = learned
    with pytest.raises(FeatureMismatch, match="the detector"):
        Detector(folder, {STATE: FEATURES[STATE]})
    with pytest.raises(CheckpointError, match="holds a detector, and a policy is needed"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="lacks"):
        Detector(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "features.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not as it was saved"):
        Detector(copy)
    write_store(tmp_path / "few", (20, 20))
    with pytest.raises(StoreError, match="1 episodes that are marked as a success, and it takes 5"):
        learn_success(tmp_path / "few", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_robots_computer_asks_without_torch(learned: tuple[Path, dict[str, Any]]) -> None:
    code = (
        "import sys; from ulna.policies.detector import Detector; "
        f"Detector({str(learned[0])!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
