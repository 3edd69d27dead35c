"""A queue in shared memory between the control process and the writing process: one producer, one consumer.

It is a file in `/dev/shm` (or, where that is too small, beside the store), so it outlives both processes:
whoever opens the store next recovers its entries, until the machine is switched off. All its memory is
reserved when it is created, so a full disk cannot stop `put` half-way. A position only grows; modulo the
capacity it is a place in the memory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import secrets
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import inside

MAGIC, VERSION = 0x31474E4952_414C55, 1  # "ULARING1"
PAGE = 4096
ENTRY = struct.Struct("<IBB2xQQ")  # bytes of payload, kind, ready, sequence number, episode
READY = 5  # byte of an entry that says whether its payload is complete
PAD, START, SAMPLES, END, DISCARD, CLOSE, ABANDONED = 0, 1, 2, 3, 4, 5, 6
POINTER = ".ring.json"
SHARED = Path("/dev/shm")
MAX_STREAMS = 64
OWNER = 1024  # byte of the first page at which JSON says whose ring it is
UNBORN_S = 60.0  # within which a ring is completed
# words of the first page
_MAGIC, _VERSION, _CAPACITY, _WRITTEN, _FREED, _FAILED, _DROPPED = 0, 1, 2, 8, 16, 24, 64
Part = bytes | np.ndarray


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. payload: a view into the ring, valid until `free(end)`. end: the position behind it."""

    kind: int
    seq: int
    episode: int
    payload: memoryview
    end: int


