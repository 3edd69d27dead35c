"""A LeRobot folder that is read where it is gives the windows that its import gives."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from contracts.lerobot_made import FRONT, LENGTHS, make_lerobot

from ulna.datasets.checks.check import check
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, REQUESTED, STATE
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.formats.lerobot_store import LeRobotStore
from ulna.datasets.opened import open_dataset
from ulna.datasets.reading.cache import Cache
from ulna.datasets.reading.loader import batches
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.store import EpisodeStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lerobot(tmp_path_factory.mktemp("lerobot"))


@pytest.fixture(scope="module")
def imported(folder: Path) -> EpisodeStore:
    return import_lerobot(folder, folder.parent / "imported")


def same_windows(ours: EpisodeStore, theirs: EpisodeStore, cache: Cache, folder: Path, **spec: Any) -> None:
    keys = tuple(k for k in theirs.features if k != ACTION)
    a, b = (
        Windows(s, WindowSpec(2, 8, keys=keys, **spec), cache=cache, cache_dir=folder) for s in (ours, theirs)
    )
    assert len(a) == len(b) > 0
    indices = np.random.default_rng(1).permutation(len(a))
    for part in np.array_split(indices, 4):
        mine, other = a.batch(part), b.batch(part)
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def same_by_workers(store: EpisodeStore) -> None:
    windows = Windows(store, WindowSpec(2, 8, keys=(STATE, FRONT)), cache="none")
    here, there = (
        list(batches(windows, lambda step: np.arange(4) + 7 * step, 0, 4, workers)) for workers in (0, 2)
    )
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a[FRONT], b[FRONT])


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_windows_are_those_of_the_import(
    folder: Path, imported: EpisodeStore, cache: Cache, tmp_path: Path
) -> None:
    same_windows(open_dataset(folder), imported, cache, tmp_path)


def test_workers_decode(folder: Path) -> None:
    same_by_workers(open_dataset(folder))


def test_requests_flags_times_and_labels_are_those_of_the_import(
    folder: Path, imported: EpisodeStore
) -> None:
    store = open_dataset(folder)
    assert isinstance(store, LeRobotStore)
    assert (store.features, store.control_hz, store.robot) == (
        imported.features,
        imported.control_hz,
        imported.robot,
    )
    same_windows(store, imported, "none", folder, actions="requested")
    for mine, theirs in zip(store.episodes, imported.episodes, strict=True):
        assert set(mine.streams) == set(theirs.streams)
        assert (mine.length, mine.task, mine.interrupted) == (theirs.length, theirs.task, False)
        assert {k: mine.attrs[k] for k in ("success", "seed", "agent", "source_episode")} == {
            k: theirs.attrs[k] for k in ("success", "seed", "agent", "source_episode")
        }
        for key in mine.streams:
            for a, b in zip(mine.times_ns(key), theirs.times_ns(key), strict=True):
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(mine.flags(key), theirs.flags(key), err_msg=key)
        np.testing.assert_array_equal(mine.read(REQUESTED), theirs.read(REQUESTED))


def test_frames_come_in_any_order_and_several_times(folder: Path, imported: EpisodeStore) -> None:
    mine, theirs = open_dataset(folder).episodes[0], imported.episodes[0]
    for rows in ([40, 3, 3, 47, 0], [49], list(range(10, 30)), []):
        np.testing.assert_array_equal(mine.read_frames(FRONT, rows), theirs.read_frames(FRONT, rows))
    with pytest.raises(IndexError, match="of a stream of 50"):
        mine.read_frames(FRONT, [50])
    with pytest.raises(StoreError, match=r"no stream observation\.nothing"):
        mine.read("observation.nothing")


def test_only_what_is_asked_for_is_fetched(folder: Path, tmp_path: Path) -> None:
    partly, asked = tmp_path / "partly", []
    shutil.copytree(folder / "meta", partly / "meta")

    def fetch(file: Path) -> None:
        if not file.exists():
            asked.append(file.relative_to(partly).as_posix())
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file.relative_to(partly), file)

    store = LeRobotStore(partly, fetch, "a commit")
    assert [e.length for e in store.episodes] == list(LENGTHS)
    assert asked == []
    Windows(store, WindowSpec(1, 4, keys=(STATE,)), [1])
    assert asked == ["data/chunk-000/file-000.parquet"]
    Windows(store, WindowSpec(1, 4, keys=(STATE, FRONT)), [1], cache="ram")
    assert asked[1:] == [f"videos/{FRONT}/chunk-000/file-001.mp4"]
    # what a run may resume with does not hang on what has been fetched
    content = [e.content for e in store.episodes]
    assert len(set(content)) == 3
    assert content == [e.content for e in LeRobotStore(partly, fetch, "a commit").episodes]
    assert not set(content) & {e.content for e in LeRobotStore(partly, fetch, "another").episodes}


def test_damage_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    video = broken / f"videos/{FRONT}/chunk-000/file-001.mp4"
    video.unlink()
    store = open_dataset(broken)
    with pytest.raises(StoreError, match=r"episode 1: the file .*file-001.mp4 is missing"):
        store.episodes[1].read(FRONT)
    video.write_bytes(b"no video")
    with pytest.raises(StoreError, match="cannot be decoded"):
        open_dataset(broken).episodes[1].read(FRONT)
    (broken / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="not a readable parquet"):
        open_dataset(broken).episodes[0].read(STATE)


def test_it_is_checked_as_a_store_is(folder: Path, imported: EpisodeStore) -> None:
    mine, theirs = check(open_dataset(folder)), check(imported)
    assert [(f.episode, f.check, f.stream, f.severity) for f in mine] == [
        (f.episode, f.check, f.stream, f.severity) for f in theirs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stills", [False, True])
def test_many_episodes_in_one_file_by_lerobots_own_writer(tmp_path: Path, stills: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's own imports and encoder
        from lerobot.datasets import LeRobotDataset

        vector = {"dtype": "float32", "shape": (2,), "names": ["left.pos", "right.pos"]}
        kind = "image" if stills else "video"
        picture = {"dtype": kind, "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
        lerobot_set = LeRobotDataset.create(
            "test/set",
            10,
            {STATE: vector, ACTION: vector, FRONT: picture},
            root=tmp_path / "set",
            use_videos=not stills,
        )
        rng = np.random.default_rng(0)
        for n, task in ((30, "push"), (25, "pull"), (4, "push")):
            for i in range(n):
                image = np.full((48, 64, 3), 30, np.uint8)
                image[:, : 2 * i] = 220
                vectors = rng.normal(size=(2, 2)).astype(np.float32)
                lerobot_set.add_frame({STATE: vectors[0], ACTION: vectors[1], FRONT: image, "task": task})
            lerobot_set.save_episode()
        lerobot_set.finalize()
    store = open_dataset(tmp_path / "set")
    assert [e.task for e in store.episodes] == ["push", "pull", "push"]
    assert store.features[STATE].names == ("left", "right")
    same_windows(store, import_lerobot(tmp_path / "set", tmp_path / "imported"), "none", tmp_path)
    same_by_workers(store)


def test_frames_that_are_stored_in_another_order_are_found(folder: Path, tmp_path: Path) -> None:
    """A video with B frames and few key frames, as other tools write them."""
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / f"videos/{FRONT}/chunk-000/file-000.mp4"
    frames: list[np.ndarray] = []
    with av.open(str(path)) as source:
        frames += [f.to_ndarray(format="rgb24") for f in source.decode(video=0)]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.options = {"g": "25", "bf": "4", "crf": "10"}
        for f in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")))
        out.mux(stream.encode())
    episode = open_dataset(other).episodes[0]
    for rows in ([49], [45, 26, 24, 31], [1]):
        got = episode.read_frames(FRONT, rows)[..., 0].mean((1, 2))
        np.testing.assert_allclose(got, [4 * r + 20 for r in rows], atol=3)
