"""A folder that appears whole or not at all: built beside its place, and put there by one rename."""

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
    """An empty folder beside `dst` that takes its place when all went well, and is gone otherwise; so is what
    a run that was killed has left. StoreError when `dst` is there and not empty, or cannot be written."""
    require_new(dst)
    beside, name = dst.absolute().parent, f".{dst.name}.making-"
    work = beside / f"{name}{secrets.token_hex(4)}"
    with contextlib.ExitStack() as held:
        try:
            work.mkdir(parents=True)
            held.callback(shutil.rmtree, work, ignore_errors=True)
            with contextlib.suppress(OSError):
                held.callback(os.close, _hold(work))
            for other in beside.glob(f"{glob.escape(name)}*"):
                with contextlib.suppress(OSError):  # somebody is making it
                    holding = _hold(other)
                    shutil.rmtree(other, ignore_errors=True)
                    os.close(holding)
            yield work
            os.rename(work, dst)  # in the place of an empty folder, too
        except OSError as error:
            raise StoreError(f"cannot write to {dst}: {error.strerror or error}") from error


def _hold(folder: Path) -> int:
    """A descriptor that holds `folder` until it is closed or its process is dead. OSError when another one
    has it, or where the file system cannot lock folders."""
    holding = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(holding, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(holding)
        raise
    return holding
