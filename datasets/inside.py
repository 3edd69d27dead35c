"""Reading the files of a folder that may come from anyone. Nothing in it is followed out of it: no component
of a path below the folder may be a link, and only regular files are opened, so that a pipe or a device in the
place of one cannot hang or feed its reader. Hard links are files like others."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import plain_json

MOST_JSON_BYTES = 16 << 20
OPENAT2, NO_SYMLINKS, BENEATH = 437, 0x04, 0x08  # linux/openat2.h; the number is that of every processor
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_has_openat2 = True


def open_file(root: Path, path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path`, which lies in the folder `root`; `root` itself may be reached
    through links. Raises OSError, whose `strerror` says what is there instead."""
    return _open(root, path, flags | os.O_NONBLOCK, stat.S_ISREG)


def read_bytes(root: Path, path: Path, most: int) -> bytes:
    """All of the file `path` in `root`. Raises OSError, also where it has more than `most` bytes."""
    file = open_file(root, path)
    with os.fdopen(file, "rb") as reader:
        size = os.fstat(file).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {most}", str(path))
        return reader.read(most)


def read_json(root: Path, path: Path) -> Any:
    """The value of a file of JSON. Raises OSError or ValueError."""
    return plain_json.loads(read_bytes(root, path, MOST_JSON_BYTES))


def scan(root: Path, folder: Path) -> dict[str, os.stat_result]:
    """What lies in `folder` (in `root`), by name: its own status, not that of what a link points to. Raises
    OSError."""
    file = _open(root, folder, os.O_DIRECTORY, stat.S_ISDIR)
    try:
        found = {}
        with os.scandir(file) as entries:
            for entry in entries:
                try:
                    found[entry.name] = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it moved away meanwhile
        return dict(sorted(found.items()))
    finally:
        os.close(file)


def is_folder(root: Path, path: Path) -> bool:
    """Whether `path` is a folder that is reached from `root` without a link."""
    try:
        os.close(_open(root, path, os.O_DIRECTORY, stat.S_ISDIR))
    except OSError:
        return False
    return True


def is_file(root: Path, path: Path) -> bool:
    """Whether `path` is a regular file that is reached from `root` without a link."""
    try:
        os.close(open_file(root, path))
    except OSError:
        return False
    return True


def require_own(root: Path, folder: Path) -> None:
    """Raise OSError that names the first thing in the tree `folder`, or on the way to it from `root`, which
    is neither a folder nor a regular file. A folder that is missing is none."""
    try:
        entries = scan(root, folder)
    except FileNotFoundError:
        return
    for name, status in entries.items():
        if stat.S_ISDIR(status.st_mode):
            require_own(root, folder / name)
        elif not stat.S_ISREG(status.st_mode):
            raise _refused(folder / name, status.st_mode)


def size_of(root: Path, folder: Path) -> int:
    """Bytes of all regular files in the tree `folder`. Raises OSError."""
    total = 0
    for name, status in scan(root, folder).items():
        if stat.S_ISDIR(status.st_mode):
            total += size_of(root, folder / name)
        elif stat.S_ISREG(status.st_mode):
            total += status.st_size
    return total


def _open(root: Path, path: Path, flags: int, is_wanted: Callable[[int], bool]) -> int:
    inner = _below(root, path)
    flags |= os.O_CLOEXEC
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            file = _beneath(base, inner, flags)
        except OSError as error:
            raise _explained(error, base, inner, path) from None
    finally:
        os.close(base)
    mode = os.fstat(file).st_mode
    if not is_wanted(mode):
        os.close(file)
        raise _refused(path, mode)
    return file


def _below(root: Path, path: Path) -> str:
    folder, place = os.fspath(root), os.fspath(path)
    if place == folder:
        return "."
    inner = place if folder == "." else place.removeprefix(f"{folder}/")
    if (inner == place and folder != ".") or ".." in inner.split("/"):
        raise OSError(errno.EXDEV, "it leads out of the dataset", place)
    return inner


def _beneath(base: int, inner: str, flags: int) -> int:
    """Open `inner` below the folder `base` without following a link: by one system call where there is one
    (openat2(2), Linux 5.6), which costs a third of going step by step."""
    global _has_openat2
    if _has_openat2:
        how = struct.pack("QQQ", flags, 0, NO_SYMLINKS | BENEATH)
        file = _syscall(OPENAT2, base, os.fsencode(inner), how, len(how))
        if file >= 0:
            return int(file)
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):  # EPERM: of a container that does not know the call
            raise OSError(number, os.strerror(number), inner)
        _has_openat2 = number != errno.ENOSYS
    here = os.dup(base)
    try:
        *folders, name = inner.split("/")
        for part in folders:
            step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = step
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _explained(error: OSError, base: int, inner: str, path: Path) -> OSError:
    """`error`, or what lies in the way where something does that is neither a folder nor a regular file."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        steps = inner.split("/")
        for n in range(1, len(steps) + 1):
            try:
                mode = os.stat("/".join(steps[:n]), dir_fd=base, follow_symlinks=False).st_mode
            except OSError:
                break
            if not stat.S_ISDIR(mode):
                return _refused(Path(steps[n - 1]), mode)
    return OSError(error.errno, error.strerror, str(path))


KINDS = {
    stat.S_IFLNK: "a link, and links in a dataset are not followed",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


def _refused(path: Path, mode: int) -> OSError:
    kind = KINDS.get(stat.S_IFMT(mode), "something else")
    return OSError(errno.ELOOP, f"{path.name} is {kind}", str(path))
