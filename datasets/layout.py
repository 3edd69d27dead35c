"""The folders of an episode store, and what can be done with them alone.

    DIR/ulna.json                     format, version, features, fps, robot, provenance
    DIR/episodes/000000-<id>/         attrs: task, length, streams (rows of each, by_tick), seed, success, agent, ...
        <stream>/value                (T, *shape); images by the frame, in shards; every chunk with its CRC-32C
        <stream>/t_capture_ns         (T,) int64   when each row was true
        <stream>/t_receive_ns         (T,) int64   when we learned it
        <stream>/flags                (T,) uint8   STALE, INTERPOLATED, AFTER_DROP, INVALID, INTERVENTION; absent: none
    DIR/in-progress/<id>/             an episode being written, or cut off; `open` recovers those (see recovery.py)
    DIR/damaged/<id>/                 the files of a recording that were damaged before it was recovered, as they were
    DIR/trash/                        what `ulna data delete` took out
    DIR/.lock                         held by the one who writes (see lock.py)

A stream is a feature, or `action.requested` (what was asked for, beside `action`, what was sent). Streams
carry their own times and may differ in length: a camera has one row per frame that it took, `action` one per
control tick, and the episode's `length` is that of `action`. Any zarr v3 reader opens an episode; images need
the codecs of `imagecodecs`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .episode import StoreError

HEADER = "ulna.json"
EPISODES, IN_PROGRESS, DAMAGED, TRASH = "episodes", "in-progress", "damaged", "trash"


def require_new(folder: Path) -> None:
    """StoreError unless nothing is there, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not empty: choose another folder, or remove it")


def to_trash(store: Path, folder: Path, name: str) -> Path:
    """By one rename; the name keeps when it was."""
    (store / TRASH).mkdir(exist_ok=True)
    target = store / TRASH / f"{name}.{time.time_ns()}"
    os.rename(folder, target)
    return target


def next_number(store: Path) -> int:
    """The number of the next episode: one more than the highest, in the trash too."""
    numbers = [
        int(p.name.split("-")[0])
        for folder in (EPISODES, TRASH)
        if (store / folder).is_dir()
        for p in (store / folder).iterdir()
        if p.name.split("-")[0].isdigit()
    ]
    return max(numbers, default=-1) + 1
