"""Windows against a slow reference, batches as pure functions, statistics and normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, write_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ulna.datasets.edit import relabel, restore, trim
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE
from ulna.datasets.normalise import affine
from ulna.datasets.reading.cache import auto_bytes
from ulna.datasets.reading.windows import Windows, WindowSpec, batch_indices
from ulna.datasets.stats import Stats, compute_stats, vector_stats
from ulna.datasets.store import EpisodeStore

LENGTHS = (5, 1, 9)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return write_store(tmp_path_factory.mktemp("w") / "d", LENGTHS, WITH_IMAGE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 3), st.sampled_from([None, [0, 2], [2], [1, 0]]))
def test_windows_match_a_slow_reference(
    store: EpisodeStore, n_obs_steps: int, horizon: int, past: int, episodes: list[int] | None
) -> None:
    windows = Windows(store, WindowSpec(n_obs_steps, horizon, past, (STATE, CAMERA)), episodes)
    row = 0
    for i in episodes or range(len(LENGTHS)):
        episode = store.episodes[i]
        state, action, image = episode.read(STATE), episode.read(ACTION), episode.read(CAMERA)
        for t in range(episode.length):
            batch = windows.batch(np.array([row]))
            last = episode.length - 1
            observed = [max(0, t - n_obs_steps + 1 + k) for k in range(n_obs_steps)]
            ticks = [t - past + k for k in range(horizon)]
            np.testing.assert_array_equal(batch[STATE][0], state[observed])
            np.testing.assert_array_equal(batch[CAMERA][0], image[observed])
            np.testing.assert_array_equal(batch[ACTION][0], action[np.clip(ticks, 0, last)])
            assert batch["mask"][0].tolist() == [0 <= w <= last for w in ticks]
            row += 1
    assert len(windows) == row


def test_images_read_from_disk_are_those_held_in_memory(store: EpisodeStore) -> None:
    spec = WindowSpec(2, 4, keys=(CAMERA,))
    rows = np.array([0, 4, 5, 5, 14, 6])
    in_memory, from_disk = Windows(store, spec), Windows(store, spec, cache_bytes=0)
    np.testing.assert_array_equal(in_memory.batch(rows)[CAMERA], from_disk.batch(rows)[CAMERA])


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, 256),  # no such system: the least
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   8388608 kB\n"}, 2048),
        ({"proc/meminfo": "MemAvailable: 524288 kB"}, 256),
        ({"proc/meminfo": "MemAvailable: 524288000 kB"}, 8192),
        # in a container of 4 GiB, of which 1 is used and half of that is files
        (
            {
                "proc/meminfo": "MemAvailable: 8388608 kB",
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": str(4 << 30),
                "sys/fs/cgroup/a/memory.current": str(1 << 30),
                "sys/fs/cgroup/a/memory.stat": f"anon 7\ninactive_file {1 << 29}\n",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            896,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 8388608 kB",
                "proc/self/cgroup": "9:cpu:/\n4:hugetlb,memory:/a:b\n",
                "sys/fs/cgroup/memory/a:b/memory.limit_in_bytes": str(3 << 30),
                "sys/fs/cgroup/memory/a:b/memory.usage_in_bytes": str(1 << 30),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
            },
            512,
        ),
    ],
)
def test_training_keeps_images_in_a_quarter_of_the_free_memory(
    tmp_path: Path, files: dict[str, str], mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert auto_bytes(tmp_path) == mib << 20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert auto_bytes(tmp_path) == (mib << 20 if mib in (256, 8192) else mib << 19)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 9), st.integers(0, 12))
def test_batches_are_pure_and_every_row_comes_once_an_epoch(n: int, size: int, seed: int, step: int) -> None:
    np.testing.assert_array_equal(batch_indices(n, size, seed, step), batch_indices(n, size, seed, step))
    together = np.concatenate([batch_indices(n, size, seed, i) for i in range(step + 1)])
    for epoch in range(len(together) // n):
        assert sorted(together[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_what_cannot_be_windowed_is_said(store: EpisodeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="episodes 0 to 2, not 7"):
        Windows(store, WindowSpec(1, 1), [7])
    with pytest.raises(StoreError, match=r"no feature observation.images.top"):
        Windows(store, WindowSpec(1, 1, keys=("observation.images.top",)))
    empty = EpisodeStore.create(tmp_path / "e", FEATURES, 20.0)
    with pytest.raises(ValueError, match="no ticks"):
        batch_indices(len(Windows(empty, WindowSpec(1, 1))), 4, 0, 0)
    with pytest.raises(StoreError, match="no episode"):
        compute_stats(empty, [STATE])


def test_an_edit_while_windows_are_drawn_is_refused_not_mixed_in(tmp_path: Path) -> None:
    """Rows are counted when the windows are made; after a trim they would be other frames under the same
    name."""
    store = write_store(tmp_path / "d", (12, 6), WITH_IMAGE)
    windows = Windows(EpisodeStore.open(store.path), WindowSpec(1, 1, keys=(STATE, CAMERA)), cache="none")
    before = windows.batch(np.arange(18))
    trim(store, 0, 0.2, None)
    for row in (0, 5, 11):
        with pytest.raises(StoreError, match=r"episode 000000-\w+ was edited or deleted while it was in use"):
            windows.batch(np.array([row]))
    assert windows.batch(np.array([12, 17]))[CAMERA].shape[0] == 2, "the other episode is as it was"
    relabel(store, [1], {"task": "another"})
    restore(store, ["0"])
    after = windows.batch(np.arange(18))
    for key in before:
        np.testing.assert_array_equal(after[key], before[key])


def test_nan_on_disk_is_found_with_its_episode_and_frame(tmp_path: Path) -> None:
    import zarr

    store = write_store(tmp_path / "d")
    array: Any = zarr.open_group(str(store.episodes[1].path), mode="r+")[f"{STATE}/value"]
    array[4] = np.nan
    for read in (
        lambda: Windows(store, WindowSpec(1, 1, keys=(STATE,))),
        lambda: compute_stats(store, [STATE]),
    ):
        with pytest.raises(StoreError, match=r"episode 1: observation.state is not finite in row 4"):
            read()


def test_statistics_are_those_of_all_rows(store: EpisodeStore) -> None:
    stats = compute_stats(store, [STATE, CAMERA])
    rows = np.concatenate([e.read(STATE) for e in store.episodes]).astype(np.float64)
    np.testing.assert_allclose(stats[STATE].mean, rows.mean(0))
    np.testing.assert_allclose(stats[STATE].std, rows.std(0))
    np.testing.assert_allclose(stats[STATE].q99, np.quantile(rows, 0.99, axis=0))
    pixels = np.concatenate([e.read(CAMERA) for e in store.episodes]).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(stats[CAMERA].mean, pixels.mean(0))
    np.testing.assert_allclose(stats[CAMERA].std, pixels.std(0))
    assert stats[CAMERA].min.tolist() == pixels.min(0).tolist()
    copy = Stats.from_json(stats[STATE].to_json())
    np.testing.assert_array_equal(copy.max, stats[STATE].max)


@given(st.integers(0, 10_000))
def test_normalisers_map_ranges_to_the_unit_box_and_leave_still_dimensions_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, 4)) * [1.0, 100.0, 1e-6, 0.0] + [0, 5, 2, -3]
    stats = vector_stats(x)
    scale, offset = affine(stats, "minmax")
    y = x * scale + offset
    np.testing.assert_allclose([y[:, :2].min(0), y[:, :2].max(0)], [[-1, -1], [1, 1]], atol=1e-4)
    assert np.abs(y[:, 2:]).max() < 1e-4, "shifted to zero, not blown up"
    assert scale[2:].tolist() == [1.0, 1.0]
    scale, offset = affine(stats, "meanstd")
    y = x * scale + offset
    np.testing.assert_allclose(y[:, :2].std(0), 1, rtol=1e-4)
    scale, offset = affine(stats, "quantile")
    assert (np.abs(x * scale + offset)[:, :2] <= 1 + 1e-5).mean() > 0.9
    assert (affine(stats, "none")[0] == 1).all()
