"""Writing that lasts: complete writes, and syncing of files and folders to disk, at once or in groups."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

SYNC_EVERY_S = 0.2


class Committer:
    """A thread that syncs, every `SYNC_EVERY_S`, the open files that `files()` returns, in that order, after
    those that `retire` was given (group commit). After an error it is not known what reached the disk, so the
    error stays: `require` raises it each time."""

    def __init__(self, files: Callable[[], Iterable[int]]) -> None:
        self.new_folders: set[Path] = set()
        self._files = files
        self._files_to_close: list[int] = []
        self._error: OSError | None = None
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="group commit", daemon=True)
        self._thread.start()

    def retire(self, file: int) -> None:
        """Sync the open file `file` once more, then close it."""
        with self._guard:
            self._files_to_close.append(file)

    def require(self) -> None:
        """Raise OSError if something could not be synced."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Sync everything for the last time, and end the thread."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._sync()

    def _run(self) -> None:
        while not self._stopping.wait(SYNC_EVERY_S):
            self._sync()

    def _sync(self) -> None:
        with self._guard:
            files, self._files_to_close = self._files_to_close, []
        folders, self.new_folders = self.new_folders, set()
        try:
            with contextlib.ExitStack() as open_files:
                for file in files:
                    open_files.callback(os.close, file)
                for file in self._files():
                    files.append(os.dup(file))
                    open_files.callback(os.close, files[-1])
                for file in files:
                    os.fsync(file)
                sync_folders(*folders)
        except OSError as error:
            self._error = error


def write_all(file: int, data: bytes, at: int) -> None:
    """Write all of `data` at the position `at` of the open file `file`. Raises OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count


def exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step; False where the file system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    return hasattr(libc, "renameat2") and not libc.renameat2(
        at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange
    )


def sync_folders(*folders: Path) -> None:
    """Sync the lists of names in `folders`, not the files that they name."""
    for folder in folders:
        _sync(folder, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder in `folder`, then `folder` itself."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root, name))
        sync_folders(Path(root))


def _sync(path: Path, kind: int = 0) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | kind)
    try:
        os.fsync(file)
    finally:
        os.close(file)
