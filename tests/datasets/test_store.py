"""The store and its writer: round trips, what is refused, and what survives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store
from imagecodecs.zarr import register_codecs

from ulna.datasets.checks.check import check
from ulna.datasets.edit import delete, relabel, trim
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, REQUESTED, STATE, Feature, FeatureMismatch, require_same
from ulna.datasets.frames import FRAMES_PER_SHARD
from ulna.datasets.info import describe
from ulna.datasets.merge import merge
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0, "arm")
    writer = EpisodeWriter(store)
    rng = np.random.default_rng(1)
    rows = [frame(rng, WITH_IMAGE, t) for t in range(FRAMES_PER_SHARD + 7)]  # more than one shard
    writer.start({"task": "fold the towel", "seed": 3, "agent": "human"})
    for t, row in enumerate(rows):
        times = {k: (t * 1_000_000_007, t * 1_000_000_007 + 5) for k in row}
        writer.tick({**row, REQUESTED: row[ACTION] + np.float32(1)}, {**times, REQUESTED: (t, t + 1)})
    writer.end({"success": True})

    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    assert (episode.length, episode.task, episode.attrs["seed"], episode.attrs["success"]) == (
        71,
        "fold the towel",
        3,
        True,
    )
    for key in WITH_IMAGE:
        np.testing.assert_array_equal(episode.read(key), np.stack([r[key] for r in rows]))
        capture, receive = episode.times_ns(key)
        assert (receive - capture == 5).all()
        assert capture[-1] == 70 * 1_000_000_007
    np.testing.assert_array_equal(episode.read(REQUESTED), episode.read(ACTION) + 1)
    np.testing.assert_array_equal(episode.read(CAMERA, 62, 66), np.stack([r[CAMERA] for r in rows[62:66]]))
    with pytest.raises(StoreError, match=r"no stream observation.images.top; it has action"):
        episode.read("observation.images.top")
    # and without us, by any zarr reader
    register_codecs()
    np.testing.assert_array_equal(
        zarr.open_array(str(episode.path / CAMERA / "value"), mode="r")[3], rows[3][CAMERA]
    )
    group: Any = zarr.open_group(str(episode.path), mode="r")
    assert group.attrs["length"] == 71
    np.testing.assert_array_equal(group[f"{STATE}/value"][3], rows[3][STATE])


def test_info_measures_rates(tmp_path: Path) -> None:
    d = describe(write_store(tmp_path / "d"))
    json.dumps(d)
    assert (d["episodes"], d["frames"], d["successes"], d["failures"]) == (2, 33, 1, 1)
    assert d["rates"][STATE] == {"hz": 20.0, "jitter_ms": 0.0}
    assert d["tasks"] == ["task 0", "task 1"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({STATE: np.zeros(4, np.float32)}, r"episode 2, tick 1: observation.state has shape \(4,\)"),
        ({STATE: np.zeros(3, np.int64)}, "int64, the store's feature is float32"),
        (
            {ACTION: np.array([0, np.nan, 0], np.float32)},
            "episode 2, tick 1: action holds a value that is not finite",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, np.ndarray], says: str) -> None:
    store = write_store(tmp_path / "d")
    writer = EpisodeWriter(store)
    writer.start({"task": "x"})
    row = frame(np.random.default_rng(0), FEATURES, 0)
    times = dict.fromkeys(row, (0, 0))
    writer.tick(row, times)
    with pytest.raises(StoreError, match=says):
        writer.tick({**row, **change}, times)
    with pytest.raises(StoreError, match="no value for action"):
        writer.tick({k: v for k, v in row.items() if k != ACTION}, times)
    with pytest.raises(StoreError, match="being written already"):
        writer.start({})
    writer.discard()
    assert not list((tmp_path / "d" / "in-progress").iterdir())
    assert len(EpisodeStore.open(tmp_path / "d")) == 2


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=WITH_IMAGE)
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from contracts.data import *;"
        "w = EpisodeWriter(EpisodeStore.open(sys.argv[1])); w.start({}); r = np.random.default_rng(0)\n"
        "for t in range(10**6):\n v = frame(r, WITH_IMAGE, t); w.tick(v, dict.fromkeys(v, (t, t)))\n"
        " print(t, flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "d"), str(Path(__file__).parents[1])],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"80\n":
        pass
    with pytest.raises(StoreError, match=rf"is being written by process {process.pid} \("):
        EpisodeWriter(EpisodeStore.open(tmp_path / "d"))
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    count = int(process.stdout.read().split()[-1]) + 1
    process.wait()
    process.stdout.close()
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.length for e in store.episodes[:2]] == [20, 13]
    assert store.episodes[0].read(CAMERA).shape == (20, 24, 32, 3)
    cut_off = store.episodes[2]
    assert cut_off.interrupted
    assert not store.interrupted_folders()
    assert count <= cut_off.length <= count + 1
    rng = np.random.default_rng(0)
    rows = [frame(rng, WITH_IMAGE, t) for t in range(cut_off.length)]
    for key in WITH_IMAGE:
        np.testing.assert_array_equal(cut_off.read(key), np.stack([r[key] for r in rows]))
        assert cut_off.times_ns(key)[0].tolist() == list(range(cut_off.length))


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *;"
        "from ulna.datasets.episode import StoreError; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "w = EpisodeWriter(EpisodeStore.open(sys.argv[1])); r = np.random.default_rng(0); w.start({})\n"
        "for t in range(4000):\n v = frame(r, FEATURES, t); w.tick(v, dict.fromkeys(v, (t, t)))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: w.end({'score': 1})\nexcept StoreError as e: print(e)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d"), str(Path(__file__).parents[1])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write to" in run.stdout
    assert "finished episodes are intact" in run.stdout
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.length for e in store.episodes] == [20, 13, 4000]
    assert not store.interrupted_folders()
    assert store.episodes[2].interrupted


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no dataset at"):
        EpisodeStore.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty folder"):
        EpisodeStore.open(tmp_path / "empty")
    (tmp_path / "lerobot" / "meta").mkdir(parents=True)
    (tmp_path / "lerobot" / "meta" / "info.json").write_text("{}")
    with pytest.raises(StoreError, match="ulna data import"):
        EpisodeStore.open(tmp_path / "lerobot")
    store = write_store(tmp_path / "d")
    with pytest.raises(StoreError, match="not empty"):
        EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    header = json.loads((store.path / "ulna.json").read_text())
    for change, says in (
        ({"version": 99}, "newer Ulna"),
        ({"format": "x"}, "another format"),
        ({"fps": None}, "incomplete"),
    ):
        (store.path / "ulna.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(StoreError, match=says):
            EpisodeStore.open(store.path)


def test_a_store_that_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *;"
        "from ulna.datasets.episode import StoreError; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "try: EpisodeStore.create(sys.argv[1], FEATURES, 20.0)\nexcept StoreError as e: print(e)"
    )
    for exists in (False, True):
        path = tmp_path / str(exists)
        if exists:
            path.mkdir()
        command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[1])]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run.stdout == f"cannot create an episode store at {path}: File too large\n"
        assert path.exists() == exists
        EpisodeStore.create(path, FEATURES, 20.0)


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d")
    chunk = next(p for p in (store.episodes[1].path / STATE / "value" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(b"\x00" * 10)
    reopened = EpisodeStore.open(store.path)
    reopened.episodes[0].read(STATE)
    with pytest.raises(StoreError, match=r"episode 000001.*observation.state cannot be read"):
        reopened.episodes[1].read(STATE)


def test_an_episode_that_cannot_be_opened_leaves_the_others_and_can_be_deleted(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d")
    (store.episodes[0].path / "zarr.json").write_text("{")
    reopened = EpisodeStore.open(store.path)
    assert (len(reopened), reopened.episodes[0].length, len(reopened.episodes[1].read(STATE))) == (2, 0, 13)
    says = r"000000.*no readable zarr.json .* `ulna data delete` the episode"
    for use in (
        lambda: reopened.episodes[0].read(STATE),
        lambda: relabel(reopened, [0], {"task": "new"}),
        lambda: trim(reopened, 0, 0.1, 0.2),
        lambda: merge([reopened], tmp_path / "merged"),
        lambda: Windows(reopened, WindowSpec(1, 1)),
    ):
        with pytest.raises(StoreError, match=says):
            use()
    d = describe(reopened)
    assert (d["episodes"], d["damaged"]) == (2, [0])
    assert [(f.episode, f.check) for f in check(reopened) if f.severity == "severe"] == [(0, "damaged")]
    delete(reopened, [0])
    assert [e.length for e in EpisodeStore.open(store.path).episodes] == [13]


def test_feature_mismatches_show_both_sides() -> None:
    other = {**FEATURES, STATE: Feature((4,), "float32", ("a", "b", "c", "grip"))}
    with pytest.raises(FeatureMismatch) as error:
        require_same(other, FEATURES, "the robot", "the policy")
    assert "the robot has float32 (4,) [a, b, c, grip]" in str(error.value)
    assert "the policy has float32 (3,) [a, b, grip] in rad" in str(error.value)
    require_same({**FEATURES, CAMERA: WITH_IMAGE[CAMERA]}, FEATURES, "one", "other")
