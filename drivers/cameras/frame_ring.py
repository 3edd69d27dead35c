"""Frames in shared memory: one process writes, any number of processes read, and no process waits.

Each slot is a seqlock: its version is odd while the writer is in it, and then belongs to the frame. A reader
copies the pixels, and uses them only if the version was that frame's before and after. The writer holds a
lock on the file, which the kernel releases when the process dies in any way: a ring has one writer at a time,
and another may take over from a dead one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import shared_memory
from ..arm import DeviceError
from ..fence import fence

SHAPE_BYTES = 1024  # bytes of JSON: the shape of the ring
STATUS_BYTES = 3072  # bytes of each of the two copies of the writer's status
HEADER_BYTES = 2048 + 2 * STATUS_BYTES
SLOT_HEADER_BYTES = 64
NEWEST, BEAT, STATUS_VERSION = range(3)  # words of the header
VERSION, SEQ, CAPTURE, RECEIVE, FLAGS = range(5)  # words of a slot
LOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid

BLACK = 1  # flag: there is no light in the frame
REPEATED = 2  # flag: every pixel is as in the frame before


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture, and its depth. color: `(H, W, 3)` uint8 RGB. depth: `(H, W)` uint16 in units of the
    source, or None. t_capture_ns, t_receive_ns: on `time.monotonic_ns`. seq: the device's number; in a ring
    it always rises. flags: BLACK, REPEATED."""

    color: np.ndarray
    depth: np.ndarray | None
    t_capture_ns: int
    t_receive_ns: int
    seq: int
    flags: int = 0


