"""The process that reads one camera: `python -m ulna.drivers.cameras.capture_process`, started by
`drivers.cameras.capture.CaptureCamera`.

stdin: one line of JSON `{"ring": path, "source": module, "config": {…}, "fps": number}`, then nothing; its
end is the sign to stop, and comes of itself when the control process is gone. Frames and state go to the
ring."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..camera import CameraState
from .capture import Ended, FrameSource, Refused
from .frame_ring import BLACK, REPEATED, Frame, FrameRing

GRAB_S = 0.25  # at most so long without a sign of life
TELL_S = 0.1  # between two reports of rate and drops
RATE_S = 2.0  # over which the rate is measured
NOTICE_S = 1.0  # black or unchanging for so long is told
DARK = 8  # of 255: a covered or unpowered sensor stays below, a dim room does not
LONGEST_PAUSE_S = 3.0  # between two attempts to connect


class Capture:
    """One source into one ring, for as long as `stopping` is not set."""

    def __init__(self, ring: FrameRing, source: FrameSource, fps: float, stopping: threading.Event) -> None:
        self.ring, self.source, self.fps, self.stopping = ring, source, fps, stopping
        before = ring.status()  # of a capture process that died: its counts go on
        self.status: dict[str, Any] = {
            "state": CameraState.CONNECTING.value,
            "message": "",
            "fps": 0.0,
            "dropped": before.get("dropped", 0),
            "reconnects": before.get("reconnects", 0),
            "failed_opens": 0,
            "info": before.get("info"),
        }
        self.had_frames = ring.newest_seq >= 0
        self.silence_s = max(1.0, 10 / fps)  # after which a connection is given up

    def run(self) -> None:
        """Connect, stream, and connect again, until told to stop. Returns when the device is refused before
        it gave a frame, and when it has `Ended`."""
        pause_s = 0.1
        while not self.stopping.is_set():
            self._tell(CameraState.RECONNECTING if self.had_frames else CameraState.CONNECTING)
            before = self.ring.newest_seq
            try:
                self._open()
                self._stream()
            except DeviceError as e:
                # one that has streamed and now refuses: its server is starting, or udev has yet to set the
                # group of its node
                if isinstance(e, Ended) or (isinstance(e, Refused) and not self.had_frames):
                    self._tell(CameraState.FAILED, str(e))
                    return
                self.status["failed_opens"] += not self.had_frames
                if self.ring.newest_seq > before:
                    pause_s = 0.1
                self._tell(CameraState.RECONNECTING if self.had_frames else CameraState.CONNECTING, str(e))
            finally:
                self.source.close()
            self._pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _open(self) -> None:
        info = self.source.open()
        ring = self.ring
        if (info.height, info.width) != (ring.height, ring.width):
            raise Refused(
                f"{info.device} gives frames of {info.width} × {info.height}, "
                f"{ring.width} × {ring.height} is configured"
            )
        if (info.depth_scale_m is not None) != ring.has_depth:
            raise Refused(
                f"{info.device} gives {'no ' if ring.has_depth else ''}depth, which is not as configured"
            )
        self.status["info"] = info.to_json()

    def _stream(self) -> None:
        """Frames until the connection is lost (DeviceError) or we are told to stop."""
        about = self.status["info"]["message"]
        began = told_ns = last_ns = time.monotonic_ns()
        arrivals: deque[tuple[int, int]] = deque()  # capture time, seq
        look = _Look()
        base: int | None = None  # from the device's seq, which may begin anew, to ours, which may not
        while not self.stopping.is_set():
            frame = self.source.grab(GRAB_S)
            self.ring.beat()
            now = time.monotonic_ns()
            if frame is None or frame.color.shape[:2] != (self.ring.height, self.ring.width):
                # a server that restarts in another mode sends a few of another size, or goes on with them:
                # then `open` says so
                if (now - last_ns) * 1e-9 > self.silence_s:
                    raise DeviceError(f"no frame for {self.silence_s:.1f} s, connecting again")
                continue
            if base is None:
                self.status["reconnects"] += self.had_frames
                base = self.ring.newest_seq + 1 - frame.seq
            seq, capture_ns = self._write(frame, frame.seq + base, look.at(frame.color, self.ring.last_color))
            base += max(0, seq - (frame.seq + base))
            last_ns = now
            # by capture times: they say what the camera does, arrival says how busy we are
            arrivals.append((capture_ns, seq))
            while capture_ns - arrivals[0][0] > RATE_S * 1e9:
                arrivals.popleft()
            if (now - told_ns) * 1e-9 > TELL_S or not self.had_frames or len(arrivals) == 1:
                told_ns, self.had_frames = now, True
                message = (look.message(), self._rate(arrivals, now - began > RATE_S * 1e9), about)
                self._tell(CameraState.STREAMING, "; ".join(m for m in message if m))

    def _rate(self, arrivals: deque[tuple[int, int]], settled: bool) -> str:
        """Measure it; what is wrong with it in words."""
        frames, span_s = len(arrivals) - 1, (arrivals[-1][0] - arrivals[0][0]) * 1e-9
        if frames < 2 or span_s <= 0:
            return ""
        self.status["fps"] = fps = round(frames / span_s, 2)
        lost = 1 - frames / (arrivals[-1][1] - arrivals[0][1])
        if lost > 0.05:
            return f"{lost:.0%} of the frames are lost or damaged"
        return (
            f"gives {fps:.1f} frames/s, {self.fps:g} was asked for"
            if settled and fps < 0.8 * self.fps
            else ""
        )

    def _write(self, frame: Frame, seq: int, flags: int) -> tuple[int, int]:
        """Into the ring, with times that are in order whatever the source says. Its seq and capture time
        there."""
        last, times = self.ring.newest_seq, self.ring.times()
        receive_ns = min(frame.t_receive_ns, time.monotonic_ns())
        capture_ns = min(frame.t_capture_ns, receive_ns)
        if times is not None:
            receive_ns = max(receive_ns, times[1])
            capture_ns = min(max(capture_ns, times[0] + 1), receive_ns)
        seq = self.ring.write(
            frame.color,
            frame.depth,
            t_capture_ns=capture_ns,
            t_receive_ns=receive_ns,
            seq=seq,
            flags=flags | frame.flags,
        )
        self.status["dropped"] += seq - last - 1
        return seq, capture_ns

    def _tell(self, state: CameraState, message: str = "") -> None:
        self.status["state"] = state.value
        # a reason stays until there are frames again, or a moment's attempt would wipe it out
        if message or state is CameraState.STREAMING:
            self.status["message"] = message[:1500]
        self.ring.beat()
        self.ring.set_status(self.status)

    def _pause(self, pause_s: float) -> None:
        end = time.monotonic() + pause_s
        while not self.stopping.is_set() and (left := end - time.monotonic()) > 0:
            self.ring.beat()
            self.stopping.wait(min(left, GRAB_S))


class _Look:
    """Whether the picture is one: light in it, and no two alike in every pixel."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None  # a few of the pixels
        self._lit = self._changed = time.monotonic()

    def at(self, color: np.ndarray, last: np.ndarray | None) -> int:
        """The flags of a frame. last: the one before it. A few pixels decide unless they are suspicious."""
        now, flags = time.monotonic(), 0
        few = color[::16, ::16].copy()
        if few.max(initial=0) < DARK and color.max(initial=0) < DARK:
            flags |= BLACK
        else:
            self._lit = now
        if (
            last is not None
            and self._before is not None
            and np.array_equal(few, self._before)
            and np.array_equal(color, last)
        ):
            flags |= REPEATED
        else:
            self._changed = now
        self._before = few
        return flags

    def message(self) -> str:
        now = time.monotonic()
        if (dark_s := now - self._lit) > NOTICE_S:
            return f"the picture has been black for {dark_s:.0f} s: is the lens covered?"
        if (still_s := now - self._changed) > NOTICE_S:
            return f"the picture is frozen: not a pixel has changed for {still_s:.0f} s, though frames come"
        return ""


def _end_with_control(ring: FrameRing, stopping: threading.Event) -> None:
    """Set `stopping` when stdin ends or the parent is another; and end by force if that is not heard."""
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            break
    stopping.set()
    ring.remove()  # nobody else will, where the control process was killed
    time.sleep(2.0)
    os._exit(1)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(_first_line())
    ring, stopping = FrameRing(Path(request["ring"]), write=True), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # before the source is loaded, which takes a while: what the process before told is over
    state = CameraState.RECONNECTING if ring.newest_seq >= 0 else CameraState.CONNECTING
    ring.set_status({**ring.status(), "state": state.value})
    ring.beat()
    threading.Thread(target=_end_with_control, args=(ring, stopping), daemon=True).start()
    try:
        source = importlib.import_module(request["source"]).source(request["config"])
    except DeviceError as e:
        ring.set_status({"state": CameraState.FAILED.value, "message": str(e)})
        return 0
    Capture(ring, source, request["fps"], stopping).run()
    return 0


def _first_line() -> bytes:
    """Of stdin, not through a buffer that would keep its end from `select`."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := os.read(0, 65536)):
            raise SystemExit("the request on stdin ended before its first line")
        line += more
    return line


if __name__ == "__main__":
    sys.exit(main())
