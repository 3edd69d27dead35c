"""Streams of other rates in windows, the cache of decoded frames, and workers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.edit import trim
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, ENVIRONMENT, STATE
from ulna.datasets.flags import INVALID
from ulna.datasets.reading.align import align, interpolate
from ulna.datasets.reading.cache import Frames
from ulna.datasets.reading.loader import batches
from ulna.datasets.reading.windows import Windows, WindowSpec, batch_indices
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

MS = 1_000_000
times = st.lists(st.integers(0, 1000), min_size=1, max_size=30).map(sorted)


@given(times, times, st.integers(0, 60), st.integers(0, 300))
def test_alignment_matches_a_slow_reference(
    base: list[int], capture: list[int], delay: int, tolerance: int
) -> None:
    t_capture = np.array(capture)
    newest = align(np.array(base), t_capture, t_capture + delay, tolerance)
    near = align(np.array(base), t_capture, t_capture + delay, tolerance, "nearest")
    for t, s, n in zip(base, newest, near, strict=True):
        candidates = [i for i, c in enumerate(capture) if c + delay <= t]
        assert s == (candidates[-1] if candidates and t - capture[candidates[-1]] <= tolerance else -1)
        least = min(abs(c - t) for c in capture)
        assert (n == -1) == (least > tolerance)
        assert n == -1 or abs(capture[n] - t) == least


@given(times, times)
def test_interpolation_is_a_straight_line_between_neighbours(base: list[int], capture: list[int]) -> None:
    unique = np.unique(capture)
    values, within = interpolate(np.array(base), unique, 3.0 * unique[:, None] + 1, 10**9)
    inside = (np.array(base) >= unique[0]) & (np.array(base) <= unique[-1])
    np.testing.assert_allclose(values[inside, 0], 3.0 * np.array(base)[inside] + 1, rtol=1e-9)
    assert within.all()


@pytest.fixture(scope="module")
def slow_camera(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """100 Hz loop, 30 Hz camera seen 20 ms late that stops for 300 ms, and a 25 Hz tracker."""
    store = EpisodeStore.create(tmp_path_factory.mktemp("slow") / "d", WITH_IMAGE, 100.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(CAMERA, ENVIRONMENT)) as writer:
        for _ in range(2):
            writer.start({"task": ""})
            for t in range(100):
                row = frame(rng, FEATURES, t)
                flags = {ACTION: INVALID} if t == 50 else {}
                writer.tick(row, {k: (t * 10 * MS, t * 10 * MS) for k in row}, flags)
            for i in range(-2, 30):
                if not 10 <= i < 19:
                    image = np.full((24, 32, 3), i + 2, np.uint8)
                    writer.append(CAMERA, image, i * 33 * MS, i * 33 * MS + 20 * MS)
            for i in range(26):
                writer.append(ENVIRONMENT, np.full(2, 0.04 * i, np.float32), i * 40 * MS, i * 40 * MS)
            writer.end({})
    return store


def test_what_a_policy_would_have_seen(slow_camera: EpisodeStore) -> None:
    windows = Windows(slow_camera, WindowSpec(2, 4, keys=(STATE, CAMERA, ENVIRONMENT)))
    batch = windows.batch(np.arange(len(windows)))
    for i, (e, tick) in enumerate(zip(windows.episode.tolist(), windows.tick.tolist(), strict=True)):
        frames = [k for k in range(-2, 30) if not 10 <= k < 19 and k * 33 + 20 <= tick * 10]
        assert batch[CAMERA][i, 1, 0, 0, 0] == frames[-1] + 2
        assert batch[ENVIRONMENT][i, 1, 0] == np.float32(0.04 * (tick * 10 // 40))
        np.testing.assert_array_equal(batch[STATE][i, 1], slow_camera.episodes[e].read(STATE)[tick])
        expected = [50 - tick == h for h in range(4)]
        assert [not v for v in batch["valid"][i]] == expected
        assert [not m for m in batch["mask"][i]] == [w or tick + h > 99 for h, w in enumerate(expected)]
    # two periods of 33 ms and 20 ms of delay: after 86 ms without a frame, until frame 19 comes at 647 ms
    out = [t for t in range(100) if t not in windows.tick[windows.episode == 0]]
    assert out == [t for t in range(100) if 9 * 33 + 86 < t * 10 < 19 * 33 + 20]
    assert windows.left_out == {(0, CAMERA): len(out), (1, CAMERA): len(out)}
    assert windows.left_out_sentence().startswith(f"{2 * len(out)} of 200 ticks are left out")
    assert not Windows(slow_camera, WindowSpec(1, 1, keys=(CAMERA,), tolerance_s=1.0)).left_out


@pytest.mark.parametrize("noted", [True, False])
def test_a_camera_with_as_many_frames_as_ticks_is_not_taken_for_one_of_the_loop(
    tmp_path: Path, noted: bool
) -> None:
    """Frame i comes 25 ms after tick i: at tick i only frame i - 1 was there. A trim must see it alike."""
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 30.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        writer.start({})
        for t in range(20):
            row = {**frame(rng, FEATURES, t), STATE: np.full(3, t, np.float32)}
            writer.tick(row, dict.fromkeys(row, (t * 33 * MS, t * 33 * MS)))
        for i in range(20):
            image = np.full((24, 32, 3), i, np.uint8)
            writer.append(CAMERA, image, (i * 33 + 5) * MS, (i * 33 + 25) * MS)
        writer.end({})
    if not noted:  # as episodes were written before: then as many rows as ticks count as the loop's
        file = store.episodes[0].path / "zarr.json"
        file.write_text(file.read_text().replace('"by_tick"', '"unknown"'))
        store.refresh()
    assert store.episodes[0].by_tick(CAMERA) is (False if noted else None)
    for _ in range(2):
        windows = Windows(store, WindowSpec(1, 1, keys=(STATE, CAMERA)))
        batch = windows.batch(np.arange(len(windows)))
        assert len(windows) > 10
        differences = batch[STATE][:, 0, 0] - batch[CAMERA][:, 0, 0, 0, 0]
        np.testing.assert_array_equal(differences, 1 if noted else 0)
        trim(store, 0, 0.2, 0.6)


def test_vectors_may_be_interpolated(slow_camera: EpisodeStore) -> None:
    windows = Windows(slow_camera, WindowSpec(1, 1, keys=(ENVIRONMENT,), align="interpolate"))
    assert len(windows) == 200
    values = windows.batch(np.arange(100))[ENVIRONMENT][:, 0, 0]
    np.testing.assert_allclose(values, np.arange(100) * 0.01, atol=1e-6)


def test_every_cache_gives_the_same_frames(slow_camera: EpisodeStore, tmp_path: Path) -> None:
    spec = WindowSpec(3, 1, keys=(CAMERA,))
    rows = np.random.default_rng(0).permutation(len(Windows(slow_camera, spec)))[:40]
    frames = Windows(slow_camera, spec, cache="none").batch(rows)[CAMERA]
    for cache in ("ram", "disk", "disk", "auto"):
        windows = Windows(slow_camera, spec, cache=cache, cache_dir=tmp_path)  # type: ignore[arg-type]
        np.testing.assert_array_equal(windows.batch(rows)[CAMERA], frames)
    file, other = (p for p in tmp_path.rglob("*") if p.is_file())
    assert file.stat().st_size == other.stat().st_size == slow_camera.episodes[0].rows(CAMERA) * 24 * 32 * 3
    windows = Windows(slow_camera, spec, cache="disk", cache_dir=tmp_path)
    os.truncate(file, 100)
    with pytest.raises(StoreError, match="is cut short: remove it"):
        windows.batch(rows)
    np.testing.assert_array_equal(
        Windows(slow_camera, spec, cache="disk", cache_dir=tmp_path).batch(rows)[CAMERA], frames
    )


def test_a_dataset_that_claims_another_s_content_leaves_its_cache_alone(tmp_path: Path) -> None:
    spec, read = WindowSpec(1, 1, keys=(CAMERA,)), []
    for name, lengths in (("a", (20,)), ("b", (13, 20))):
        store = write_store(tmp_path / name, lengths, WITH_IMAGE)
        if read:
            file = store.episodes[1].path / "zarr.json"
            file.write_text(file.read_text().replace(store.episodes[1].content, read[0].episodes[0].content))
            store.refresh()
        read.append(store)
    a, b = read
    assert a.episodes[0].content == b.episodes[1].content
    for store, numbers in ((b, [1]), (a, [0])):  # the one that claims it comes first
        cached = Windows(store, spec, numbers, cache="disk", cache_dir=tmp_path / "c").batch(np.arange(20))
        plain = Windows(store, spec, numbers, cache="none").batch(np.arange(20))
        np.testing.assert_array_equal(cached[CAMERA], plain[CAMERA])


def test_a_cache_that_cannot_be_written_is_said_and_done_without(
    slow_camera: EpisodeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    windows = Windows(
        slow_camera, WindowSpec(1, 1, keys=(CAMERA,)), cache="disk", cache_dir=tmp_path / "file"
    )
    assert "cannot be written (Not a directory)" in caplog.text
    assert windows.batch(np.array([0]))[CAMERA].shape == (1, 1, 24, 32, 3)


def test_the_disk_cache_keeps_few_files_open(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (2,) * 150, WITH_IMAGE)
    windows = Windows(store, WindowSpec(1, 1, keys=(CAMERA,)), cache="disk", cache_dir=tmp_path / "c")
    before = len(os.listdir("/proc/self/fd"))
    windows.batch(np.arange(300))
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    assert isinstance(windows._images[CAMERA], Frames)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_with_any_number_of_workers(slow_camera: EpisodeStore, workers: int) -> None:
    windows = Windows(slow_camera, WindowSpec(2, 4, keys=(STATE, CAMERA)), cache="none")

    def rows(step: int) -> np.ndarray:
        return batch_indices(len(windows), 8, 3, step)

    got = list(batches(windows, rows, 5, 12, workers))
    assert len(got) == 7
    for step, batch in enumerate(got, 5):
        want = windows.batch(rows(step))
        assert batch.keys() == want.keys()
        for key in want:
            np.testing.assert_array_equal(batch[key], want[key])


def test_an_error_in_a_worker_is_its_sentence(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (6,), WITH_IMAGE)
    windows = Windows(store, WindowSpec(1, 1, keys=(CAMERA,)), cache="none")
    (store.episodes[0].path / CAMERA / "value" / "c" / "0" / "0" / "0" / "0").unlink()
    for workers in (0, 1):
        with pytest.raises(StoreError, match=r"^episode 000000-\w+: stream observation.images.front: frame"):
            list(batches(windows, lambda s: np.array([s]), 0, 3, workers))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_missing_history_repeats_the_next_good_row(seed: int) -> None:
    from ulna.datasets.reading.windows import _fill_gaps

    rng = np.random.default_rng(seed)
    within = rng.random(20) < 0.5
    rows = np.arange(20)
    result = _fill_gaps(rows, within)
    for i in range(20):
        next_rows = [j for j in range(i, 20) if within[j]] or [j for j in range(20) if within[j]][-1:]
        assert result[i] == (next_rows[0] if next_rows else i)
