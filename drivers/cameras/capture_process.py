"""The process that reads one camera: `python -m ulna.drivers.cameras.capture_process`, started by
`drivers.cameras.capture.CaptureCamera`.

stdin: one line of JSON `{"ring": path, "source": module, "config": {…}, "fps": number}`, then nothing. Its
end is the order to stop, which also comes when the control process dies. Frames and state go to the ring."""

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

GRAB_S = 0.25  # the longest time between two beats
REPORT_S = 0.1  # between two reports of rate and drops
RATE_S = 2.0  # over which the rate is measured
NOTICE_S = 1.0  # a picture that is black or does not change for longer is reported
DARK = 8  # of 255: a covered or unpowered sensor stays below, a dim room does not
LONGEST_PAUSE_S = 3.0  # between two attempts to connect


class Capture:
    """One source into one ring, for as long as `stopping` is not set."""

    def __init__(self, ring: FrameRing, source: FrameSource, fps: float, stopping: threading.Event) -> None:
        self.ring, self.source, self.fps, self.stopping = ring, source, fps, stopping
        old_status = ring.status()  # of a capture process that died: its counts go on
        self.status: dict[str, Any] = {
            "state": CameraState.CONNECTING.value,
            "message": "",
            "fps": 0.0,
            "dropped": old_status.get("dropped", 0),
            "reconnects": old_status.get("reconnects", 0),
            "failed_opens": 0,
            "info": old_status.get("info"),
        }
        self.had_frames = ring.newest_seq >= 0
        self.silence_s = max(1.0, 10 / fps)  # without a frame for longer, the connection is given up

    def run(self) -> None:
        """Connect, stream, and connect again, until `stopping` is set. Also returns when the device refuses
        before it has given a frame, and when it has `Ended`."""
        pause_s = 0.1
        while not self.stopping.is_set():
            self._report(CameraState.RECONNECTING if self.had_frames else CameraState.CONNECTING)
            newest_seq = self.ring.newest_seq
            try:
                self._open()
                self._stream()
            except DeviceError as e:
                # one that has streamed and now refuses may be starting, or udev has yet to set its group
                if isinstance(e, Ended) or (isinstance(e, Refused) and not self.had_frames):
                    self._report(CameraState.FAILED, str(e))
                    return
                self.status["failed_opens"] += not self.had_frames
                if self.ring.newest_seq > newest_seq:
                    pause_s = 0.1
                self._report(CameraState.RECONNECTING if self.had_frames else CameraState.CONNECTING, str(e))
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
        """Write frames until the connection is lost (DeviceError) or `stopping` is set."""
        device_message = self.status["info"]["message"]
        start_ns = report_ns = last_ns = time.monotonic_ns()
        arrivals: deque[tuple[int, int]] = deque()  # capture time, seq
        look = _Look()
        base: int | None = None  # added to the device's seq, which may restart, it gives ours, which may not
        while not self.stopping.is_set():
            frame = self.source.grab(GRAB_S)
            self.ring.beat()
            now = time.monotonic_ns()
            if frame is None or frame.color.shape[:2] != (self.ring.height, self.ring.width):
                # a server that restarts in another mode may send a few frames of another size; when it goes
                # on with them, `open` refuses them
                if (now - last_ns) * 1e-9 > self.silence_s:
                    raise DeviceError(f"no frame for {self.silence_s:.1f} s, connecting again")
                continue
            if base is None:
                self.status["reconnects"] += self.had_frames
                base = self.ring.newest_seq + 1 - frame.seq
            seq, capture_ns = self._write(
                frame, frame.seq + base, look.flags(frame.color, self.ring.last_color)
            )
            base += max(0, seq - (frame.seq + base))
            last_ns = now
            # the rate is that of capture times, which do not depend on how busy this machine is
            arrivals.append((capture_ns, seq))
            while capture_ns - arrivals[0][0] > RATE_S * 1e9:
                arrivals.popleft()
            if (now - report_ns) * 1e-9 > REPORT_S or not self.had_frames or len(arrivals) == 1:
                report_ns, self.had_frames = now, True
                messages = (
                    look.message(),
                    self._rate(arrivals, now - start_ns > RATE_S * 1e9),
                    device_message,
                )
                self._report(CameraState.STREAMING, "; ".join(m for m in messages if m))

    def _rate(self, arrivals: deque[tuple[int, int]], settled: bool) -> str:
        """Set the measured rate in the status. Returns a sentence on what is wrong with it, or an empty
        one."""
        frames, span_s = len(arrivals) - 1, (arrivals[-1][0] - arrivals[0][0]) * 1e-9
        if frames < 2 or span_s <= 0:
            return ""
        self.status["fps"] = fps = round(frames / span_s, 2)
        loss = 1 - frames / (arrivals[-1][1] - arrivals[0][1])
        if loss > 0.05:
            return f"{loss:.0%} of the frames are lost or damaged"
        return (
            f"gives {fps:.1f} frames/s, {self.fps:g} was asked for"
            if settled and fps < 0.8 * self.fps
            else ""
        )

    def _write(self, frame: Frame, seq: int, flags: int) -> tuple[int, int]:
        """Write a frame to the ring, with times that rise whatever the source says. Returns its seq and
        capture time in the ring."""
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

    def _report(self, state: CameraState, message: str = "") -> None:
        self.status["state"] = state.value
        # a reason stays until there are frames again, so that the next attempt does not wipe it out
        if message or state is CameraState.STREAMING:
            self.status["message"] = message[:1500]
        self.ring.beat()
        self.ring.set_status(self.status)

    def _pause(self, pause_s: float) -> None:
        end = time.monotonic() + pause_s
        while not self.stopping.is_set() and (remaining_s := end - time.monotonic()) > 0:
            self.ring.beat()
            self.stopping.wait(min(remaining_s, GRAB_S))


