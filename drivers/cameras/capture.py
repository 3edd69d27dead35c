"""A camera whose device is read in a process of its own, at all times, whatever the control loop does.

`CaptureCamera` starts `python -m ulna.drivers.cameras.capture_process`, which runs a `FrameSource` and writes
into a `FrameRing`. `CaptureCamera` reads frames and state from that ring, without a request to the process. A
capture process that dies or hangs is started again, with growing pauses."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arm import DeviceError
from ..camera import CameraHealth, CameraState, Intrinsics, StaleFrame
from ..sample import Sample
from .frame_ring import Frame, FrameRing

MAX_AGE_S = 1.0  # of a frame that is given for a new one
BACKLOG_S = 0.5  # of frames are kept for a recorder of every frame, which may be busy that long
HUNG_S = 20.0  # without a beat the capture process is killed; longer than any open or read may take


class Refused(DeviceError):
    """The device is there but refuses (a mode it lacks, no permission). At the first opening this is raised
    to the user at once. A device that has streamed before may still be starting, and is opened again."""


class Ended(Refused):
    """No more frames can come, ever: the end of a recording."""


@dataclass(frozen=True)
class SourceInfo:
    """What a `FrameSource` opened. device: serial number or stable name, with the model. height, width: of
    the frames, px. fps: as the device promises. depth_scale_m: m per unit of depth, None without depth.
    message: a sentence for the user, or empty."""

    device: str
    height: int
    width: int
    fps: float
    intrinsics: Intrinsics | None = None
    depth_scale_m: float | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        out = {**vars(self)}
        if (i := self.intrinsics) is not None:
            out["intrinsics"] = {**vars(i), "matrix": i.matrix.tolist(), "distortion": list(i.distortion)}
        return out

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SourceInfo:
        i = value["intrinsics"]
        if i is not None:
            i = Intrinsics(
                np.asarray(i["matrix"], np.float64), i["width"], i["height"], tuple(i["distortion"])
            )
        return SourceInfo(**{**value, "intrinsics": i})


class FrameSource(Protocol):
    """A device as the capture process uses it, in one thread. A module that has one offers `source(config:
    dict) -> FrameSource`, which only checks the config.

    - `open` may be called again after `close`. It raises `Refused` when the device is there but refuses, else
      DeviceError.
    - `grab` gives each new frame once and in order, None when none came in `timeout_s` (it may return up to a
      second later). It raises DeviceError when the connection is lost: the source is then closed and opened
      again, unless it is `Ended`. A frame's arrays are valid until the next `grab`. Its `seq` also counts the
      frames that the device dropped; its times are `time.monotonic_ns`. A frame of another size than in
      `SourceInfo` is left out and counted as dropped.
    - `close` is safe at any time."""

    def open(self) -> SourceInfo: ...

    def grab(self, timeout_s: float) -> Frame | None: ...

    def close(self) -> None: ...


class CaptureCamera:
    """A `drivers.camera.Camera` over a `FrameSource` in a capture process: colour and, with `has_depth`,
    `depth`.

    source: module that offers `source(config)`, such as `ulna.drivers.cameras.opencv`. config: JSON for it.
    height, width: px, of the frames as delivered. fps: promised. history: the longest `window`. `open` waits
    for the first frame, and raises DeviceError in the words of the source when none comes within
    `open_timeout_s`; a device that is lost later is opened again without end. Any thread may call the
    methods.

    max_age_s: of a frame that `latest` gives when the caller names no age."""

    def __init__(
        self,
        name: str,
        source: str,
        config: Mapping[str, Any],
        height: int,
        width: int,
        fps: float,
        *,
        has_depth: bool = False,
        history: int = 6,
        open_timeout_s: float = 15.0,
    ) -> None:
        self.name, self.height, self.width, self.fps = name, height, width, fps
        self._source, self._config, self._history = source, dict(config), history
        self._open_timeout_s = open_timeout_s
        self.max_age_s = MAX_AGE_S
        self.depth: DepthView | None = DepthView(self) if has_depth else None
        self._ring: FrameRing | None = None
        self._supervisor: _Supervisor | None = None

    def open(self) -> None:
        if self._ring is not None:
            raise DeviceError(f"the camera {self.name} is open already")
        n_frames = max(self._history, math.ceil(BACKLOG_S * self.fps))
        ring = FrameRing.create(self.height, self.width, self.depth is not None, n_frames + 2)
        request = {"ring": str(ring.path), "source": self._source, "config": self._config, "fps": self.fps}
        hung_s = max(HUNG_S, self._open_timeout_s)
        self._ring, self._supervisor = ring, _Supervisor(self.name, ring, request, hung_s)
        deadline = time.monotonic() + self._open_timeout_s
        try:
            while (status := ring.status()).get("state") != CameraState.STREAMING.value:
                trouble = self._supervisor.trouble
                if (
                    status.get("failed_opens", 0)
                    or status.get("state") == CameraState.FAILED.value
                    or trouble
                ):
                    raise DeviceError(f"camera {self.name}: {status.get('message') or trouble}")
                if time.monotonic() >= deadline:
                    message = status.get("message") or "it was found but sends nothing"
                    raise DeviceError(
                        f"camera {self.name} gave no frame in {self._open_timeout_s:.0f} s: {message}"
                    )
                time.sleep(0.005)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        ring, supervisor = self._ring, self._supervisor
        self._ring = self._supervisor = None
        if supervisor is not None:
            supervisor.stop()
        if ring is not None:
            ring.close()
            ring.remove()

    def latest(self, max_age_s: float | None = None) -> Sample:
        """The newest frame; StaleFrame when it was captured more than `max_age_s` (default: the camera's)
        ago."""
        return self._latest(max_age_s, "color")

    def next(self, after_seq: int, timeout_s: float) -> Sample:
        """The newest frame with a seq above `after_seq`; waits for one. Frames in between are skipped.
        StaleFrame: none came within `timeout_s`."""
        return self._next(after_seq, timeout_s, "color")

    def window(self, k: int) -> list[Sample]:
        """The last `k` frames (at most `history`), oldest first. StaleFrame: the newest is older than 1 s."""
        return self._window(k, "color")

    def since(self, after_seq: int) -> list[Sample]:
        """The frames of the last half a second with a seq above `after_seq`, oldest first; older ones are
        lost. [] when there are none, or the camera is closed."""
        return self._since(after_seq, "color")

    @property
    def ring(self) -> FrameRing | None:
        """The ring of frames, for a reader that needs more than `Sample`; None while closed."""
        return self._ring

    @property
    def info(self) -> SourceInfo | None:
        """What the capture process last opened, None before `open`."""
        info = self._ring.status().get("info") if self._ring is not None else None
        return None if info is None else SourceInfo.from_json(info)

    @property
    def intrinsics(self) -> Intrinsics | None:
        return None if (info := self.info) is None else info.intrinsics

    @property
    def reconnects(self) -> int:
        """How often the device was lost and opened again since `open`."""
        return 0 if self._ring is None else self._ring.status().get("reconnects", 0)

    @property
    def pid(self) -> int | None:
        """Process id of the capture process, None while closed."""
        return None if self._supervisor is None else self._supervisor.pid

    def health(self) -> CameraHealth:
        """Judged by the age of the newest frame, not by what the device says of itself."""
        ring, supervisor = self._ring, self._supervisor
        if ring is None or supervisor is None:
            return CameraHealth(CameraState.CONNECTING, math.inf, 0.0, message="it is not open")
        status = ring.status()
        state = CameraState(status.get("state", CameraState.CONNECTING.value))
        message, fps = status.get("message", ""), status.get("fps", 0.0)
        now, times = time.monotonic_ns(), ring.times()
        age_s = math.inf if times is None else (now - times[0]) * 1e-9
        if state is not CameraState.FAILED and (trouble := supervisor.trouble):
            state, message = CameraState.RECONNECTING, trouble
        elif state is CameraState.STREAMING and times is not None:
            silent_s = (now - times[1]) * 1e-9
            if silent_s > 2 / self.fps:
                state, message = CameraState.STALE, message or f"no frame for {silent_s:.2f} s"
        if state is not CameraState.STREAMING and age_s > MAX_AGE_S:
            fps = 0.0  # the last measurement is of a stream that is over
        return CameraHealth(state, age_s, fps, status.get("dropped", 0), message)

    def _latest(self, max_age_s: float | None, plane: str) -> Sample:
        ring = self._ring
        frame = None if ring is None else ring.latest(plane == "color", plane == "depth")
        max_age_s = self.max_age_s if max_age_s is None else max_age_s
        if frame is None or time.monotonic_ns() - frame.t_capture_ns > max_age_s * 1e9:
            raise self._stale(f"no frame of the last {max_age_s:g} s")
        return _sample(frame, plane)

    def _next(self, after_seq: int, timeout_s: float, plane: str) -> Sample:
        ring, deadline = self._ring, time.monotonic() + timeout_s
        while ring is not None and (remaining_s := deadline - time.monotonic()) > 0:
            frame = ring.next(after_seq, remaining_s, plane == "color", plane == "depth")
            if frame is None or ring is not self._ring:
                break
            if time.monotonic_ns() - frame.t_capture_ns <= MAX_AGE_S * 1e9:
                return _sample(frame, plane)
            after_seq = frame.seq  # from before a stall: not new
        raise self._stale(f"no new frame in {timeout_s:g} s")

    def _window(self, k: int, plane: str) -> list[Sample]:
        if not 1 <= k <= self._history:
            raise ValueError(
                f"camera {self.name} keeps {self._history} frames, a window of {k} was asked for"
            )
        ring = self._ring
        frames = [] if ring is None else ring.window(k, plane == "color", plane == "depth")
        if not frames or time.monotonic_ns() - frames[-1].t_capture_ns > MAX_AGE_S * 1e9:
            raise self._stale(f"no frame of the last {MAX_AGE_S:g} s")
        return [_sample(f, plane) for f in frames]

    def _since(self, after_seq: int, plane: str) -> list[Sample]:
        ring = self._ring
        frames = [] if ring is None else ring.since(after_seq, plane == "color", plane == "depth")
        return [_sample(f, plane) for f in frames]

    def _stale(self, what: str) -> StaleFrame:
        health = self.health()
        if self._ring is None:
            return StaleFrame(f"camera {self.name} has {what}: it is not open")
        age = "there was none yet" if math.isinf(health.age_s) else f"the newest is {health.age_s:.2f} s old"
        why = f" ({health.message})" if health.message else ""
        return StaleFrame(f"camera {self.name} has {what}: {age}, it is {health.state.value}{why}")


class DepthView:
    """The depth plane of a `CaptureCamera`, as a Camera: `Sample.data` `(H, W)` uint16 in units of
    `depth_scale_m`, 0 where unknown. It opens and closes with its camera; equal `seq` is the same instant."""

    def __init__(self, camera: CaptureCamera) -> None:
        self._camera = camera
        self.name = f"{camera.name}.depth"
        self.height, self.width, self.fps = camera.height, camera.width, camera.fps

    def open(self) -> None:
        """Only its camera can be opened; DeviceError when that is not."""
        if self._camera.ring is None:
            raise DeviceError(f"open the camera {self._camera.name} first: {self.name} is a part of it")

    def close(self) -> None:
        """Nothing of its own to release."""

    def latest(self, max_age_s: float | None = None) -> Sample:
        return self._camera._latest(max_age_s, "depth")

    def next(self, after_seq: int, timeout_s: float) -> Sample:
        return self._camera._next(after_seq, timeout_s, "depth")

    def window(self, k: int) -> list[Sample]:
        return self._camera._window(k, "depth")

    def since(self, after_seq: int) -> list[Sample]:
        return self._camera._since(after_seq, "depth")

    def health(self) -> CameraHealth:
        return self._camera.health()

    @property
    def intrinsics(self) -> Intrinsics | None:
        return self._camera.intrinsics

    @property
    def depth_scale_m(self) -> float | None:
        """m per unit; None before `open`."""
        return None if (info := self._camera.info) is None else info.depth_scale_m


def _sample(frame: Frame, plane: str) -> Sample:
    data = frame.color if plane == "color" else frame.depth
    assert data is not None, "a ring of a camera with depth has the plane"
    return Sample(data, frame.t_capture_ns, frame.t_receive_ns, frame.seq)


class _Supervisor:
    """Keeps one capture process alive: its thread waits until the process ends or stops beating, and then
    starts another."""

    def __init__(self, name: str, ring: FrameRing, request: Mapping[str, Any], hung_s: float) -> None:
        self._ring, self._request = ring, json.dumps(request).encode() + b"\n"
        self._hung_s = hung_s
        self.trouble = ""  # why no capture process works at the moment
        self._stopping = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        quiet = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # our messages say the same
        process = subprocess.Popen(
            [sys.executable, "-m", "ulna.drivers.cameras.capture_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**quiet, **os.environ},
            start_new_session=True,  # Ctrl-C in the terminal is for the control process alone
        )
        assert process.stdin is not None
        try:
            process.stdin.write(self._request)
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended at once: `_run` reads why
        self._start_ns = time.monotonic_ns()
        return process

    def _run(self) -> None:
        pause_s = 0.1
        while True:
            last_words = self._watch()
            if self._stopping.is_set():
                return
            if self._ring.status().get("state") == CameraState.FAILED.value:
                return  # it ended because it was refused: another would be, too
            run_s = (time.monotonic_ns() - self._start_ns) * 1e-9
            pause_s = 0.1 if run_s > 10 else min(2 * pause_s, 5.0)
            code = self._process.returncode
            why = last_words or (f"signal {-code}" if code < 0 else f"exit status {code}")
            self.trouble = f"its capture process died ({why}), another is started"
            if self._stopping.wait(pause_s):
                return
            self._process = self._start()

    def _watch(self) -> str:
        """Wait until the process has ended. Returns the last line that it wrote to stderr."""
        process, stderr, stop_ns = self._process, b"", None
        assert process.stdin is not None
        assert process.stderr is not None
        with process.stdin, process.stderr:
            while process.poll() is None:
                if self._stopping.is_set() and stop_ns is None:
                    stop_ns = time.monotonic_ns()
                    process.stdin.close()
                    process.terminate()  # too: a child of ours may hold the other end of stdin open
                if select.select([process.stderr], [], [], 0.05)[0]:
                    stderr = (stderr + os.read(process.stderr.fileno(), 4096))[-4096:]
                    # at the end of file select returns at once, until the process is reaped
                    time.sleep(0.002)
                beat_ns = self._ring.beat_ns
                if beat_ns > self._start_ns:
                    self.trouble = ""
                silent_s = (time.monotonic_ns() - (stop_ns or max(self._start_ns, beat_ns))) * 1e-9
                if silent_s > (self._hung_s if stop_ns is None else 3.0):
                    process.kill()
                    stderr = b"it hung and was killed"
                    process.wait()
            while select.select([process.stderr], [], [], 0)[0] and (
                chunk := os.read(process.stderr.fileno(), 4096)
            ):
                stderr = (stderr + chunk)[-4096:]
        lines = stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
