"""Where things lie in an episode store, and what needs only that: numbering, and moving to the trash.

    DIR/ulna.json                 format, version, features, fps, robot, provenance
    DIR/episodes/000000-<id>/     attrs: task, length, streams (rows of each, by_tick), success, agent, ...
        <stream>/value            (T, *shape); one chunk a frame, in shards; every chunk with its CRC-32C
        <stream>/t_capture_ns     (T,) int64   when each row was true
        <stream>/t_receive_ns     (T,) int64   when it arrived
        <stream>/flags            (T,) uint8   bits of flags.py; absent where no row has any
    DIR/in-progress/<id>/         an episode being written, or cut off and to be recovered (see recovery.py)
    DIR/damaged/<id>/             damaged files of a recording that was recovered, as they were
    DIR/trash/                    episodes that `ulna data delete` took out, and old versions of edited ones
    DIR/.lock                     held by the process that writes (see lock.py)

The key `fps` in ulna.json is the rate of control ticks, `control_hz` elsewhere. A stream is a feature, or
`action.requested` (what was requested, where `action` is what was sent). Streams carry their own times and
may differ in length: a camera has one row per frame that it took, `action` one per control tick, and the
episode's `length` is that of `action`. Any zarr v3 reader opens an episode; images need the codecs of
`imagecodecs`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from . import inside
from .episode import StoreError

HEADER = "ulna.json"
EPISODES, IN_PROGRESS, DAMAGED, TRASH = "episodes", "in-progress", "damaged", "trash"


def require_new(folder: Path) -> None:
    """Raise StoreError unless `folder` is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not empty: choose another folder, or remove it")


def to_trash(store: Path, folder: Path, name: str) -> Path:
    """Move `folder`, the episode `name`, into the trash of `store` by one rename. Its new path, which ends in
    the Unix time in nanoseconds."""
    (store / TRASH).mkdir(exist_ok=True)
    target = store / TRASH / f"{name}.{time.time_ns()}"
    os.rename(folder, target)
    return target


def require_own(store: Path) -> None:
    """Raise StoreError unless the folders of `store`, where they exist, are its own, and not links to those
    of another: before anything is written, moved or removed in one of them."""
    for name in (EPISODES, IN_PROGRESS, DAMAGED, TRASH):
        folder = store / name
        if folder.exists(follow_symlinks=False) and not inside.is_folder(store, folder):
            raise StoreError(
                f"{folder} is no folder of this dataset but a link or a file: nothing is written there; put "
                "the folder itself in its place"
            )


def next_number(store: Path) -> int:
    """The number of the next episode: one more than the highest in use, those in the trash included."""
    numbers = [
        int(number)
        for folder in (EPISODES, TRASH)
        if inside.is_folder(store, store / folder)
        for name in inside.scan(store, store / folder)
        if (number := name.split("-")[0]).isdecimal() and len(number) < 10
    ]
    return max(numbers, default=-1) + 1
