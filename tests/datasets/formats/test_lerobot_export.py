"""Exports to LeRobot v3.0, read by LeRobot's own reader and trained on by its own command, and brought back
in."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, ENVIRONMENT, IMAGES, REQUESTED, REWARD, STATE, Feature
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.formats.lerobot_export import export_lerobot
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

WRIST = IMAGES + "wrist"
MS = 1_000_000
LENGTHS = (9, 14, 5)


def picture(t: int, shift: int = 0) -> np.ndarray:
    """Smooth, as a camera's are; the red channel tells the frame."""
    y, x = np.mgrid[:96, :128]
    return np.stack([np.full_like(x, 8 * t + shift), 2 * y, 128 + 40 * np.sin((x + y) / 20)], -1).astype(
        np.uint8
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """20 Hz with jitter; the wrist camera is half as fast; names that need care."""
    features = {
        **FEATURES,
        CAMERA: Feature((96, 128, 3), "uint8"),
        WRIST: Feature((96, 128, 3), "uint8"),
        DEPTH + "front": Feature((8, 8), "uint16"),
    }
    store = EpisodeStore.create(tmp_path_factory.mktemp("exp") / "Daten ü", features, 20.0, "arm")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for i, length in enumerate(LENGTHS):
            before = (0, 0)
            writer.start({"task": f"falte „{i % 2}“\n'ruhig'", "seed": i, "agent": "human"})
            for t in range(length):
                time_ns = 10**12 + t * 50 * MS + int(rng.integers(0, 5 * MS))
                row = {**frame(rng, FEATURES, t), CAMERA: picture(t), WRIST: picture(t - t % 2, 3)}
                row[DEPTH + "front"] = np.full((8, 8), t, np.uint16)
                times = {k: (time_ns - 10 * MS, time_ns - 8 * MS) for k in row}
                times[ACTION] = times[REQUESTED] = (time_ns, time_ns + MS)
                if t % 2:
                    times[WRIST] = before
                before = times[WRIST]
                writer.tick(
                    {**row, REQUESTED: row[ACTION] + np.float32(0.5)},
                    times,
                    {ACTION: INTERVENTION} if t == 3 else {},
                )
            writer.end({"success": i != 1})
    return store


@pytest.fixture(scope="module")
def exported(store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exp") / "le robot ü"
    result = export_lerobot(store, out)
    assert (result.episodes, result.frames, result.dropped) == (3, sum(LENGTHS), 0)
    assert result.left_out == ("observation.depth.front: LeRobot's depth is lossy",)
    return out


def test_lerobots_own_reader_finds_every_frame(store: EpisodeStore, exported: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own
        from lerobot.datasets import LeRobotDataset

        delta = {ACTION: [0.0, 0.05, 0.1], CAMERA: [-0.05, 0.0]}
        data = LeRobotDataset("test/export", root=exported, delta_timestamps=delta)
        assert (len(data), data.num_episodes, data.fps) == (sum(LENGTHS), 3, 20)
        row = 0
        for e in store.episodes:
            state, action = e.read(STATE), e.read(ACTION)
            for t in range(e.length):
                item: Any = data[row]
                np.testing.assert_array_equal(item[STATE].numpy(), state[t])
                ahead = np.minimum(np.arange(t, t + 3), e.length - 1)
                np.testing.assert_array_equal(item[ACTION].numpy(), action[ahead])
                assert item["task"] == e.task
                assert (int(item["episode_index"]), int(item["frame_index"])) == (e.index, t)
                for key, want in ((CAMERA, 8 * t), (WRIST, 8 * (t - t % 2) + 3)):
                    red = item[key][-1, 0] if key == CAMERA else item[key][0]
                    assert abs(float(red.mean()) * 255 - want) < 2.5, (key, t)
                row += 1
        stats = data.meta.stats
        assert stats is not None
        np.testing.assert_allclose(
            stats[STATE]["mean"], np.concatenate([e.read(STATE) for e in store.episodes]).mean(0), rtol=1e-5
        )
        assert stats[CAMERA]["mean"].shape == (3, 1, 1)


def test_lerobot_train_takes_a_step(exported: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "lerobot-train"),
        "--dataset.repo_id=test/export",
        f"--dataset.root={exported}",
        "--policy.type=act",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=4",
        "--policy.dim_model=32",
        "--policy.n_heads=2",
        "--policy.dim_feedforward=32",
        "--policy.n_encoder_layers=1",
        "--policy.n_vae_encoder_layers=1",
        "--policy.pretrained_backbone_weights=null",
        "--steps=1",
        "--batch_size=2",
        "--num_workers=0",
        "--wandb.enable=false",
        f"--output_dir={tmp_path / 'out'}",
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "End of training" in run.stderr + run.stdout


def test_what_comes_back_is_what_went_out(store: EpisodeStore, exported: Path, tmp_path: Path) -> None:
    reimport = import_lerobot(exported, tmp_path / "back")
    assert reimport.provenance["left_out"] == []
    for e, b in zip(store.episodes, reimport.episodes, strict=True):
        assert (e.length, e.task) == (b.length, b.task)
        assert {k: b.attrs[k] for k in ("success", "seed", "agent")} == {
            k: e.attrs[k] for k in ("success", "seed", "agent")
        }
        for key in (STATE, ENVIRONMENT, ACTION, REQUESTED):
            np.testing.assert_array_equal(b.read(key), e.read(key))
        for key in (STATE, ACTION, CAMERA, WRIST):
            np.testing.assert_array_equal(b.times_ns(key), e.times_ns(key))
            np.testing.assert_array_equal(b.flags(key), e.flags(key))
        for key in (CAMERA, WRIST):
            assert b.rows(key) == e.rows(key)
            error = b.read(key).astype(float) - e.read(key)
            assert 10 * np.log10(255**2 / (error**2).mean()) > 40


def test_doubles_keep_every_bit(tmp_path: Path) -> None:
    features = {STATE: Feature((2,), "float64"), ACTION: Feature((2,), "float64")}
    store = EpisodeStore.create(tmp_path / "d", features, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "x"})
        for t in range(4):
            row = {k: 1e6 + rng.normal(size=2) for k in features}
            row[REQUESTED] = row[ACTION]
            writer.tick(row, dict.fromkeys(row, (t * 50 * MS, t * 50 * MS)))
        writer.end({})
    export_lerobot(store, tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "data")[ACTION].type == pa.list_(pa.float64(), 2)
    (reimport,) = import_lerobot(tmp_path / "out", tmp_path / "back").episodes
    for key in (STATE, ACTION, REQUESTED):
        np.testing.assert_array_equal(reimport.read(key), store.episodes[0].read(key))


@pytest.mark.parametrize("first", [True, False])
def test_requests_are_neither_made_up_nor_lost(tmp_path: Path, first: bool) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    with EpisodeWriter(store) as writer:
        for with_request in (first, not first):
            writer.start({"task": "x"})
            row = frame(np.random.default_rng(0), FEATURES, 0)
            row |= {REQUESTED: row[ACTION]} if with_request else {}
            writer.tick(row, dict.fromkeys(row, (0, 0)))
            writer.end({})
    says = f"episode {int(not first)} has action.requested and episode {int(first)} has none"
    with pytest.raises(StoreError, match=says):
        export_lerobot(store, tmp_path / "out", progress=lambda done, total: pytest.fail("it wrote some"))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert export_lerobot(store, tmp_path / "out", [int(first)]).episodes == 1


def test_rewards_go_out_and_come_back(tmp_path: Path) -> None:
    features = {k: FEATURES[k] for k in (STATE, ACTION)} | {REWARD: Feature((1,), "float32", ("reward",))}
    store = EpisodeStore.create(tmp_path / "s", features, 20.0)
    rng, rewards = np.random.default_rng(0), np.array([[0.2], [-1.0], [0.7]], np.float32)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "x"})
        for t, reward in enumerate(rewards):
            time_ns = 10**12 + t * 50 * MS
            row = {**frame(rng, {k: FEATURES[k] for k in (STATE, ACTION)}, t), REWARD: reward}
            writer.tick(row, dict.fromkeys(row, (time_ns, time_ns)))
        writer.end({"success": True})
    export_lerobot(EpisodeStore.open(tmp_path / "s"), tmp_path / "out")
    back = import_lerobot(tmp_path / "out", tmp_path / "back")
    assert (back.episodes[0].read(REWARD) == rewards).all()
    assert back.features[REWARD] == features[REWARD]
    assert not back.provenance["left_out"]