class Ring:
    """`Ring.create` for the producer, `Ring.open` for the consumer."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        # populated now: later each page fault would cost the control loop 1 µs, and a frame has hundreds
        self._map = mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._words = np.frombuffer(self._map, np.uint64, PAGE // 8)
        self._bytes = memoryview(self._map)[PAGE:]
        self.capacity = len(self._bytes)
        # taking a lock orders our stores for the other process, also on processors that reorder them
        self._fence = threading.Lock()
        self._seq = 0
        self._open: dict[int, int] = {}  # thread -> position of the entry that it has reserved and not filled

    @staticmethod
    def create(capacity: int, in_progress: Path) -> Ring:
        """A ring of `capacity` bytes in shared memory or, if there is no room, in the folder `in_progress`,
        where a file names it from before it is there: a kill at any moment leaves nothing that nobody finds.
        Raises OSError when neither has room."""
        sweep()
        capacity = -(-capacity // PAGE) * PAGE
        name = f"ulna-ring-{secrets.token_hex(8)}"
        owner = {"in_progress": str(in_progress.resolve()), "device": in_progress.stat().st_dev}
        failure: OSError | None = None
        for path in (SHARED / name, in_progress / f".{name}"):
            _point_to(path, in_progress)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                failure = error
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH)  # held by the map, too, until it is closed
                os.pwrite(file, json.dumps(owner).encode()[: PAGE - OWNER], OWNER)
                os.posix_fallocate(file, 0, PAGE + capacity)
                ring = Ring(path, file)
            except OSError as error:
                failure = error
                path.unlink()
                continue
            finally:
                os.close(file)
            ring._words[[_VERSION, _CAPACITY, _MAGIC]] = (VERSION, capacity, MAGIC)
            return ring
        remove_ring(in_progress)
        assert failure is not None
        raise failure

    @staticmethod
    def open(path: Path) -> Ring:
        """The ring in the file `path`. Raises OSError, or ValueError when the file is no ring of this
        user."""
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size < 2 * PAGE:
                raise ValueError(f"{path} is no ring of this user")
            fcntl.flock(file, fcntl.LOCK_SH)
            ring = Ring(path, file)
        finally:
            os.close(file)
        if (int(ring._words[_MAGIC]), int(ring._words[_VERSION]), int(ring._words[_CAPACITY])) != (
            MAGIC,
            VERSION,
            ring.capacity,
        ):
            ring.close()
            raise ValueError(f"{path} is no ring of this version")
        return ring

    def put(self, kind: int, episode: int, parts: Sequence[Part]) -> bool:
        """Append an entry of `parts` laid end to end; False, changing nothing, when it does not fit now."""
        try:
            place = self.reserve(kind, episode, parts)
            if place is not None:
                self.fill(place, parts)
        except BaseException:
            self.abandon()
            raise
        return place is not None

    def reserve(self, kind: int, episode: int, parts: Sequence[Part], spare: int = 0) -> int | None:
        """Reserve an entry for `parts`, which `fill` or `abandon` completes; its place. None, changing
        nothing, when it does not fit now or would leave less than `spare` bytes.

        Only one thread may reserve at a time. Several may fill theirs at once, since the consumer waits at an
        entry that is not complete."""
        size = sum(p.nbytes if isinstance(p, np.ndarray) else len(p) for p in parts)
        entry_size = _aligned(ENTRY.size + size)
        write_position, free_position = int(self._words[_WRITTEN]), int(self._words[_FREED])
        at = write_position % self.capacity
        padding = self.capacity - at if at + entry_size > self.capacity else 0  # an entry lies in one piece
        if padding + entry_size + spare > self.capacity - (write_position - free_position):
            return None
        if padding:
            if padding >= ENTRY.size:
                ENTRY.pack_into(self._bytes, at, padding - ENTRY.size, PAD, 1, 0, 0)
            at = 0
        ENTRY.pack_into(self._bytes, at, size, kind, 0, self._seq, episode)
        self._open[threading.get_ident()] = write_position + padding
        with self._fence:
            pass
        self._words[_WRITTEN] = write_position + padding + entry_size
        self._seq += 1
        return at

    def fill(self, place: int, parts: Sequence[Part]) -> None:
        """Copy `parts` into the entry at `place`, and mark it complete."""
        at = place + ENTRY.size
        for part in parts:
            if isinstance(part, np.ndarray):
                target = np.frombuffer(self._bytes, part.dtype, part.size, at).reshape(part.shape)
                np.copyto(target, part)
                at += part.nbytes
            else:
                self._bytes[at : at + len(part)] = part
                at += len(part)
        with self._fence:
            pass
        self._bytes[place + READY] = 1
        self._open.pop(threading.get_ident(), None)

    def abandon(self) -> None:
        """Let the consumer pass over the entry that this thread reserved and did not fill, because a Ctrl-C
        came between. If `reserve` itself was interrupted, call this before the next `reserve`."""
        position = self._open.pop(threading.get_ident(), None)
        if position is None or position >= int(self._words[_WRITTEN]):
            return
        place = position % self.capacity
        size, _, ready, seq, episode = ENTRY.unpack_from(self._bytes, place)
        self._seq = max(self._seq, seq + 1)
        if not ready:
            ENTRY.pack_into(self._bytes, place, size, ABANDONED, 1, seq, episode)

    def entries(self, limit: int, producer_gone: bool = False) -> Iterator[Entry]:
        """The entries that were put and not freed, oldest first: up to `limit` bytes, but at least one, and
        up to the first incomplete one. With `producer_gone`, incomplete entries are passed over. Raises
        ValueError when the bytes are not those of a ring."""
        at, write_position = int(self._words[_FREED]), int(self._words[_WRITTEN])
        with self._fence:
            pass
        stop = min(write_position, at + limit)
        first = True
        while at < write_position and (first or at < stop):
            place = at % self.capacity
            if self.capacity - place < ENTRY.size:
                at += self.capacity - place
                continue
            size, kind, ready, seq, episode = ENTRY.unpack_from(self._bytes, place)
            if not ready and not producer_gone:
                return
            if place + ENTRY.size + size > self.capacity:
                raise ValueError(f"{self.path} is damaged")
            end = at + _aligned(ENTRY.size + size)
            if kind != PAD and ready:
                payload = self._bytes[place + ENTRY.size : place + ENTRY.size + size]
                yield Entry(kind, seq, episode, payload, end)
                first = False
            at = end

    def free(self, end: int) -> None:
        """Free everything up to an entry's `end`."""
        self._words[_FREED] = end

    @property
    def write_position(self) -> int:
        """The position behind the newest entry."""
        return int(self._words[_WRITTEN])

    @property
    def free_position(self) -> int:
        """The position up to which the consumer has freed entries, which are then durable in the store."""
        return int(self._words[_FREED])

    @property
    def share_used(self) -> float:
        """Share of the ring in use, 0..1."""
        return (self.write_position - self.free_position) / self.capacity

    @property
    def dropped(self) -> np.ndarray:
        """How many rows of each stream were lost in this episode, `(MAX_STREAMS,)` uint64."""
        return self._words[_DROPPED : _DROPPED + MAX_STREAMS]

    @property
    def failed(self) -> bool:
        """Whether the consumer cannot write to the store."""
        return bool(self._words[_FAILED])

    @failed.setter
    def failed(self, failed: bool) -> None:
        self._words[_FAILED] = int(failed)

    def close(self) -> None:
        del self._words
        self._bytes.release()
        with contextlib.suppress(BufferError):  # a frame that is still being encoded keeps its view
            self._map.close()


