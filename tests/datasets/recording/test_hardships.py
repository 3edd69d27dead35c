"""What recorders meet: a read-only disk, a disk that fills, a clock that is set back, a foreign or newer
store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contracts.data import CAMERA, WITH_IMAGE, frame, write_store

from ulna.datasets.checks.check import check_episode
from ulna.datasets.features import ACTION
from ulna.datasets.recording.recorder import Recorder
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main

HERE = str(Path(__file__).parents[2])


def in_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run with mounts of its own; skips where the kernel does not let us."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-ec", script, "sh", *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare on this machine")
    if ("mount" in run.stderr and "permission denied" in run.stderr.lower()) or "unshare:" in run.stderr:
        pytest.skip(f"mounts are not allowed here: {run.stderr.strip()}")
    return run


def test_a_read_only_disk_is_read_and_writing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (20, 13), WITH_IMAGE)
    writer = EpisodeWriter(store)
    writer.start({})
    row = frame(np.random.default_rng(0), WITH_IMAGE, 0)
    writer.tick(row, dict.fromkeys(row, (0, 0)))
    writer.close()  # an episode that waits to be recovered
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *\n"
        "from ulna.datasets.recording.recorder import Recorder\n"
        "from ulna.datasets.episode import StoreError\n"
        "s = EpisodeStore.open(sys.argv[1])\n"
        "print([e.length for e in s.episodes], s.episodes[0].read(CAMERA).shape[0])\n"
        "for make in (EpisodeWriter, Recorder):\n"
        " try: make(s)\n"
        " except StoreError as e: print(e)\n"
    )
    (tmp_path / "code.py").write_text(code)
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; "$2" "$3" "$1" "$4"'
    run = in_namespace(script, str(store.path), sys.executable, str(tmp_path / "code.py"), HERE)
    lines = run.stdout.splitlines()
    assert lines[0] == "[20, 13] 20", run.stderr
    assert lines[1:] == [f"cannot write to {store.path}: Read-only file system"] * 2
    assert [e.length for e in EpisodeStore.open(store.path).episodes] == [
        20,
        13,
        1,
    ]  # with the disk writable again


def test_a_disk_that_is_full_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A real small disk (tmpfs of 6 MB), filled by a real recorder; then made larger."""
    code = (
        "import subprocess, sys; sys.path.insert(0, sys.argv[2]); from contracts.data import *\n"
        "from ulna.datasets.recording.recorder import Recorder\n"
        "from ulna.datasets.episode import StoreError\n"
        "f = {**FEATURES, CAMERA: Feature((96, 128, 3), 'uint8')}\n"
        "s = EpisodeStore.create(sys.argv[1] + '/d', f, 20.0); n = 0\n"
        "with Recorder(s, ring_bytes=4 << 20, overflow='wait') as r:\n"
        " r.start({})\n"
        " try:\n"
        "  while n < 5000:\n"
        "   row = frame(np.random.default_rng(n), f, n); r.tick(row, dict.fromkeys(row, (n, n))); n += 1\n"
        " except StoreError as e: print(e)\n"
        "print(len(EpisodeStore.open(sys.argv[1] + '/d')))\n"
        "subprocess.run(['mount', '-o', 'remount,size=100m', sys.argv[1]], check=True)\n"
        "e = EpisodeStore.open(sys.argv[1] + '/d').episodes[0]; images = e.read(CAMERA)\n"
        "def made(t): return frame(np.random.default_rng(t), f, t)[CAMERA]\n"
        "right = sum(np.array_equal(images[t], made(t)) for t in range(e.length))\n"
        "print(n, e.length, right, e.interrupted)\n"
    )
    (tmp_path / "code.py").write_text(code)
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=6m tmpfs "$1"; "$2" "$3" "$1" "$4"'
    run = in_namespace(script, str(tmp_path / "small"), sys.executable, str(tmp_path / "code.py"), HERE)
    message, count, numbers = run.stdout.splitlines()
    assert "No space left on device; the episode in progress is cut off" in message, run.stderr
    assert count == "0"  # the store opens on the full disk, too
    acknowledged, length, right, interrupted = numbers.split()
    assert int(acknowledged) <= int(length) == int(right)
    assert interrupted == "True"


def test_a_clock_that_is_set_back_an_hour_is_recorded_and_found(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    rng, hour = np.random.default_rng(0), 3600 * 10**9
    times = [10**13 + t * 50_000_000 - hour * (t >= 30) for t in range(60)]
    with Recorder(store) as recorder:
        recorder.start({})
        for t, time_ns in enumerate(times):
            row = frame(rng, WITH_IMAGE, t)
            recorder.tick(row, dict.fromkeys(row, (time_ns, time_ns)))
        recorder.end({})
    (e,) = store.episodes
    assert e.times_ns(ACTION)[0].tolist() == times
    assert e.rows(CAMERA) == 60
    assert any(f.severity == "severe" and "clock" in (f.check + f.message) for f in check_episode(store, e))


def test_a_newer_store_and_a_foreign_folder_are_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "d")
    header = json.loads((store.path / "ulna.json").read_text())
    (store.path / "ulna.json").write_text(json.dumps({**header, "version": 99}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for path, says in (
        (store.path, "newer Ulna (store version 99"),
        (tmp_path / "photos", "not an Ulna episode store"),
    ):
        for command in ("info", "check", "stats", "recover"):
            assert main(["data", command, str(path)]) == 1
            error = capfd.readouterr().err.strip()
            assert says in error
            assert len(error.splitlines()) == 1


def test_a_module_of_the_current_folder_is_none_of_the_recorders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets.py").write_text("raise SystemExit('not the one of Python')")
    monkeypatch.chdir(tmp_path)
    store = EpisodeStore.create(tmp_path / "d", WITH_IMAGE, 20.0)
    row = frame(np.random.default_rng(0), WITH_IMAGE, 0)
    with Recorder(store) as recorder:
        recorder.start({})
        recorder.tick(row, dict.fromkeys(row, (0, 0)))
        recorder.end({})
    assert len(store) == 1


def test_a_small_shared_memory_as_in_a_container_is_done_without(tmp_path: Path) -> None:
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[2]); from contracts.data import *\n"
        "from ulna.datasets.recording.recorder import Recorder\n"
        "s = EpisodeStore.create(sys.argv[1] + '/d', WITH_IMAGE, 20.0); g = np.random.default_rng(0)\n"
        "with Recorder(s) as r:\n"
        " print([p for p in os.listdir(s.path / 'in-progress') if 'ulna-ring' in p] != [])\n"
        " r.start({})\n"
        " for t in range(30): row = frame(g, WITH_IMAGE, t); r.tick(row, dict.fromkeys(row, (t, t)))\n"
        " r.end({})\n"
        "print([e.length for e in s.episodes], os.listdir(s.path / 'in-progress'))\n"
    )
    (tmp_path / "code.py").write_text(code)
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm; "$2" "$3" "$1" "$4"'
    run = in_namespace(script, str(tmp_path), sys.executable, str(tmp_path / "code.py"), HERE)
    assert run.stdout.splitlines() == ["True", "[30] []"], run.stderr
