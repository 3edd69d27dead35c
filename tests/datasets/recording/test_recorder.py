"""The recorder: what it acknowledged is kept, whoever is killed, and it says what it could not take."""

from __future__ import annotations

import contextlib
import errno
import json
import linecache
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame

from ulna.datasets.edit import delete
from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, ENVIRONMENT, REQUESTED, STATE, Feature, Features
from ulna.datasets.flags import AFTER_DROP, STALE
from ulna.datasets.recording.recorder import Recorder
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

# records rows that a test can make again, and says the number of each that was acknowledged
CHILD = """
import sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *
from ulna.datasets.recording.recorder import Recorder
r = np.random.default_rng(0)
recorder = Recorder(EpisodeStore.open(sys.argv[1])); recorder.start({"task": "t"})
print("pid", recorder.writer_pid, flush=True)
for t in range(10**6):
    v = frame(r, WITH_IMAGE, t); recorder.tick(v, dict.fromkeys(v, (t, t + 1))); print(t, flush=True)
"""


def spawn(store: Path) -> tuple[subprocess.Popen[bytes], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store), str(Path(__file__).parents[2])], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


def acknowledged(process: subprocess.Popen[bytes], at_least: int) -> None:
    assert process.stdout is not None
    while process.stdout.readline() != b"%d\n" % at_least:
        pass


def rest(process: subprocess.Popen[bytes], at_least: int) -> int:
    """How many rows a killed process had acknowledged."""
    assert process.stdout is not None
    words = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    return int(words[-1]) + 1 if words else at_least + 1


def require_rows(store: EpisodeStore, index: int, count: int, features: Features = WITH_IMAGE) -> None:
    episode = store.episodes[index]
    assert count <= episode.length <= count + 1
    rng = np.random.default_rng(0)
    rows = [frame(rng, features, t) for t in range(episode.length)]
    for key in features:
        np.testing.assert_array_equal(episode.read(key), np.stack([r[key] for r in rows]))
        capture, receive = episode.times_ns(key)
        assert capture.tolist() == list(range(episode.length))
        assert (receive - capture == 1).all()


def ring_of(store: Path) -> Path:
    return Path(json.loads((store / "in-progress" / ".ring.json").read_text())["ring"])


def test_streams_of_their_own_rates_come_back_as_they_went_in(tmp_path: Path) -> None:
    features = {**WITH_IMAGE, DEPTH + "front": Feature((24, 32), "uint16")}
    store = EpisodeStore.create(tmp_path / "d", features, 100.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 24, 32, 3), dtype=np.uint8)
    depths = rng.integers(0, 65536, (70, 24, 32), dtype=np.uint16)
    with Recorder(store, own_rate=(CAMERA, DEPTH + "front")) as recorder:
        for episode in range(2):
            recorder.start({"task": f"t{episode}"})

            def camera() -> None:
                for i in range(70):
                    recorder.append(CAMERA, images[i], 33 * i, 33 * i + 9)
                    recorder.append(DEPTH + "front", depths[i], 33 * i, 33 * i + 9)

            thread = threading.Thread(target=camera)
            thread.start()
            for t in range(200):
                row = {k: np.full(FEATURES[k].shape, t, np.float32) for k in FEATURES}
                times = {k: (10 * t, 10 * t + 1) for k in row}
                recorder.tick({**row, REQUESTED: row[ACTION]}, {**times, REQUESTED: (10 * t, 10 * t)})
            thread.join()
            recorder.end({"success": episode == 0})
            assert recorder.dropped == {}
            assert len(store) == episode + 1
    for e in EpisodeStore.open(tmp_path / "d").episodes:
        assert (e.length, e.rows(CAMERA), e.rows(DEPTH + "front"), e.interrupted) == (200, 70, 70, False)
        np.testing.assert_array_equal(e.read(CAMERA), images)
        np.testing.assert_array_equal(e.read(DEPTH + "front"), depths)
        assert e.times_ns(CAMERA)[1].tolist() == [33 * i + 9 for i in range(70)]
        assert e.read(ACTION)[:, 0].tolist() == list(range(200))
        assert not e.flags(ACTION).any()
    a, b = store.episodes
    assert a.content == b.content
    assert a.attrs["success"] is True


