"""Statistics in bounded memory, of streams of their own rate and of depth; what `info` says of a store's
history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import FEATURES, WITH_IMAGE, write_store

from ulna.datasets import stats
from ulna.datasets.edit import delete
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, ENVIRONMENT, IMAGES, STATE, Feature
from ulna.datasets.info import describe
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import BINS, compute_stats
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

DEEP = DEPTH + "top"


def test_beyond_its_bound_only_the_quantiles_differ_and_by_less_than_a_bin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "d", (50, 31, 7))
    keys = [STATE, ENVIRONMENT, ACTION]
    exact = compute_stats(store, keys)
    monkeypatch.setattr(stats, "MEMORY_BYTES", 0)
    in_passes = compute_stats(store, keys)
    for key in keys:
        a, b = exact[key], in_passes[key]
        for same in ("min", "max"):
            np.testing.assert_array_equal(getattr(a, same), getattr(b, same))
        np.testing.assert_allclose(b.mean, a.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(b.std, a.std, rtol=1e-9)
        assert a.count == b.count == 88
        for quantile in ("q01", "q99"):
            assert (np.abs(getattr(a, quantile) - getattr(b, quantile)) <= (a.max - a.min) / BINS).all()


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one episode at a time are there, and never those of all."""
    import tracemalloc

    wide = {STATE: Feature((64,), "float32"), ACTION: Feature((1,), "float32")}
    store = EpisodeStore.create(tmp_path / "d", wide, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for _ in range(12):
            writer.start({"task": ""})
            values = rng.normal(size=(200, 64)).astype(np.float32)
            for t in range(200):
                row = {STATE: values[t], ACTION: values[t, :1]}
                writer.tick(row, dict.fromkeys(row, (t * 50_000_000, t * 50_000_000)))
            writer.end({})
    monkeypatch.setattr(stats, "BINS", 64)
    compute_stats(store, [ACTION])  # what is imported and opened once
    peaks = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(stats, "MEMORY_BYTES", limit)
        tracemalloc.start()
        compute_stats(store, [STATE])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole = 12 * 200 * 64 * 8
    assert peaks[0] > whole
    assert peaks[1] < whole / 1.5


def test_streams_count_their_own_rows_and_depth_leaves_out_what_has_no_reading(tmp_path: Path) -> None:
    features = {**FEATURES, DEEP: Feature((4, 6), "uint16", (), ("mm",))}
    store = EpisodeStore.create(tmp_path / "d", features, 20.0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": ""})
        for t in range(5):
            writer.append(ACTION, np.full(3, t, np.float32), t, t)
        for t in range(12):
            writer.append(STATE, np.full(3, t, np.float32), t, t)
            writer.append(ENVIRONMENT, np.zeros(2, np.float32), t, t)
        frame = np.full((4, 6), 800, np.uint16)
        frame[0], frame[1] = 0, 1200
        writer.append(DEEP, frame, 0, 0)
        writer.end({})
    s = compute_stats(store, [STATE, ACTION, DEEP])
    assert (s[STATE].count, s[ACTION].count) == (12, 5)
    assert s[STATE].max.tolist() == [11, 11, 11]
    assert (s[DEEP].min.tolist(), s[DEEP].max.tolist(), s[DEEP].count) == ([800], [1200], 1)
    assert s[DEEP].mean.tolist() == pytest.approx([(800 * 12 + 1200 * 6) / 18])


def test_a_stream_without_rows_is_said(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": ""})
        writer.append(ACTION, np.zeros(3, np.float32), 0, 0)
        writer.end({})
    with pytest.raises(StoreError, match=r"observation\.state has no rows"):
        compute_stats(store, [STATE])


def test_info_says_what_was_cut_off_lost_and_deleted_and_how_images_are_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    camera = IMAGES + "front"
    store = EpisodeStore.create(
        tmp_path / "d", WITH_IMAGE, 20.0, storage={camera: {"codec": "jpeg", "quality": 80}}
    )
    ends: list[dict[str, Any]] = [
        {},
        {"interrupted": "killed"},
        {"dropped": {camera: 4}},
        {"dropped": {camera: 3}},
    ]
    with EpisodeWriter(store) as writer:
        for end in ends:
            writer.start({"task": "t", "agent": "human"})
            row = {k: np.zeros(f.shape, f.dtype) for k, f in WITH_IMAGE.items()}
            writer.tick(row, dict.fromkeys(row, (0, 0)))
            writer.end(end)
    delete(store, [0])
    d = describe(EpisodeStore.open(store.path))
    assert (d["cut_off"], d["dropped"], d["trash"]) == ([0], {camera: 7}, 1)
    assert d["storage"] == {camera: {"codec": "jpeg", "quality": 80}}
    assert main(["data", "info", str(store.path)]) == 0
    text = capfd.readouterr().out
    for line in (
        "cut off and recovered: episodes 0",
        f"rows lost while recording: 7 of {camera}",
        "in the trash: 1",
        "jpeg 80",
    ):
        assert line in text


def test_an_episode_that_is_not_there_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "d", (5, 4))
    assert main(["data", "stats", str(store.path), "--episodes", "99"]) == 1
    assert capfd.readouterr().err.strip().endswith("has episodes 0 to 1, not 99")
    empty = EpisodeStore.create(tmp_path / "empty", FEATURES, 20.0)
    with pytest.raises(StoreError, match=r"has no episode$"):
        compute_stats(empty, [STATE], [0])