def _point_to(path: Path, in_progress: Path) -> None:
    """Write a file into `in_progress` that names the ring `path`, so that it can be recovered."""
    new = in_progress / f"{POINTER}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o666), "w") as file:
        file.write(json.dumps({"ring": str(path), "boot": _boot()}))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave an empty file
    os.replace(new, in_progress / POINTER)


def ring_of(in_progress: Path) -> Ring | None:
    """The ring that a killed recorder left; None when the recorder closed properly, was killed before the
    ring was made, or the machine was restarted since. Raises OSError or ValueError when there is a ring that
    cannot be read; it stays."""
    try:
        path, boot = _named(in_progress)
    except FileNotFoundError:
        return None
    # after a power cut the file of a ring beside the store may be there, but its pages were never synced in
    # order
    if boot != _boot() or not path.exists(follow_symlinks=False) or _is_unborn(path):
        remove_ring(in_progress)
        return None
    return Ring.open(path)


def remove_ring(in_progress: Path) -> None:
    """Remove the ring and the file that names it. Safe to repeat."""
    with contextlib.suppress(OSError, ValueError):
        _named(in_progress)[0].unlink(missing_ok=True)
    (in_progress / POINTER).unlink(missing_ok=True)


def sweep(folder: Path = SHARED) -> list[Path]:
    """Remove the rings in shared memory that no process has open and no store will ever recover: their
    recorder was killed before it filled them, or their store was removed. They would stay until the machine
    is switched off. A ring whose store is only out of reach (a disk that was unplugged) stays, too."""
    removed = []
    for path in sorted(folder.glob("ulna-ring-*")):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_uid == os.geteuid() and _is_stale(path, file):
                    path.unlink()
                    removed.append(path)
            finally:
                os.close(file)
    return removed


def _is_stale(path: Path, file: int) -> bool:
    try:
        owner = json.loads(os.pread(file, PAGE - OWNER, OWNER).rstrip(b"\0"))
        in_progress, device = Path(owner["in_progress"]), owner["device"]
    except (ValueError, KeyError, TypeError):
        # made by an earlier version, or by a process that was killed before it said whose it is
        return _is_unborn(path) and time.time() - os.fstat(file).st_mtime > UNBORN_S
    try:
        return _named(in_progress)[0] != path
    except (OSError, ValueError):
        nearest = next(p for p in (in_progress, *in_progress.parents) if p.exists())
        return nearest.stat().st_dev == device


def _named(in_progress: Path) -> tuple[Path, str]:
    """(The ring that the file in `in_progress` names, the boot of the machine that it belongs to). Raises
    OSError or ValueError, also where it names anything but a ring of this store."""
    pointer = inside.read_json(in_progress, in_progress / POINTER)
    try:
        path, boot = Path(pointer["ring"]), str(pointer["boot"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{in_progress / POINTER} does not say where it is ({error!r})") from None
    if re.fullmatch(r"\.?ulna-ring-[0-9a-f]{16}", path.name) is None:
        raise ValueError(f"{in_progress / POINTER} names {str(path)[:80]!r}, which is no ring")
    return (in_progress if path.name.startswith(".") else SHARED) / path.name, boot


def _is_unborn(path: Path) -> bool:
    """Whether the file of a ring was not completed: it holds nothing, because its maker was killed."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return stat.S_ISREG(os.fstat(file).st_mode) and not any(os.pread(file, 8, 8 * _MAGIC))
    finally:
        os.close(file)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
