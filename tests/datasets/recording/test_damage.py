"""What a store says when its files are not what was written, and what it refuses to write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store
from contracts.kills import killed_at_each_step
from imagecodecs.zarr import register_codecs
from zarr.codecs import BloscCodec

from ulna.datasets.checks.check import check_episode
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.flags import AFTER_DROP
from ulna.datasets.frames import FRAMES_PER_SHARD, FrameReader
from ulna.datasets.info import describe
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.log import HEADER, LOG, Log, record
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

LONG = FRAMES_PER_SHARD + 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("damage") / "d", (LONG,), WITH_IMAGE).path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(written, tmp_path / "d")
    return EpisodeStore.open(tmp_path / "d")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def shard(store: EpisodeStore, i: int) -> Path:
    return store.episodes[0].path / CAMERA / "value" / "c" / str(i) / "0" / "0" / "0"


def test_frames_are_those_that_zarr_reads(store: EpisodeStore) -> None:
    folder = store.episodes[0].path / CAMERA / "value"
    register_codecs()
    zarr_frames = np.asarray(zarr.open_array(str(folder), mode="r")[:])
    rows = [69, 0, 63, 64, 63, 5]
    np.testing.assert_array_equal(FrameReader(folder).read(rows), zarr_frames[rows])
    for rows in ([-1], [LONG]):
        with pytest.raises(IndexError):
            FrameReader(folder).read(rows)


def test_arrays_laid_out_by_others_are_read_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), dtype=np.uint8)
    zarr.create_array(str(tmp_path / "a"), data=pixels, chunks=(4, 8, 6, 3))
    zarr.create_array(str(tmp_path / "b"), data=pixels, chunks=(1, 8, 6, 3), shards=(4, 8, 6, 3))
    depth = (pixels[..., :1].astype(np.uint16) << 8) + 7
    zarr.create_array(
        str(tmp_path / "c"),
        data=depth,
        chunks=(1, 8, 6, 1),
        shards=(4, 8, 6, 1),
        compressors=BloscCodec(),
    )
    for name, data in (("a", pixels), ("b", pixels), ("c", depth)):
        np.testing.assert_array_equal(FrameReader(tmp_path / name).read([8, 3, 4]), data[[8, 3, 4]])


def test_a_flipped_byte_of_a_frame_costs_that_frame(store: EpisodeStore) -> None:
    flip(shard(store, 0), 5)  # the frames lie in order from the file's beginning
    episode = store.episodes[0]
    with pytest.raises(StoreError, match=f"episode 000000.*{CAMERA}: frame 0 cannot be read: its checksum"):
        episode.read(CAMERA)
    assert len(episode.read(CAMERA, 1)) == LONG - 1
    with pytest.raises(StoreError, match="frame 0 cannot be read"):
        Windows(store, WindowSpec(2, 4, keys=(CAMERA,)))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "frame 64 cannot be read: No such file"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "frame 64 cannot be read: its checksum is wrong",
        ),
        (lambda path: path.write_bytes(b""), "frame 64 cannot be read: its file has only 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[5000:]), "frame 64 cannot be read: its"),
    ],
)
def test_a_damaged_shard_leaves_the_others(
    store: EpisodeStore, harm: Callable[[Path], None], says: str
) -> None:
    harm(shard(store, 1))
    with pytest.raises(StoreError, match=says):
        store.episodes[0].read(CAMERA)
    assert len(store.episodes[0].read(CAMERA, 0, 64)) == 64


def test_vectors_and_times_that_changed_or_are_gone_are_named(store: EpisodeStore) -> None:
    """zarr by itself gives zeros for a chunk that is gone, and any number for one that changed."""
    state = store.episodes[0].path / STATE
    flip(state / "value" / "c" / "0" / "0", -10)
    (state / "t_capture_ns" / "c" / "0").unlink()
    with pytest.raises(StoreError, match=r"episode 000000.*observation.state cannot be read"):
        store.episodes[0].read(STATE)
    with pytest.raises(StoreError, match=r"observation.state cannot be read: .*t_capture_ns/c/0 is missing"):
        describe(store)


def test_zeros_are_written_and_read_as_zeros(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    writer = EpisodeWriter(store)
    writer.start({})
    row = {k: np.zeros(f.shape, f.dtype) for k, f in WITH_IMAGE.items()}
    writer.tick(row, dict.fromkeys(row, (0, 0)))
    writer.end({})
    for key in row:
        assert not store.episodes[0].read(key).any()
        assert store.episodes[0].times_ns(key)[0].tolist() == [0]


def test_streams_of_other_lengths_are_not_windowed_as_if_they_fitted(store: EpisodeStore) -> None:
    folder = store.episodes[0].path
    for key in (STATE, CAMERA):
        array = zarr.open_array(str(folder / key / "value"), mode="r+")
        array.resize((LONG - 1, *array.shape[1:]))
        with pytest.raises(StoreError, match=f"episode 0: {key} has 69 rows but 70 times"):
            Windows(EpisodeStore.open(store.path), WindowSpec(1, 1, keys=(key,)))


def test_what_cannot_be_kept_is_refused_before_it_is_too_late(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d")
    writer = EpisodeWriter(store)
    with pytest.raises(StoreError, match="must be JSON"):
        writer.start({"seed": np.int64(3)})
    writer.start({"task": "x"})
    row = frame(np.random.default_rng(0), FEATURES, 0)
    times = dict.fromkeys(row, (0, 0))
    with pytest.raises(
        StoreError, match=r"tick 0: observation.state is float64, the store's feature is float32"
    ):
        writer.tick({**row, STATE: row[STATE].astype(np.float64)}, times)
    with pytest.raises(StoreError, match=r"tick 0: no times for observation.state"):
        writer.tick(row, {k: t for k, t in times.items() if k != STATE})
    writer.tick(row, times)
    with pytest.raises(StoreError, match="must be JSON"):
        writer.end({"score": float("nan")})
    writer.end({"score": 1.0})  # nothing was lost by it
    assert len(EpisodeStore.open(tmp_path / "d")) == 3


@pytest.mark.parametrize("name", ["observation.images.a/b", "../state", "", ".hidden"])
def test_feature_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be a folder's"):
        EpisodeStore.create(tmp_path / "d", {**FEATURES, name: Feature((1,), "float32")}, 20.0)
    assert not (tmp_path / "d").exists()


def test_headers_and_folders_that_are_incomplete(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="control_hz must be a positive number"):
        EpisodeStore.create(tmp_path / "none", FEATURES, 0)
    with pytest.raises(StoreError, match="needs the feature 'action'"):
        EpisodeStore.create(tmp_path / "none", {STATE: FEATURES[STATE]}, 20.0)
    path = write_store(tmp_path / "d").path
    shutil.rmtree(path / "episodes")
    with pytest.raises(StoreError, match="episodes cannot be read: No such file"):
        len(EpisodeStore.open(path))
    header = json.loads((path / "ulna.json").read_text())
    for change in ({"version": "x"}, {"features": {ACTION: {}}}, {"features": []}):
        (path / "ulna.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(StoreError, match="incomplete"):
            EpisodeStore.open(path)


def test_a_disk_that_fills_while_images_come_loses_no_frame(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=WITH_IMAGE)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *\n"
        "from ulna.datasets.episode import StoreError\n"
        "w = EpisodeWriter(EpisodeStore.open(sys.argv[1])); r = np.random.default_rng(0); w.start({})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        " for t in range(200):\n  v = frame(r, WITH_IMAGE, t); w.tick(v, dict.fromkeys(v, (t, t)))\n"
        "except StoreError as e: print(t, e)\n"
        "w.start({}); w.tick(v, dict.fromkeys(v, (0, 0))); w.end({})"  # and the writer goes on
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d"), str(Path(__file__).parents[2])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.match(r"(\d+) cannot write to (.*): File too large; .* its (\d+) ticks come back", run.stdout)
    assert match
    assert match[2] == str(tmp_path / "d")
    assert match[1] == match[3]
    store = EpisodeStore.open(tmp_path / "d")
    assert [e.length for e in store.episodes] == [20, 13, 1, int(match[1])]
    assert [e.interrupted for e in store.episodes] == [False, False, False, True]
    assert store.episodes[0].read(CAMERA).shape == (20, 24, 32, 3)
    assert not store.interrupted_folders()


def cut_off(path: Path, rows: int) -> Path:
    """A store with an episode that waits to be recovered; its folder."""
    store = EpisodeStore.create(path, WITH_IMAGE, 20.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "x"})
        for t in range(rows):
            row = frame(rng, WITH_IMAGE, t)
            writer.tick(row, dict.fromkeys(row, (t, t)))
    (folder,) = (path / "in-progress").iterdir()
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("harm", ["log", "log, size of an entry", "frame"])
def test_a_flipped_byte_of_a_recording_that_was_cut_off_costs_that_row(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cut_off(tmp_path / "d", LONG + 20)
    file = folder / CAMERA / "value" / "c" / "0" / "0" / "0" / "0" if harm == "frame" else folder / LOG
    raw = file.read_bytes()
    at = len(raw) // 3
    if harm == "log, size of an entry":
        at = raw.index(b"\2\0\0\0" + (30).to_bytes(8, "little")) - 2
    flip(file, at)
    files_before = files_of(folder)
    store = EpisodeStore.open(tmp_path / "d")
    (e,) = store.episodes
    rng = np.random.default_rng(0)
    rows = [frame(rng, WITH_IMAGE, t) for t in range(LONG + 20)]
    for key in WITH_IMAGE:
        times = e.times_ns(key)[0].tolist()
        assert len(times) == LONG + 20 - (harm != "frame" or key == CAMERA)
        np.testing.assert_array_equal(e.read(key), np.stack([rows[t][key] for t in times]))
        after_loss = [t for t, flags in zip(times, e.flags(key), strict=True) if flags & AFTER_DROP]
        assert after_loss == [t for t in times if t - 1 not in times][1:]
    loss = f"1 frame of {CAMERA}" if harm == "frame" else "1 entry of its log"
    assert e.attrs["damaged"] == f"{loss} cannot be read"
    assert f"was damaged: {loss} cannot be read; its files as they were are in" in caplog.text
    assert files_of(tmp_path / "d" / "damaged" / folder.name) == files_before
    assert any(f.check == "damaged" and loss in f.message for f in check_episode(store, e))


def test_what_the_shared_memory_still_held_joins_a_recording_that_was_damaged(tmp_path: Path) -> None:
    code = """
