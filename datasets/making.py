"""A folder that appears whole or not at all: it is built beside its place, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .episode import StoreError
from .layout import require_new


@contextlib.contextmanager
def making(dst: Path) -> Iterator[Path]:
    """Gives an empty folder beside `dst`, which is renamed to `dst` at the end, or removed after an error.
    What killed runs left beside `dst` is removed too. Raises StoreError when `dst` exists and is not empty,
    or cannot be written."""
    require_new(dst)
    beside, name = dst.absolute().parent, f".{dst.name}.making-"
    work = beside / f"{name}{secrets.token_hex(4)}"
    with contextlib.ExitStack() as cleanup:
        try:
            work.mkdir(parents=True)
            cleanup.callback(shutil.rmtree, work, ignore_errors=True)
            with contextlib.suppress(OSError):
                cleanup.callback(os.close, _hold(work))
            for other in beside.glob(f"{glob.escape(name)}*"):
                with contextlib.suppress(OSError):  # another process is making it
                    lock = _hold(other)
                    shutil.rmtree(other, ignore_errors=True)
                    os.close(lock)
            yield work
            os.rename(work, dst)  # replaces an empty folder, too
        except OSError as error:
            raise StoreError(f"cannot write to {dst}: {error.strerror or error}") from error


def _hold(folder: Path) -> int:
    """A descriptor that locks `folder` until it is closed or its process dies. Raises OSError when another
    process holds the lock, or where the file system cannot lock folders."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