def test_a_matrix_goes_out_as_one_and_comes_back(tmp_path: Path) -> None:
    store = EpisodeStore.create(
        tmp_path / "d", {**FEATURES, "observation.matrix": Feature((2, 3), "int64")}, 20.0
    )
    with EpisodeWriter(store) as writer:
        writer.start({"task": "x"})
        for t in range(4):
            row = {
                **frame(np.random.default_rng(t), FEATURES, t),
                "observation.matrix": np.arange(6).reshape(2, 3) * t,
            }
            writer.tick(row, dict.fromkeys(row, (t * 50 * MS, t * 50 * MS)))
        writer.end({})
    export_lerobot(store, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own
        from lerobot.datasets import LeRobotDataset

        item: Any = LeRobotDataset("test/matrix", root=tmp_path / "out")[3]
    np.testing.assert_array_equal(item["observation.matrix"].numpy(), np.arange(6).reshape(2, 3) * 3)
    reimport = import_lerobot(tmp_path / "out", tmp_path / "back").episodes[0]
    np.testing.assert_array_equal(
        reimport.read("observation.matrix"), store.episodes[0].read("observation.matrix")
    )


def test_lossless_keeps_every_pixel(store: EpisodeStore, tmp_path: Path) -> None:
    assert (
        main(
            [
                "data",
                "export",
                str(store.path),
                "--out",
                str(tmp_path / "out"),
                "--lossless",
                "--episodes",
                "1",
            ]
        )
        == 0
    )
    reimport = import_lerobot(tmp_path / "out", tmp_path / "back")
    np.testing.assert_array_equal(reimport.episodes[0].read(CAMERA), store.episodes[1].read(CAMERA))


def test_gaps_are_refused_or_dropped_or_repeated_as_asked(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        writer.start({"task": "x"})
        for t in range(30):
            row = frame(rng, WITH_IMAGE, t)
            writer.tick(row, {k: (t * 50 * MS, t * 50 * MS) for k in row})
            if not 10 <= t < 20:
                writer.append(CAMERA, row[CAMERA], t * 50 * MS, t * 50 * MS)
        writer.end({})
    with pytest.raises(StoreError, match=r"episode 0 cannot be exported whole: 8 of 30 ticks .*--gaps drop"):
        export_lerobot(store, tmp_path / "a")
    assert not [p for p in tmp_path.iterdir() if p.name != "d"]
    assert export_lerobot(store, tmp_path / "b", gaps="drop").frames == 22
    result = export_lerobot(store, tmp_path / "c", gaps="repeat")
    assert (result.frames, result.repeated, result.dropped) == (30, 8, 0)


def test_what_cannot_be_exported_is_one_sentence(store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    with pytest.raises(StoreError, match="exists and is not empty"):
        export_lerobot(store, tmp_path / "there")
    with pytest.raises(StoreError, match="has episodes 0 to 2, not 9"):
        export_lerobot(store, tmp_path / "out", [9])
    odd = EpisodeStore.create(tmp_path / "odd", {**FEATURES, CAMERA: Feature((25, 31, 3), "uint8")}, 20.0)
    with EpisodeWriter(odd) as writer:
        writer.start({})
        row = {**frame(np.random.default_rng(0), FEATURES, 0), CAMERA: np.zeros((25, 31, 3), np.uint8)}
        writer.tick(row, dict.fromkeys(row, (0, 0)))
        writer.end({})
    with pytest.raises(StoreError, match=r"31×25 cannot be H\.264 in 4:2:0"):
        export_lerobot(odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_lerobot(odd, tmp_path / "out", lossless=True).frames == 1
