"""Frames in shared memory: one process writes, any number of processes read, and nobody waits for anybody.

Each slot is a seqlock: its version is odd while the writer is in it and names the frame when it is done. A
reader copies the pixels out and believes them only if the version was that frame's before and after. The
writer holds a lock on the file that the kernel lets go when the process dies, however it dies, so that a ring
has one writer and a dead one an heir."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..fence import fence

ABOUT = 1024  # bytes of JSON: the shape of the ring
STATUS = 3072  # bytes of each of the two copies of the writer's status
HEADER = 2048 + 2 * STATUS
SLOT_HEADER = 64
NEWEST, BEAT, STATUS_VERSION = range(3)  # words of the header
VERSION, SEQ, CAPTURE, RECEIVE, FLAGS = range(5)  # words of a slot
LOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid

BLACK = 1  # flag: there is no light in the frame
REPEATED = 2  # flag: every pixel is as in the frame before


@dataclass(frozen=True, slots=True)
class Frame:
    """color: `(H, W, 3)` uint8 RGB. depth: `(H, W)` uint16 in units of the source, or None. t_capture_ns,
    t_receive_ns: on `time.monotonic_ns`. seq: of the device, or rising ever further in a ring. flags: BLACK,
    REPEATED."""

    color: np.ndarray
    depth: np.ndarray | None
    t_capture_ns: int
    t_receive_ns: int
    seq: int
    flags: int = 0


class FrameRing:
    """`slots` frames of one shape. Reads are of whole frames or none, copied out: the arrays belong to the
    caller.

    A reader has time for `slots - 1` frame periods to copy a frame before it is overwritten; one that is
    slower gets a newer frame instead, never a mixture. DeviceError: there is no such ring; it has a writer
    already."""

    def __init__(self, path: Path, write: bool = False) -> None:
        self.path = Path(path)
        access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
        try:
            # two descriptions of the file: mmap keeps a copy of its own as long as it lives, and with it
            # would keep the lock
            lock_file = os.open(self.path, os.O_RDWR if write else os.O_RDONLY)
        except FileNotFoundError:
            raise DeviceError(f"there is no frame ring {self.path}: its camera was closed") from None
        self._close = weakref.finalize(self, os.close, lock_file)
        self._lock_file = lock_file
        if write:
            self._claim()
        with self.path.open("r+b" if write else "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=access)
        about = json.loads(memory[: memory.find(b"\0")])
        self.height, self.width, self.slots = about["height"], about["width"], about["slots"]
        self.has_depth: bool = about["depth"]
        self._memory = memory
        self._words = np.frombuffer(memory, np.int64, 8, ABOUT)
        size, at_depth = _slot_size(self.height, self.width, self.has_depth)
        pixels = self.height * self.width
        starts = [HEADER + i * size for i in range(self.slots)]
        self._heads = [np.frombuffer(memory, np.int64, 8, s) for s in starts]
        self._colors = [
            np.frombuffer(memory, np.uint8, 3 * pixels, s + SLOT_HEADER).reshape(self.height, self.width, 3)
            for s in starts
        ]
        self._depths = [
            np.frombuffer(memory, np.uint16, pixels, s + at_depth).reshape(self.height, self.width)
            for s in starts
            if self.has_depth
        ]

    @staticmethod
    def create(height: int, width: int, depth: bool = False, slots: int = 8) -> FrameRing:
        """An empty ring, not yet with a writer (open it by its `path` for that). It lives until `remove`."""
        if height < 1 or width < 1 or slots < 3:
            raise ValueError(f"a ring of {slots} frames of {height} × {width}: it needs 3 or more, not empty")
        path = Path("/dev/shm") / f"ulna-frames-{secrets.token_hex(8)}"
        about = {"height": height, "width": width, "depth": depth, "slots": slots}
        words = np.zeros(8, np.int64)
        words[NEWEST] = -1
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, json.dumps(about).encode().ljust(ABOUT, b"\0") + words.tobytes())
            size = HEADER + slots * _slot_size(height, width, depth)[0]
            # reserve: a full /dev/shm is told here, not by a SIGBUS in the middle of a frame
            os.posix_fallocate(file, 0, size)
        except OSError as e:
            path.unlink()
            raise DeviceError(f"no room in /dev/shm for {slots} frames of {height} × {width}: {e}") from e
        finally:
            os.close(file)
        return FrameRing(path)

    def close(self) -> None:
        """Stop writing (another may then) or reading; safe to call twice."""
        self._close()

    def remove(self) -> None:
        """Delete the ring's name; who has it open keeps it. Safe to call twice."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    # The writer's side

    def _claim(self) -> None:
        try:
            fcntl.fcntl(self._lock_file, fcntl.F_OFD_SETLK, struct.pack(LOCK, fcntl.F_WRLCK, 0, 0, 1, 0))
        except OSError:
            self._close()
            raise DeviceError(f"the frame ring {self.path} has a writer already") from None

    def write(
        self,
        color: np.ndarray,
        depth: np.ndarray | None = None,
        *,
        t_capture_ns: int,
        t_receive_ns: int | None = None,
        seq: int | None = None,
        flags: int = 0,
    ) -> int:
        """Append a frame and return its seq. color `(H, W, 3)` uint8, depth `(H, W)` uint16 where the ring
        has one. t_receive_ns: default now. seq: default, and at least, one more than the last. ValueError:
        another shape or dtype."""
        if color.shape != (self.height, self.width, 3) or color.dtype != np.uint8:
            want = f"({self.height}, {self.width}, 3) uint8"
            raise ValueError(f"a frame of {color.shape} {color.dtype} in a ring of {want}")
        if (depth is not None) != self.has_depth:
            raise ValueError(f"the ring has {'a' if self.has_depth else 'no'} depth plane, the frame not so")
        if depth is not None and (depth.shape != (self.height, self.width) or depth.dtype != np.uint16):
            raise ValueError(
                f"depth of {depth.shape} {depth.dtype} in a ring of ({self.height}, {self.width}) uint16"
            )
        number = int(self._words[NEWEST]) + 1
        i = number % self.slots
        head = self._heads[i]
        last = self.newest_seq
        head[VERSION] = 2 * number + 1
        fence()
        head[SEQ] = seq = last + 1 if seq is None else max(seq, last + 1)
        head[CAPTURE] = t_capture_ns
        head[RECEIVE] = time.monotonic_ns() if t_receive_ns is None else t_receive_ns
        head[FLAGS] = flags
        np.copyto(self._colors[i], color)
        if depth is not None:
            np.copyto(self._depths[i], depth)
        fence()
        head[VERSION] = 2 * number + 2
        fence()
        self._words[NEWEST] = number
        return seq

    def set_status(self, status: dict[str, Any]) -> None:
        """Tell readers something about the writer: JSON of less than 3072 bytes. Written beside the old one,
        then switched."""
        text = json.dumps(status).encode()
        if len(text) >= STATUS:
            raise ValueError(f"a status of {len(text)} bytes, it must be less than {STATUS}")
        version = int(self._words[STATUS_VERSION]) + 1
        at = 2048 + STATUS * (version % 2)
        self._memory[at : at + len(text) + 1] = text + b"\0"
        fence()
        self._words[STATUS_VERSION] = version

    def beat(self) -> None:
        """The writer lives, though it may have no frame to write."""
        self._words[BEAT] = time.monotonic_ns()

    @property
    def last_color(self) -> np.ndarray | None:
        """For the writer alone: a view of the colours that it wrote last, None before the first frame."""
        number = int(self._words[NEWEST])
        return self._colors[number % self.slots] if number >= 0 else None

    # The readers' side

    @property
    def beat_ns(self) -> int:
        """When the writer last said that it lives, 0 when never."""
        return int(self._words[BEAT])

    @property
    def newest_seq(self) -> int:
        """-1 before the first frame."""
        number = int(self._words[NEWEST])
        return int(self._heads[number % self.slots][SEQ]) if number >= 0 else -1

    def status(self) -> dict[str, Any]:
        """What the writer last told, {} before it did."""
        while True:
            version = int(self._words[STATUS_VERSION])
            if version == 0:
                return {}
            at = 2048 + STATUS * (version % 2)
            text = self._memory[at : at + STATUS]
            if int(self._words[STATUS_VERSION]) == version:
                return json.loads(text[: text.find(b"\0")])

    def latest(self, color: bool = True, depth: bool = True) -> Frame | None:
        """The newest frame, None before the first. A plane that is not wanted is left out: color `(0, 0, 3)`,
        depth None."""
        while (number := int(self._words[NEWEST])) >= 0:
            if (frame := self._read(number, color, depth)) is not None:
                return frame
        return None

    def next(self, after_seq: int, timeout_s: float, color: bool = True, depth: bool = True) -> Frame | None:
        """The newest frame with a seq above `after_seq`, waited for; None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while self.newest_seq <= after_seq:
            if time.monotonic() >= deadline:
                return None
            time.sleep(self._pause_s())
        return self.latest(color, depth)

    def _pause_s(self) -> float:
        """Until it pays to look for the next frame again: seldom at first, often about when it is due."""
        number = int(self._words[NEWEST])
        if number < 1:
            return 0.001
        last, before = (int(self._heads[n % self.slots][RECEIVE]) for n in (number, number - 1))
        waited_s, period_s = (time.monotonic_ns() - last) * 1e-9, (last - before) * 1e-9
        if waited_s < 0.7 * period_s:
            return min(0.7 * period_s - waited_s, 0.005)
        return 0.0002 if waited_s < 2 * period_s else 0.001

    def window(self, k: int, color: bool = True, depth: bool = True) -> list[Frame]:
        """The last k frames, oldest first; fewer where there are not as many. ValueError: more than the ring
        can hold."""
        if not 1 <= k <= self.slots - 2:
            raise ValueError(f"a window of {k} frames of a ring that keeps {self.slots - 2}")
        newest = int(self._words[NEWEST])
        read = [self._read(n, color, depth) for n in range(max(0, newest - k + 1), newest + 1)]
        return [frame for frame in read if frame is not None]

    def since(self, after_seq: int, color: bool = True, depth: bool = True) -> list[Frame]:
        """All frames with a seq above `after_seq` that are still here, oldest first: at most `slots - 1`."""
        newest = int(self._words[NEWEST])
        numbers = range(max(0, newest - self.slots + 2), newest + 1)
        # one that is being overwritten has a seq above any, and is found torn below
        wanted = [n for n in numbers if int(self._heads[n % self.slots][SEQ]) > after_seq]
        read = [self._read(n, color, depth) for n in wanted]
        return [frame for frame in read if frame is not None]

    def times(self) -> tuple[int, int] | None:
        """(t_capture_ns, t_receive_ns) of the newest frame without its pixels."""
        frame = self.latest(color=False, depth=False)
        return None if frame is None else (frame.t_capture_ns, frame.t_receive_ns)

    def _read(self, number: int, color: bool, depth: bool) -> Frame | None:
        i = number % self.slots
        head = self._heads[i]
        if int(head[VERSION]) != 2 * number + 2:
            return None
        fence()
        words = head.tolist()
        pixels = self._colors[i].copy() if color else np.empty((0, 0, 3), np.uint8)
        distances = self._depths[i].copy() if depth and self.has_depth else None
        fence()
        if int(head[VERSION]) != 2 * number + 2:
            return None
        return Frame(pixels, distances, words[CAPTURE], words[RECEIVE], words[SEQ], words[FLAGS])


def _slot_size(height: int, width: int, depth: bool) -> tuple[int, int]:
    """Bytes of a slot, in whole pages, and where in it depth begins."""
    at_depth = SLOT_HEADER + -(-3 * height * width // 64) * 64
    size = at_depth + (2 * height * width if depth else 0)
    return -(-size // 4096) * 4096, at_depth
