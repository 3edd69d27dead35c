"""One writer at a time: an exclusive `flock` on `DIR/.lock`, which the kernel drops when its holders are
dead."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import sys
import time
from pathlib import Path

PATIENCE_S = 0.5  # a process that only opens the store may hold the lock for a moment, to recover
DRAINING_S = 20.0  # a recorder whose control process was killed still empties its ring


class Locked(OSError):
    """Another process writes to the store; the message is one sentence that names it."""


class StoreLock:
    """Holds the lock from construction to `release()`. Raises Locked if another process holds it, or OSError
    where the folder cannot be written.

    A child process that inherits `fileno` holds the lock too, until it closes it or dies.
    """

    def __init__(self, folder: Path, wait: bool = True) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.fileno = os.open(folder / ".lock", flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self.fileno).st_mode):
                raise OSError(errno.EINVAL, f"{folder / '.lock'} is no file")
            self._acquire(folder, wait)
            owner = {"pid": os.getpid(), "command": _command(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
                os.ftruncate(self.fileno, 0)
                os.pwrite(self.fileno, json.dumps(owner).encode(), 0)
        except BaseException:
            os.close(self.fileno)
            raise

    def release(self) -> None:
        if self.fileno >= 0:
            os.close(self.fileno)
            self.fileno = -1

    def _acquire(self, folder: Path, wait: bool) -> None:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(self.fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = _owner(self.fileno)
                patience = PATIENCE_S if _alive(owner.get("pid")) else DRAINING_S
                if not wait or time.monotonic() - began > patience:
                    pid, command, since = (owner.get(k, "?") for k in ("pid", "command", "since"))
                    raise Locked(
                        f"{folder} is being written by process {pid} ({command}, since {since}): "
                        "wait until it is done, or stop it"
                    ) from None
                time.sleep(0.02)


def _owner(file: int) -> dict[str, object]:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])[:80]