def test_what_is_not_new_is_not_stored_again(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 50.0)
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({})
        for t in range(10):
            row = frame(rng, WITH_IMAGE, t)
            old = t - t % 2  # the camera and the tracker are half as fast as the loop
            times = {STATE: (t, t), ACTION: (t, t), ENVIRONMENT: (old, old), CAMERA: (old, old)}
            writer.tick(row, times)
        writer.end({})
    (e,) = store.episodes
    assert (e.length, e.rows(CAMERA), e.rows(ENVIRONMENT)) == (10, 5, 10)
    assert e.flags(ENVIRONMENT).tolist() == [0, STALE] * 5
    assert not e.flags(STATE).any()
    assert not e.flags(CAMERA).any()


@pytest.mark.parametrize("victim", ["control process", "writing process, then both", "both"])
def test_kill(tmp_path: Path, victim: str) -> None:
    EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    process, writer = spawn(tmp_path / "d")
    last = 100
    acknowledged(process, last)
    ring = ring_of(tmp_path / "d")
    if victim.startswith("writing process"):
        os.kill(writer, signal.SIGKILL)  # it is started again, and goes on where the first one was
        last = 300
        acknowledged(process, last)
    if victim == "both":
        os.kill(writer, signal.SIGKILL)
    process.kill()
    count = rest(process, last)
    with EpisodeWriter(EpisodeStore.open(tmp_path / "d")):  # waits for the one who is still emptying the ring
        pass
    store = EpisodeStore.open(tmp_path / "d")
    assert not store.interrupted_folders()
    assert store.episodes[0].interrupted
    require_rows(store, 0, count)
    assert not ring.exists()