import os, signal, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *
from ulna.datasets.recording.recorder import Recorder
r = np.random.default_rng(0)
recorder = Recorder(EpisodeStore.create(sys.argv[1], WITH_IMAGE, 20.0), ring_bytes=4 << 20)
recorder.start({"task": "t"})
for t in range(60):
    v = frame(r, WITH_IMAGE, t); recorder.tick(v, dict.fromkeys(v, (t, t + 1)))
    if t == 39: recorder.flush(); os.kill(recorder.writer_pid, signal.SIGSTOP)
os.kill(recorder.writer_pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)
"""
    here = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "d"), here], check=False)
    with EpisodeStore.open(tmp_path / "d", recover=False).writing():
        pass  # the writing process is dead, too
    (folder,) = (p for p in (tmp_path / "d" / "in-progress").iterdir() if p.is_dir())
    flip(folder / CAMERA / "value" / "c" / "0" / "0" / "0" / "0", 5)
    (e,) = EpisodeStore.open(tmp_path / "d").episodes
    assert e.times_ns(ACTION)[0].tolist() == list(range(60))
    assert e.times_ns(CAMERA)[0].tolist() == list(range(1, 60))


def test_a_mending_that_is_killed_is_begun_again_and_done_once(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "d", 12)
    flip(folder / LOG, 1500)
    files_before = files_of(folder)
    act = "from ulna.datasets.store import EpisodeStore; EpisodeStore.open(path)"
    copies = killed_at_each_step(tmp_path / "d", act, (3, 3))
    assert len(copies) > 7
    for path in copies:
        assert [e.length for e in EpisodeStore.open(path).episodes] == [11]
        assert not list((path / "in-progress").iterdir())
        (aside,) = (path / "damaged").iterdir()
        assert files_of(aside) == files_before


def test_a_foreign_recording_writes_nothing_outside(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "d", 3)
    outside = tmp_path / "outside"
    raw = (folder / LOG).read_bytes()
    header = raw[: Log.read(folder).end]
    lies = header[header.index(b"{") :].replace(json.dumps(STATE).encode(), b'"../../../outside"')
    assert b"outside" in lies
    (folder / LOG).write_bytes(record(HEADER, 0, lies) + raw[len(header) :])
    assert not EpisodeStore.open(tmp_path / "d").episodes
    assert not outside.exists()
    header_file = tmp_path / "d" / "ulna.json"
    header_file.write_text(header_file.read_text().replace(STATE, "../outside"))
    with pytest.raises(StoreError, match=r"'\.\./outside' cannot be a folder's"):
        EpisodeStore.open(tmp_path / "d")


@pytest.mark.parametrize("harm", ["imagecodecs_jpegy", "\ud800", 7])
def test_an_array_whose_codec_is_damaged_is_one_sentence(store: EpisodeStore, harm: object) -> None:
    file = store.episodes[0].path / CAMERA / "value" / "zarr.json"
    meta = json.loads(file.read_text())
    meta["codecs"][0]["configuration"]["codecs"][0]["name"] = harm
    file.write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=f"episode 000000.*{CAMERA}: its zarr.json cannot be read"):
        EpisodeStore.open(store.path).episodes[0].read(CAMERA)
