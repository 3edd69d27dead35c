"""Frames through shared memory, and the loop that captures them from a scripted device."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import CameraState
from ulna.drivers.cameras.capture import Ended, Frame, Refused, SourceInfo
from ulna.drivers.cameras.capture_process import Capture
from ulna.drivers.cameras.frame_ring import BLACK, REPEATED, FrameRing

pytestmark = pytest.mark.realtime

SIZE = (120, 160)
PATIENCE_S = 20.0  # of a loaded machine


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from ulna.drivers.cameras.frame_ring import FrameRing
ring = FrameRing(Path(sys.argv[1]), write=True)
size = ring.height, ring.width
color, depth = np.empty((*size, 3), np.uint8), np.empty(size, np.uint16)
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    n = ring.newest_seq + 1
    color.fill(n * 31 % 251)
    depth.fill(n * 7919 % 65521)
    ring.write(color, depth, t_capture_ns=n + 1, t_receive_ns=n + 2, flags=n % 4)
print(ring.newest_seq)
"""


def test_ring_never_gives_a_mixture_of_frames() -> None:
    ring = FrameRing.create(*SIZE, depth=True, slots=3)  # few slots: the writer is always on our heels
    wrong: list[str] = []
    seqs: set[int] = set()

    def check(frame: Frame) -> None:
        n = frame.seq
        assert frame.depth is not None
        is_whole = (
            (frame.color == n * 31 % 251).all()
            and (frame.depth == n * 7919 % 65521).all()
            and (frame.t_capture_ns, frame.t_receive_ns, frame.flags) == (n + 1, n + 2, n % 4)
        )
        if not is_whole:
            wrong.append(f"{n}: {np.unique(frame.color)}")
        seqs.add(n)

    def read() -> None:
        mine, last = FrameRing(ring.path), -1
        deadline = time.monotonic() + PATIENCE_S
        while len(seqs) < 500 and time.monotonic() < deadline:
            if (frame := mine.latest()) is not None:
                check(frame)
                assert frame.seq >= last
                last = frame.seq
            for frame in mine.window(1):
                check(frame)
        mine.close()

    try:
        command = [sys.executable, "-c", WRITER, str(ring.path), "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert ring.next(-1, PATIENCE_S) is not None
            readers = [threading.Thread(target=read) for _ in range(2)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            writer.kill()
        assert not wrong
        assert len(seqs) > 100
    finally:
        ring.close()
        ring.remove()


def test_a_ring_has_one_writer_and_a_dead_one_an_heir() -> None:
    ring = FrameRing.create(*SIZE)
    try:
        assert ring.latest() is None
        assert ring.next(-1, 0.01) is None
        command = [sys.executable, "-c", WRITER, str(ring.path), "60"]
        with pytest.raises(ValueError, match="depth"):
            FrameRing(ring.path, write=True).write(
                np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint16), t_capture_ns=0
            )
        code = WRITER.replace("color, depth,", "color, None,")
        with subprocess.Popen([*command[:2], code, *command[3:]], stdout=subprocess.PIPE) as writer:
            assert ring.next(5, PATIENCE_S) is not None
            with pytest.raises(DeviceError, match="has a writer already"):
                FrameRing(ring.path, write=True)
            writer.kill()
            writer.wait()
        last = ring.latest()
        assert last is not None, "what was written can still be read"
        heir = FrameRing(ring.path, write=True)
        assert heir.write(last.color, t_capture_ns=1) == last.seq + 1
        assert heir.write(last.color, t_capture_ns=1, seq=last.seq + 9) == last.seq + 9
        assert [f.seq for f in ring.window(2)] == [last.seq + 1, last.seq + 9]
        heir.set_status({"state": "x"})
        assert ring.status() == {"state": "x"}
        heir.close()
    finally:
        ring.close()
        ring.remove()
    with pytest.raises(DeviceError, match="its camera was closed"):
        FrameRing(ring.path)


# The capture loop against a scripted device


class _ScriptedSource:
    """A device with scripted connections (`lives`): each is a list of frames, after which the connection is
    lost, or the error that `open` raises. After the last one `over` is set."""

    def __init__(self, lives: list[list[Frame] | DeviceError], over: threading.Event) -> None:
        self.lives, self.over = lives, over

    def open(self) -> SourceInfo:
        if isinstance(self.lives[0], DeviceError):
            raise self.lives.pop(0)  # type: ignore[misc]
        return SourceInfo("scripted", *SIZE, 30.0)

    def grab(self, timeout_s: float) -> Frame | None:
        if frames := self.lives[0]:
            assert isinstance(frames, list)
            return frames.pop(0)
        self.lives.pop(0)
        if not self.lives:
            self.over.set()
            return None
        raise DeviceError("the cable is out")

    def close(self) -> None: ...


def test_seq_and_times_rise_whatever_the_device_says() -> None:
    rng, now = np.random.default_rng(0), time.monotonic_ns()

    def frame(seq: int, t_ns: int, color: np.ndarray | None = None) -> Frame:
        color = rng.integers(0, 255, (*SIZE, 3), np.uint8) if color is None else color
        return Frame(color, None, t_ns, now, seq)

    black = np.zeros((*SIZE, 3), np.uint8)
    ring = FrameRing.create(*SIZE, slots=12)
    writer, over = FrameRing(ring.path, write=True), threading.Event()
    try:
        # drops 2 frames, steps its clock back, runs ahead of ours; then it counts anew
        first = [frame(7, now - 50), frame(8, now - 40), frame(11, now - 60), frame(12, now + 10**12)]
        second = [frame(0, now), frame(1, now, black), frame(2, now, black)]
        Capture(writer, _ScriptedSource([first, second], over), 30.0, over).run()
        frames = ring.window(10)
        assert [f.seq for f in frames] == [0, 1, 4, 5, 6, 7, 8]
        assert all(f.t_capture_ns <= f.t_receive_ns for f in frames)
        captures = [f.t_capture_ns for f in frames]
        assert captures == sorted(captures)
        assert [f.flags for f in frames[-3:]] == [0, BLACK, BLACK | REPEATED]
        assert ring.status()["dropped"] == 2
        assert ring.status()["reconnects"] == 1
    finally:
        writer.close()
        ring.close()
        ring.remove()


@contextmanager
def ring_after(*lives: list[Frame] | DeviceError) -> Iterator[FrameRing]:
    """The ring after a capture of a `_ScriptedSource` with these `lives`."""
    ring = FrameRing.create(*SIZE, slots=12)
    writer, over = FrameRing(ring.path, write=True), threading.Event()
    try:
        Capture(writer, _ScriptedSource(list(lives), over), 30.0, over).run()
        yield ring
    finally:
        writer.close()
        ring.close()
        ring.remove()


def frames(*seqs: int, size: tuple[int, int] = SIZE) -> list[Frame]:
    now = time.monotonic_ns()
    return [Frame(np.full((*size, 3), 40 + s, np.uint8), None, now + s, now + s, s) for s in seqs]


def test_one_that_has_streamed_is_sought_though_it_refuses_for_a_while() -> None:
    starting = Refused("there is no such path (404)")
    with ring_after(frames(0, 1), starting, frames(0, 1)) as ring:
        assert ring.newest_seq == 3
        assert ring.status()["state"] == CameraState.STREAMING.value
    with ring_after(starting, frames(0)) as ring:
        assert (ring.status()["state"], ring.newest_seq) == (CameraState.FAILED.value, -1)
    with ring_after(frames(0), Ended("the recording is at its end"), frames(0)) as ring:
        assert (ring.status()["state"], ring.newest_seq) == (CameraState.FAILED.value, 0)


def test_a_frame_of_another_size_is_left_out_and_counted() -> None:
    with ring_after([*frames(0, 1), *frames(2, size=(48, 64)), *frames(3)], frames(0)) as ring:
        assert [f.seq for f in ring.window(5)] == [0, 1, 3, 4]
        assert (ring.status()["dropped"], ring.status()["reconnects"]) == (1, 1)