def test_an_episode_that_was_ended_is_whole_though_its_writer_is_killed_over_it(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng = np.random.default_rng(0)
    with Recorder(store, overflow="wait") as recorder:
        for episode in range(3):
            recorder.start({"task": "x"})
            killer = threading.Timer(0.01 * episode, os.kill, (recorder.writer_pid, signal.SIGKILL))
            killer.start()
            for t in range(150):
                row = frame(rng, WITH_IMAGE, t)
                recorder.tick(row, dict.fromkeys(row, (t, t)))
            recorder.end({"success": True})
            killer.join()
            assert [(e.length, e.interrupted) for e in store.episodes] == [(150, False)] * (episode + 1)


def test_overflow_is_counted_and_marked_and_never_costs_the_joints(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", {**FEATURES, CAMERA: Feature((480, 640, 3), "uint8")}, 20.0)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with Recorder(store, ring_bytes=4 << 20) as recorder:
        recorder.start({})
        os.kill(recorder.writer_pid, signal.SIGSTOP)
        row: dict[str, np.ndarray] = {}
        for t in range(20):
            row = {k: np.full(f.shape, t, np.float32) for k, f in FEATURES.items()}
            recorder.tick({**row, CAMERA: image}, {k: (t, t) for k in (*row, CAMERA)})
        drops = recorder.dropped[CAMERA]
        assert 10 < drops < 20
        os.kill(recorder.writer_pid, signal.SIGCONT)
        recorder.flush()
        recorder.tick({**row, CAMERA: image}, {k: (20, 20) for k in (*row, CAMERA)})
        recorder.end({})
    (e,) = store.episodes
    assert e.length == 21
    assert e.attrs["dropped"] == {CAMERA: drops}
    assert e.rows(CAMERA) == 21 - drops
    assert e.flags(CAMERA).tolist() == [0] * (20 - drops) + [AFTER_DROP]
    assert not e.flags(ACTION).any()


def test_a_second_recorder_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    with Recorder(store), pytest.raises(StoreError, match=rf"written by process {os.getpid()} \("):
        Recorder(EpisodeStore.open(tmp_path / "d"))
    Recorder(EpisodeStore.open(tmp_path / "d")).close()


def test_one_store_object_has_one_writer_and_edits_between_its_episodes(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    row = frame(np.random.default_rng(0), FEATURES, 0)
    with Recorder(store) as recorder:
        for second in (Recorder, EpisodeWriter):
            with pytest.raises(StoreError, match="is being recorded into already: close that writer first"):
                second(store)
        with pytest.raises(StoreError, match="is being recorded into"):
            store.recover(wait=True)
        for n in range(2):
            recorder.start({"n": n})
            recorder.tick(row, dict.fromkeys(row, (0, 0)))
            recorder.end({})
        delete(store, [0])
        assert [e.attrs["n"] for e in store.episodes] == [1]
    with EpisodeWriter(store):
        pass


def test_what_is_appended_after_the_end_is_refused_and_before_it_kept(tmp_path: Path) -> None:
    """A camera's thread that runs on while the episode is ended, and while the writing process still
    starts."""
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    accepted_rows: list[int] = []
    with Recorder(store, own_rate=(CAMERA,)) as recorder:
        os.kill(recorder.writer_pid, signal.SIGSTOP)
        recorder.start({})

        def camera() -> None:
            with contextlib.suppress(StoreError):
                for t in range(10**6):
                    recorder.append(CAMERA, np.zeros((24, 32, 3), np.uint8), t, t)
                    accepted_rows.append(t)
                    if t == 500:
                        os.kill(recorder.writer_pid, signal.SIGCONT)

        thread = threading.Thread(target=camera)
        thread.start()
        while len(accepted_rows) < 20:
            time.sleep(0.001)
        row = frame(np.random.default_rng(0), FEATURES, 0)
        recorder.tick(row, dict.fromkeys(row, (0, 0)))
        threading.Timer(0.1, os.kill, (recorder.writer_pid, signal.SIGCONT)).start()
        recorder.end({})
        thread.join()
        assert not recorder.dropped
    assert store.episodes[0].rows(CAMERA) == len(accepted_rows)


PASSIVE = ("with ", "try:", "pass")


def test_a_ctrl_c_anywhere_in_a_tick_leaves_a_recorder_that_ends(tmp_path: Path) -> None:
    """It is raised at one line after the other of `tick` until a tick is through."""
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    row = frame(np.random.default_rng(0), WITH_IMAGE, 0)
    steps_left = steps = 0

    def tracer(at: FrameType, event: str, _: object) -> Any:
        nonlocal steps_left
        file = at.f_code.co_filename
        if not file.endswith(("recorder.py", "ring.py")) or at.f_code.co_name == "abandon":
            return None
        # there a tracer stands, but no signal comes; it would leave a lock held
        if event == "line" and not linecache.getline(file, at.f_lineno).strip().startswith(PASSIVE):
            steps_left -= 1
            if steps_left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return tracer

    count = 0
    with Recorder(store) as recorder:
        recorder.start({})
        while True:
            steps_left = steps
            sys.settrace(tracer)
            try:
                recorder.tick(row, dict.fromkeys(row, (2 * steps, 0)))
                break
            except KeyboardInterrupt:
                steps += 1
            finally:
                sys.settrace(None)
            recorder.tick(row, dict.fromkeys(row, (2 * steps + 1, 0)))  # what comes after is not hindered
            count += 1
        watchdog = threading.Timer(20, os.kill, (os.getpid(), signal.SIGABRT))
        watchdog.start()
        recorder.flush()
        recorder.interrupt("stopped by hand")
        watchdog.cancel()
    assert steps > 20
    (e,) = store.episodes
    times = e.times_ns(ACTION)[0].tolist()
    assert {t for t in times if t % 2} == set(range(3, 2 * steps + 2, 2)) | ({1} & set(times))
    assert count <= e.length <= count + steps
    assert e.read(CAMERA).shape[0] == e.length


def test_a_writing_process_that_dies_idle_leaves_nothing_behind(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    with Recorder(store) as recorder:
        recorder.start({})
        row = frame(np.random.default_rng(0), FEATURES, 0)
        recorder.tick(row, dict.fromkeys(row, (0, 0)))
        recorder.end({})
        ring = ring_of(store.path)
        os.kill(recorder.writer_pid, signal.SIGKILL)
    assert not ring.exists()
    assert not list((store.path / "in-progress").iterdir())


def both_dead(store: Path) -> None:
    """Wait for it: whoever of the two lives holds the lock."""
    with EpisodeStore.open(store, recover=False).writing():
        pass


def killed_with_a_full_ring(store: Path, rows: int) -> Path:
    """Both processes of a recorder are killed while all of its `rows` are in the ring alone. The ring."""
    code = """
import os, signal, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *
from ulna.datasets.recording.recorder import Recorder
r = np.random.default_rng(0); recorder = Recorder(EpisodeStore.open(sys.argv[1]), ring_bytes=4 << 20)
os.kill(recorder.writer_pid, signal.SIGSTOP); recorder.start({"task": "t"})
for t in range(int(sys.argv[3])):
    v = frame(r, WITH_IMAGE, t); recorder.tick(v, dict.fromkeys(v, (t, t + 1)))
os.kill(recorder.writer_pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(store), str(Path(__file__).parents[2]), str(rows)], check=False
    )
    both_dead(store)
    return ring_of(store)


def test_a_ring_that_cannot_be_read_stays_and_nobody_records_over_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    ring = killed_with_a_full_ring(store.path, 40)
    away = ring.rename(f"{ring}-away")
    ring.symlink_to(
        away
    )  # is not followed: stands for a ring of another user, or too little memory to map it
    assert len(EpisodeStore.open(store.path)) == 0
    assert "it stays until it can be" in caplog.text
    with pytest.raises(StoreError, match=r"cannot record into .* yet: .* that a killed recorder filled"):
        Recorder(store)
    ring.unlink()
    away.rename(ring)
    require_rows(EpisodeStore.open(store.path), 0, 40)
    assert not ring.exists()


def test_a_recorder_brings_back_what_the_last_one_could_not_write(tmp_path: Path) -> None:
    """As `ulna record` does it, again and again on a full disk, and then with room."""
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    ring = killed_with_a_full_ring(store.path, 60)
    code = """
import resource, signal, sys
from ulna.datasets.recording.recorder import Recorder
from ulna.datasets.episode import StoreError
from ulna.datasets.store import EpisodeStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
s = EpisodeStore.open(sys.argv[1])
try: Recorder(s, ring_bytes=4096)
except StoreError as e: print(e)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
Recorder(s).close(); print([e.length for e in s.episodes])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True
    )
    message, lengths = run.stdout.splitlines()
    assert re.match(r"cannot record into .* yet: .* still held cannot be written: File too large", message)
    assert lengths == "[60]"
    require_rows(EpisodeStore.open(store.path), 0, 60)
    assert not ring.exists()


def test_a_full_disk_is_one_sentence_and_what_was_recorded_comes_back(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng = np.random.default_rng(0)
    with Recorder(store, ring_bytes=4 << 20, overflow="wait") as recorder:
        recorder.start({})
        resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
        count, message = 0, ""
        while not message and count < 100_000:
            row = frame(rng, WITH_IMAGE, count)
            try:
                recorder.tick(row, dict.fromkeys(row, (count, count + 1)))
                count += 1
            except StoreError as error:
                message = str(error)
    assert "File too large; the episode in progress is cut off, its rows come back" in message
    reopened = EpisodeStore.open(tmp_path / "d")
    assert reopened.episodes[0].interrupted
    require_rows(reopened, 0, count)


# notes, of whatever is synced by this process or one that it starts, what of it the disk then holds
NOTE_SYNCS = """
import json, os
real = os.fsync
def fsync(fd):
    real(fd)
    at, what = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    held = os.listdir(at) if os.path.isdir(at) else what.st_size
    with open(os.environ["SYNCS"], "a") as file:
        file.write(json.dumps([what.st_ino, held]) + "\\n")
os.fsync = fsync
"""


def cut_power(folder: Path, syncs: Path) -> None:
    """What a power cut may leave of `folder`: of each file what was synced, of each folder the names that it
    had then."""
    contents = dict(map(json.loads, syncs.read_text().splitlines()))
    for path in sorted(folder.rglob("*"), key=lambda p: len(p.parts)):
        if not path.exists():
            continue
        inode = path.stat().st_ino
        if path.name not in contents.get(path.parent.stat().st_ino, []):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif path.is_file():
            os.truncate(path, contents.get(inode, 0))


@pytest.mark.parametrize("features", [FEATURES, WITH_IMAGE], ids=["joints", "and a camera"])
def test_power_durability_outlives_a_power_cut_and_another_after_the_recovery(
    tmp_path: Path, features: Features
) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(NOTE_SYNCS)
    (tmp_path / "all").mkdir()
    syncs = tmp_path / "syncs"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "python"), "SYNCS": str(syncs)}
    code = """
import os, signal, sys, time; sys.path.insert(0, sys.argv[2]); from contracts.data import *
from ulna.datasets.recording.recorder import Recorder
f = WITH_IMAGE if sys.argv[3] == "1" else FEATURES; r = np.random.default_rng(0)
recorder = Recorder(EpisodeStore.create(sys.argv[1], f, 20.0), durability="power", ring_bytes=4 << 20)
recorder.start({})
for t in range(90):
    v = frame(r, f, t); recorder.tick(v, dict.fromkeys(v, (t, t + 1)))
    if t == 69:
        recorder.flush()
        log = f"[{os.stat(next(Path(sys.argv[1]).glob('in-progress/*/.recording/log'))).st_ino},"
        synced = lambda: sum(line.startswith(log) for line in open(os.environ["SYNCS"])); before = synced()
        # each group syncs the log once: one is whole, between two that may not be
        while synced() < before + 3: time.sleep(0.02)
os.kill(recorder.writer_pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "all" / "d"
    camera = str(int(features is WITH_IMAGE))
    command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[2]), camera]
    subprocess.run(command, env=environment, check=False)
    both_dead(path)
    ring_of(path).unlink()
    cut_power(tmp_path / "all", syncs)
    code = (
        "import sys; from ulna.datasets.store import EpisodeStore\n"
        "print(EpisodeStore.open(sys.argv[1]).episodes[0].length)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, check=True
    )
    assert 70 <= int(run.stdout) <= 90
    cut_power(tmp_path / "all", syncs)
    store = EpisodeStore.open(path)
    require_rows(store, 0, int(run.stdout), features)


@pytest.mark.parametrize("doing", ["appending", "ending"])
def test_what_cannot_be_synced_is_said_and_comes_back_with_a_disk_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 20.0)
    row = frame(np.random.default_rng(0), FEATURES, 0)

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with EpisodeWriter(store, durability="power") as writer:
        writer.start({})
        count, message = 0, ""
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", fsync)
            while not message and count < 1000:
                try:
                    writer.tick(row, dict.fromkeys(row, (0, 0)))
                    count += 1
                    if doing == "ending":
                        writer.end({})
                    time.sleep(0.01)
                except StoreError as error:
                    message = str(error)
    assert "Input/output error; the episode in progress is cut off" in message
    assert [e.length for e in EpisodeStore.open(tmp_path / "d").episodes] == [count]


@pytest.mark.parametrize(
    "storage", [{"codec": "jpeg", "quality": 95}, {"codec": "jpeg", "resize": True}, {"resize": True}]
)
def test_images_may_be_jpeg_and_smaller(tmp_path: Path, storage: dict[str, object]) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0, storage={CAMERA: storage})
    y, x = np.mgrid[:48, :64] if "resize" in storage else np.mgrid[:24, :32]
    smooth = np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8)
    with Recorder(store) as recorder:
        recorder.start({})
        row = {**frame(np.random.default_rng(0), FEATURES, 0), CAMERA: smooth}
        recorder.tick(row, dict.fromkeys(row, (0, 0)))
        recorder.end({})
    import cv2

    want = cv2.resize(smooth, (32, 24), interpolation=cv2.INTER_AREA)
    image = EpisodeStore.open(tmp_path / "d").episodes[0].read(CAMERA)[0]
    worst = np.abs(image.astype(int) - want).max()
    assert (0 < worst < 12) if "codec" in storage else worst == 0


def test_storage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for storage, says in (
        ({CAMERA: {"codec": "webp"}}, "there is no image codec 'webp': there is lossless, jpeg"),
        ({CAMERA: {"codec": "jpeg", "quality": 0}}, "must lie in 1..100"),
        ({STATE: {"codec": "jpeg"}}, "no image of this store"),
    ):
        with pytest.raises(StoreError, match=says):
            EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0, storage=storage)
