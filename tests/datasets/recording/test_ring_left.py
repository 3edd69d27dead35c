"""A recorder that is killed before its writing process runs leaves no ring in shared memory that nobody
finds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import FEATURES, write_store

from ulna.datasets.recording import ring as ring_module
from ulna.datasets.recording.recorder import Recorder
from ulna.datasets.recording.ring import PAGE, SHARED, Ring, sweep
from ulna.datasets.store import EpisodeStore

POINTS = [
    ("ring._point_to", "before"),
    ("ring._point_to", "after"),
    ("os.posix_fallocate", "before"),
    ("os.posix_fallocate", "after"),
    ("Ring.__init__", "after"),
    ("subprocess.Popen", "before"),
]


def rings(store: Path) -> set[Path]:
    """Of the store: whatever records beside this test has others."""
    found, name = set(), str(store.resolve()).encode()
    for ring in SHARED.glob("ulna-ring-*"):
        with contextlib.suppress(FileNotFoundError):
            with ring.open("rb") as file:
                begin = file.read(PAGE)
            if name in begin:
                found.add(ring)
    return found


def kill_at(point: tuple[str, str], store: Path) -> set[Path]:
    """The rings that a recorder leaves that kills itself where it is about to call what `point` names, or has
    just called it."""
    called, when = point
    module, _, name = called.rpartition(".")
    owner = {"os": os, "subprocess": subprocess, "ring": ring_module, "Ring": Ring}[module]
    real = getattr(owner, name)

    def aimed(*words: Any, **options: Any) -> None:
        if when == "after":
            real(*words, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forked while other threads run; the child starts none
        child = os.fork()
    if child == 0:
        try:
            setattr(owner, name, aimed)
            Recorder(EpisodeStore.open(store), ring_bytes=1 << 16)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return rings(store)


@pytest.mark.parametrize("point", POINTS, ids=" ".join)
def test_whoever_opens_the_store_next_removes_what_a_kill_left(
    tmp_path: Path, point: tuple[str, str]
) -> None:
    path = write_store(tmp_path / "d", (3,)).path
    left = kill_at(point, path)
    assert len(left) == (not point[0].startswith("ring."))
    assert len(EpisodeStore.open(path)) == 1
    assert not left & rings(path)
    assert not list((path / "in-progress").iterdir())


def test_recording_goes_on_after_such_a_kill(tmp_path: Path) -> None:
    path = write_store(tmp_path / "d", (3,)).path
    left = kill_at(("os.posix_fallocate", "before"), path)
    with Recorder(EpisodeStore.open(path, recover=False), ring_bytes=1 << 16) as recorder:
        assert not left & rings(path)
        recorder.start({"task": "after the kill"})
        row = {k: np.zeros(f.shape, f.dtype) for k, f in FEATURES.items()}
        recorder.tick(row, dict.fromkeys(row, (0, 1)))
        recorder.end({})
    assert [e.task for e in EpisodeStore.open(path).episodes] == ["task 0", "after the kill"]


@pytest.mark.parametrize("point", POINTS[2:], ids=" ".join)
def test_a_ring_of_a_store_that_was_removed_goes_with_the_next_recorder(
    tmp_path: Path, point: tuple[str, str]
) -> None:
    path = write_store(tmp_path / "d", (3,)).path
    (left,) = kill_at(point, path)
    shutil.rmtree(path)
    long_ago = time.time() - 3600
    with contextlib.suppress(FileNotFoundError):  # a recorder beside this test was the next one
        os.utime(left, (long_ago, long_ago))
    sweep()
    assert left not in rings(path)


def test_a_ring_that_is_in_use_or_still_to_be_recovered_stays(tmp_path: Path) -> None:
    path = write_store(tmp_path / "d", (3,)).path
    (left,) = kill_at(POINTS[-1], path)
    sweep()
    assert left in rings(path), "its store names it"
    ring = Ring.open(left)
    shutil.rmtree(path)
    sweep()
    assert left in rings(path), "a process has it open"
    ring.close()
    del ring
    sweep()
    assert left not in rings(path)