class FrameRing:
    """`slots` frames of one shape. A read gives whole frames, copied: the arrays belong to the caller.

    A reader has `slots - 1` frame periods to copy a frame before it is overwritten; a slower one gets a newer
    frame, never a mixture. DeviceError: there is no such ring, or it has a writer already."""

    def __init__(self, path: Path, write: bool = False) -> None:
        self.path = Path(path)
        access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
        try:
            # opened twice: mmap keeps a copy of its descriptor for as long as it lives, which would keep the
            # lock, too
            lock_file = os.open(self.path, os.O_RDWR if write else os.O_RDONLY)
        except FileNotFoundError:
            raise DeviceError(f"there is no frame ring {self.path}: its camera was closed") from None
        self._close = weakref.finalize(self, os.close, lock_file)
        shared_memory.hold(lock_file)
        self._lock_file = lock_file
        if write:
            self._claim()
        with self.path.open("r+b" if write else "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=access)
        shape = json.loads(memory[: memory.find(b"\0")])
        self.height, self.width, self.slots = shape["height"], shape["width"], shape["slots"]
        self.has_depth: bool = shape["depth"]
        self._memory = memory
        self._words = np.frombuffer(memory, np.int64, 8, SHAPE_BYTES)
        size, at_depth = _slot_size(self.height, self.width, self.has_depth)
        pixels = self.height * self.width
        starts = [HEADER_BYTES + i * size for i in range(self.slots)]
        self._heads = [np.frombuffer(memory, np.int64, 8, s) for s in starts]
        self._colors = [
            np.frombuffer(memory, np.uint8, 3 * pixels, s + SLOT_HEADER_BYTES).reshape(
                self.height, self.width, 3
            )
            for s in starts
        ]
        self._depths = [
            np.frombuffer(memory, np.uint16, pixels, s + at_depth).reshape(self.height, self.width)
            for s in starts
            if self.has_depth
        ]

    @staticmethod
    def create(height: int, width: int, depth: bool = False, slots: int = 8) -> FrameRing:
        """An empty ring, opened for reading; its writer opens it by its `path`. It lives until `remove`.
        DeviceError: no room in /dev/shm."""
        if height < 1 or width < 1 or slots < 3:
            raise ValueError(f"a ring of {slots} frames of {height} × {width}: it needs 3 or more, not empty")
        shape = {"height": height, "width": width, "depth": depth, "slots": slots}
        words = np.zeros(8, np.int64)
        words[NEWEST] = -1
        path, file = shared_memory.create("frames")
        try:
            os.write(file, json.dumps(shape).encode().ljust(SHAPE_BYTES, b"\0") + words.tobytes())
            size = HEADER_BYTES + slots * _slot_size(height, width, depth)[0]
            # reserve: a full /dev/shm fails here, not by a SIGBUS in the middle of a frame
            os.posix_fallocate(file, 0, size)
        except OSError as e:
            path.unlink()
            raise DeviceError(f"no room in /dev/shm for {slots} frames of {height} × {width}: {e}") from e
        finally:
            os.close(file)
        return FrameRing(path)

    def close(self) -> None:
        """Stop reading, or writing, so that another writer may open the ring. Safe to call twice."""
        self._close()

    def remove(self) -> None:
        """Delete the ring's name; a process that has it open keeps it. Safe to call twice."""
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
        """Append a frame. Returns its seq. color: `(H, W, 3)` uint8. depth: `(H, W)` uint16, for a ring with
        depth. t_receive_ns: default now. seq: at least, and by default, one more than the last. ValueError:
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
        """Set what `status` gives to readers: JSON of less than 3072 bytes. It is written beside the old one,
        and then takes its place."""
        text = json.dumps(status).encode()
        if len(text) >= STATUS_BYTES:
            raise ValueError(f"a status of {len(text)} bytes, it must be less than {STATUS_BYTES}")
        version = int(self._words[STATUS_VERSION]) + 1
        at = 2048 + STATUS_BYTES * (version % 2)
        self._memory[at : at + len(text) + 1] = text + b"\0"
        fence()
        self._words[STATUS_VERSION] = version

    def beat(self) -> None:
        """Note the time, as a sign that the writer lives though it may have no frame to write."""
        self._words[BEAT] = time.monotonic_ns()

    @property
    def last_color(self) -> np.ndarray | None:
        """For the writer alone: a view of the last frame's pixels, None before the first frame."""
        number = int(self._words[NEWEST])
        return self._colors[number % self.slots] if number >= 0 else None

    # The readers' side

    @property
    def beat_ns(self) -> int:
        """Time of the writer's last `beat`, monotonic ns; 0 when there was none."""
        return int(self._words[BEAT])

    @property
    def newest_seq(self) -> int:
        """seq of the newest frame, -1 before the first."""
        number = int(self._words[NEWEST])
        return int(self._heads[number % self.slots][SEQ]) if number >= 0 else -1

    def status(self) -> dict[str, Any]:
        """What the writer last set with `set_status`, {} before that."""
        while True:
            version = int(self._words[STATUS_VERSION])
            if version == 0:
                return {}
            at = 2048 + STATUS_BYTES * (version % 2)
            text = self._memory[at : at + STATUS_BYTES]
            if int(self._words[STATUS_VERSION]) == version:
                return json.loads(text[: text.find(b"\0")])

    def latest(self, color: bool = True, depth: bool = True) -> Frame | None:
        """The newest frame, None before the first. color, depth: whether to copy that plane; without, color
        is `(0, 0, 3)` and depth None."""
        while (number := int(self._words[NEWEST])) >= 0:
            if (frame := self._read(number, color, depth)) is not None:
                return frame
        return None

    def next(self, after_seq: int, timeout_s: float, color: bool = True, depth: bool = True) -> Frame | None:
        """The newest frame with a seq above `after_seq`; waits for one. None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while self.newest_seq <= after_seq:
            if time.monotonic() >= deadline:
                return None
            time.sleep(self._pause_s())
        return self.latest(color, depth)

    def _pause_s(self) -> float:
        """How long to sleep before looking for the next frame again: short when it is due, longer before."""
        number = int(self._words[NEWEST])
        if number < 1:
            return 0.001
        last_ns, previous_ns = (int(self._heads[n % self.slots][RECEIVE]) for n in (number, number - 1))
        wait_s, period_s = (time.monotonic_ns() - last_ns) * 1e-9, (last_ns - previous_ns) * 1e-9
        if wait_s < 0.7 * period_s:
            return min(0.7 * period_s - wait_s, 0.005)
        return 0.0002 if wait_s < 2 * period_s else 0.001

    def window(self, k: int, color: bool = True, depth: bool = True) -> list[Frame]:
        """The last `k` frames, oldest first; fewer when there are not as many. ValueError: more than the ring
        can hold."""
        if not 1 <= k <= self.slots - 2:
            raise ValueError(f"a window of {k} frames of a ring that keeps {self.slots - 2}")
        newest = int(self._words[NEWEST])
        frames = [self._read(n, color, depth) for n in range(max(0, newest - k + 1), newest + 1)]
        return [frame for frame in frames if frame is not None]

    def since(self, after_seq: int, color: bool = True, depth: bool = True) -> list[Frame]:
        """All frames with a seq above `after_seq` that the ring still holds (at most `slots - 1`), oldest
        first."""
        newest = int(self._words[NEWEST])
        numbers = range(max(0, newest - self.slots + 2), newest + 1)
        # the seq of a slot that is being overwritten may be any; `_read` then gives None for it
        newer = [n for n in numbers if int(self._heads[n % self.slots][SEQ]) > after_seq]
        frames = [self._read(n, color, depth) for n in newer]
        return [frame for frame in frames if frame is not None]

    def times(self) -> tuple[int, int] | None:
        """(t_capture_ns, t_receive_ns) of the newest frame, None before the first."""
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
    """Bytes of a slot, in whole pages, and the offset of depth in it."""
    at_depth = SLOT_HEADER_BYTES + -(-3 * height * width // 64) * 64
    size = at_depth + (2 * height * width if depth else 0)
    return -(-size // 4096) * 4096, at_depth
