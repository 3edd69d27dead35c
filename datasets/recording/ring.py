"""A queue in shared memory between the control process and the process that writes: one producer, one
consumer.

It is a file in `/dev/shm` (or, where that is too small, beside the store), so it outlives both processes:
what was put in is recovered by whoever opens the store next, until the machine is switched off. All of it is
reserved when it is made; a full disk cannot stop `put` half-way. Positions only grow; a position modulo the
capacity is a place."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC, VERSION = 0x31474E4952_414C55, 1  # "ULARING1"
PAGE = 4096
ENTRY = struct.Struct("<IBB2xQQ")  # bytes of payload, kind, whether they are there, sequence number, episode
READY = 5  # where in an entry its second byte stands
PAD, START, SAMPLES, END, DISCARD, CLOSE, ABANDONED = 0, 1, 2, 3, 4, 5, 6
POINTER = ".ring.json"
MAX_STREAMS = 64
# words of the first page
_MAGIC, _VERSION, _CAPACITY, _WRITTEN, _FREED, _FAILED, _DROPPED = 0, 1, 2, 8, 16, 24, 64
Part = bytes | np.ndarray


@dataclass(frozen=True, slots=True)
class Entry:
    """payload: a view into the ring, good until `free(end)`."""

    kind: int
    seq: int
    episode: int
    payload: memoryview
    end: int


class Ring:
    """`Ring.create` for the producer, `Ring.open` for the consumer."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        # mapped at once: a page fault in the control loop costs it a microsecond, and a frame has hundreds
        self._map = mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._words = np.frombuffer(self._map, np.uint64, PAGE // 8)
        self._bytes = memoryview(self._map)[PAGE:]
        self.capacity = len(self._bytes)
        # what passes through a lock is seen by the other side in order, on processors too that reorder what
        # they store
        self._fence = threading.Lock()
        self._seq = 0
        self._open: dict[int, int] = {}  # thread -> position of the entry that it has reserved and not filled

    @staticmethod
    def create(capacity: int, beside: Path) -> Ring:
        """A ring of `capacity` bytes in shared memory, or in the folder `beside` where that has no room.
        OSError when neither has."""
        capacity = -(-capacity // PAGE) * PAGE
        name = f"ulna-ring-{secrets.token_hex(8)}"
        failed: OSError | None = None
        for path in (Path("/dev/shm") / name, beside / f".{name}"):
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                failed = error
                continue
            try:
                os.posix_fallocate(file, 0, PAGE + capacity)
                ring = Ring(path, file)
            except OSError as error:
                failed = error
                path.unlink()
                continue
            finally:
                os.close(file)
            ring._words[[_VERSION, _CAPACITY, _MAGIC]] = (VERSION, capacity, MAGIC)
            return ring
        assert failed is not None
        raise failed

    @staticmethod
    def open(path: Path) -> Ring:
        """OSError; ValueError when the file is no ring of this user."""
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size < 2 * PAGE:
                raise ValueError(f"{path} is no ring of this user")
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
        """Append an entry of `parts` laid end to end; False, and nothing is changed, when it does not fit
        now."""
        try:
            place = self.reserve(kind, episode, parts)
            if place is not None:
                self.fill(place, parts)
        except BaseException:
            self.abandon()
            raise
        return place is not None

    def reserve(self, kind: int, episode: int, parts: Sequence[Part], spare: int = 0) -> int | None:
        """The place of an entry that `fill` completes, or `abandon`; None, and nothing is changed, when it
        does not fit now or would leave less than `spare` bytes. The consumer waits at an entry that is not
        complete, so several threads may fill theirs at once, each after its `reserve` (which is for one at a
        time)."""
        size = sum(p.nbytes if isinstance(p, np.ndarray) else len(p) for p in parts)
        needed = _aligned(ENTRY.size + size)
        written, freed = int(self._words[_WRITTEN]), int(self._words[_FREED])
        at = written % self.capacity
        skipped = self.capacity - at if at + needed > self.capacity else 0  # an entry lies in one piece
        if skipped + needed + spare > self.capacity - (written - freed):
            return None
        if skipped:
            if skipped >= ENTRY.size:
                ENTRY.pack_into(self._bytes, at, skipped - ENTRY.size, PAD, 1, 0, 0)
            at = 0
        ENTRY.pack_into(self._bytes, at, size, kind, 0, self._seq, episode)
        self._open[threading.get_ident()] = written + skipped
        with self._fence:
            pass
        self._words[_WRITTEN] = written + skipped + needed
        self._seq += 1
        return at

    def fill(self, place: int, parts: Sequence[Part]) -> None:
        at = place + ENTRY.size
        for part in parts:
            if isinstance(part, np.ndarray):
                there = np.frombuffer(self._bytes, part.dtype, part.size, at).reshape(part.shape)
                np.copyto(there, part)
                at += part.nbytes
            else:
                self._bytes[at : at + len(part)] = part
                at += len(part)
        with self._fence:
            pass
        self._bytes[place + READY] = 1
        self._open.pop(threading.get_ident(), None)

    def abandon(self) -> None:
        """What this thread reserved and did not fill, because a Ctrl-C came between, is passed over. Where
        `reserve` itself was broken off: before the next `reserve`."""
        position = self._open.pop(threading.get_ident(), None)
        if position is None or position >= int(self._words[_WRITTEN]):
            return
        place = position % self.capacity
        size, _, ready, seq, episode = ENTRY.unpack_from(self._bytes, place)
        self._seq = max(self._seq, seq + 1)
        if not ready:
            ENTRY.pack_into(self._bytes, place, size, ABANDONED, 1, seq, episode)

    def entries(self, limit: int, producer_gone: bool = False) -> Iterator[Entry]:
        """What was put and not freed, oldest first, up to `limit` bytes but at least one entry, and up to the
        first that is not complete; those are passed over where their producer is gone. ValueError when the
        bytes are not those of a ring."""
        at, written = int(self._words[_FREED]), int(self._words[_WRITTEN])
        with self._fence:
            pass
        stop = min(written, at + limit)
        first = True
        while at < written and (first or at < stop):
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
        """The consumer is done with everything up to an entry's `end`."""
        self._words[_FREED] = end

    @property
    def written(self) -> int:
        """The position up to which entries were put."""
        return int(self._words[_WRITTEN])

    @property
    def freed(self) -> int:
        """The position up to which the consumer has made them durable in the store."""
        return int(self._words[_FREED])

    @property
    def used(self) -> float:
        """Share of the ring in use, 0..1."""
        return (self.written - self.freed) / self.capacity

    @property
    def dropped(self) -> np.ndarray:
        """How many rows of each stream were lost in this episode because the ring was full,
        `(MAX_STREAMS,)`."""
        return self._words[_DROPPED : _DROPPED + MAX_STREAMS]

    @property
    def failed(self) -> bool:
        """The consumer cannot write."""
        return bool(self._words[_FAILED])

    @failed.setter
    def failed(self, yes: bool) -> None:
        self._words[_FAILED] = int(yes)

    def close(self) -> None:
        del self._words
        self._bytes.release()
        with contextlib.suppress(BufferError):  # a frame that is still being encoded keeps its view
            self._map.close()


def point_to(ring: Ring, in_progress: Path) -> None:
    """Note in the store where its ring is, so that it can be recovered."""
    new = in_progress / f"{POINTER}.new"
    with new.open("w") as file:
        file.write(json.dumps({"ring": str(ring.path), "boot": _boot()}))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave it empty, and nobody knows that its ring is gone
    os.replace(new, in_progress / POINTER)


def ring_of(in_progress: Path) -> Ring | None:
    """The ring that a killed recorder left; None when it closed properly or the machine was started since.
    OSError, ValueError when there is one that cannot be read: it stays."""
    try:
        noted = json.loads((in_progress / POINTER).read_text())
        path, boot = Path(noted["ring"]), noted["boot"]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{in_progress / POINTER} does not say where it is ({error!r})") from None
    # after a power cut the file of a ring beside the store may be there, but its pages were never in order on
    # the disk
    if boot != _boot() or not path.name.lstrip(".").startswith("ulna-ring-") or not path.exists():
        remove_ring(in_progress)
        return None
    return Ring.open(path)


def remove_ring(in_progress: Path) -> None:
    """The ring and the note of it; safe to repeat."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = Path(json.loads((in_progress / POINTER).read_text())["ring"])
        if path.name.lstrip(".").startswith("ulna-ring-"):
            path.unlink(missing_ok=True)
    (in_progress / POINTER).unlink(missing_ok=True)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