class _Look:
    """Notices pictures without light, and pictures that repeat the one before in every pixel."""

    def __init__(self) -> None:
        self._last_thumbnail: np.ndarray | None = None  # every 16th pixel of every 16th row
        self._light_s = self._change_s = time.monotonic()

    def flags(self, color: np.ndarray, last: np.ndarray | None) -> int:
        """The flags of a frame. last: the frame before it. All pixels are compared only when those of the
        thumbnail are black or repeated."""
        now, flags = time.monotonic(), 0
        thumbnail = color[::16, ::16].copy()
        if thumbnail.max(initial=0) < DARK and color.max(initial=0) < DARK:
            flags |= BLACK
        else:
            self._light_s = now
        if (
            last is not None
            and self._last_thumbnail is not None
            and np.array_equal(thumbnail, self._last_thumbnail)
            and np.array_equal(color, last)
        ):
            flags |= REPEATED
        else:
            self._change_s = now
        self._last_thumbnail = thumbnail
        return flags

    def message(self) -> str:
        now = time.monotonic()
        if (dark_s := now - self._light_s) > NOTICE_S:
            return f"the picture has been black for {dark_s:.0f} s: is the lens covered?"
        if (frozen_s := now - self._change_s) > NOTICE_S:
            return f"the picture is frozen: not a pixel has changed for {frozen_s:.0f} s, though frames come"
        return ""


def _end_with_control(ring: FrameRing, stopping: threading.Event) -> None:
    """Set `stopping` when stdin ends or the parent process changes; end the process 2 s later in any case."""
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0] and not os.read(0, 4096):
            break
    stopping.set()
    ring.remove()  # a control process that was killed could not
    time.sleep(2.0)
    os._exit(1)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(_first_line())
    ring, stopping = FrameRing(Path(request["ring"]), write=True), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    # before the source is loaded, which takes a while: the status of the process before is out of date
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
    """The first line of stdin, read without a buffer, which would hide the end of stdin from `select`."""
    line = b""
    while not line.endswith(b"\n"):
        if not (chunk := os.read(0, 65536)):
            raise SystemExit("the request on stdin ended before its first line")
        line += chunk
    return line


if __name__ == "__main__":
    sys.exit(main())
