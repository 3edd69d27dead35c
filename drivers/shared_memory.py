"""Files in `/dev/shm` that processes share. One lives until it is removed; whoever has it open holds a lock
on it, so that the next one of its kind can remove what a killed process left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path

FOLDER = Path("/dev/shm")
OPENING_S = 60.0  # a process that was told of a new file opens it within this time


def create(kind: str) -> tuple[Path, int]:
    """(The path of a new, empty file for `kind`, its descriptor, open and held). Files of that kind that no
    living process holds are removed first. Raises OSError."""
    sweep(kind)
    path = FOLDER / f"ulna-{kind}-{secrets.token_hex(8)}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    hold(file)
    return path, file


def hold(file: int) -> None:
    """Hold the open file `file` until it, and every map that was made of it, is closed."""
    fcntl.flock(file, fcntl.LOCK_SH)


def sweep(kind: str) -> list[Path]:
    """Remove this user's files of `kind` that no process holds; their paths. New ones stay, because the
    process that they are meant for may not have opened them yet."""
    removed = []
    for path in sorted(FOLDER.glob(f"ulna-{kind}-*")):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(file)
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > OPENING_S:
                    path.unlink()
                    removed.append(path)
            finally:
                os.close(file)
    return removed
