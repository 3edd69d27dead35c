"""A camera on the network: MJPEG over HTTP (`multipart/x-mixed-replace`), as IP cameras and mjpg-streamer
offer it, with faults on demand.

Each part carries `X-Timestamp`, seconds of the device's own clock at capture, as mjpg-streamer sends it.
`python -m ulna.drivers.twins.mjpeg` runs one in a process of its own, described by `from_json` (see
`process`); it answers `{"url": …}`."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..arm import DeviceError
from ..cameras.frame_ring import FrameRing
from ..config import require_known
from . import process
from .faults import CameraFaults, set_faults

BOUNDARY = "ulnaframe"
MARK = 12  # px, of one bit of a painted number

type Render = Callable[[], tuple[np.ndarray, int]]


class MjpegTwin:
    """Serves frames to any number of clients; each gets the newest frame only. `with MjpegTwin(…) as twin:
    twin.url`

    render: a function called `fps` times a second that gives an `(H, W, 3)` uint8 RGB frame and its capture
    time on `time.monotonic_ns`; or a `FrameRing`, whose frames are sent at most `fps` a second. faults: read
    for every frame. noise: grey levels that the sensor adds; without, frames of a still scene are alike in
    every pixel, as from no real camera, and count as a frozen stream. paint: write frame number and capture
    time into the pixels (`read_mark`). port: 0 is any free one; it stays the same while the twin is unplugged
    and plugged in again.

    skipped: the last 1024 painted numbers for which a connection was too slow. HTTP has no frame numbers, so
    a client cannot count these."""

    def __init__(
        self,
        render: Render | FrameRing,
        fps: float = 30.0,
        size: tuple[int, int] = (480, 640),
        faults: CameraFaults | None = None,
        port: int = 0,
        quality: int = 85,
        noise: int = 3,
        paint: bool = False,
        timestamps: bool = True,
        seed: int = 0,
    ) -> None:
        self.faults = CameraFaults() if faults is None else faults
        self.fps, self.size, self.port = fps, size, port
        self._render, self._quality, self._paint, self._timestamps = render, quality, paint, timestamps
        self._random = random.Random(seed)
        shape = (size[0] + 64, size[1], 3)
        self._noise = np.random.default_rng(seed).integers(0, noise + 1, shape, np.uint8)
        self._fresh = threading.Condition()
        self._part, self._number = b"", 0
        self.skipped: deque[int] = deque(maxlen=1024)
        self._stopping, self._reset = threading.Event(), threading.Event()
        self._listener: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def start(self) -> None:
        """DeviceError: the port is taken."""
        self._stopping.clear()
        self._listen()
        self._threads = [
            threading.Thread(target=run, name=f"mjpeg twin {self.port}", daemon=True)
            for run in (self._produce, self._accept)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close every connection; safe to call twice."""
        self._stopping.set()
        self._hang_up()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def power_cycle(self) -> None:
        """Every connection is closed; new ones are taken at once."""
        self._reset.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Frames

    def _produce(self) -> None:
        """The sensor: one encoded part per period, on an absolute schedule."""
        due, last, last_color = time.monotonic(), -1, None
        while not self._stopping.is_set():
            faults = self.faults
            due = max(due + 1 / (self.fps * max(faults.slow, 0.01)), time.monotonic() - 0.1)
            if faults.stalled or faults.unplugged:
                self._stopping.wait(0.02)
                due = time.monotonic()
                continue
            if isinstance(self._render, FrameRing):
                frame = self._render.next(last, 0.1)
                if frame is None:
                    continue
                last, color, capture_ns = frame.seq, frame.color, frame.t_capture_ns
            else:
                color, capture_ns = self._render()
            color = self._with_noise(color)
            if faults.black:
                color = np.zeros_like(color)
            elif faults.frozen:
                color = color if last_color is None else last_color
            else:
                if self._paint:
                    color = mark(color, self._number, capture_ns)
                last_color = color
            self._publish(self._encode(color, capture_ns, faults))
            self._stopping.wait(max(0.0, due - time.monotonic()))

    def _with_noise(self, color: np.ndarray) -> np.ndarray:
        import cv2

        if color.shape != (*self.size, 3):
            raise ValueError(f"a frame of {color.shape}, the twin promises {(*self.size, 3)}")
        at = self._random.randrange(64)
        return cv2.add(color, self._noise[at : at + self.size[0]])

    def _encode(self, color: np.ndarray, capture_ns: int, faults: CameraFaults) -> bytes:
        import cv2

        bgr = cv2.cvtColor(color, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])[1].tobytes()
        if self._random.random() < faults.corrupt:
            jpeg = self._with_damage(jpeg)
        age_s = (time.monotonic_ns() - capture_ns) * 1e-9
        stamp = (
            f"X-Timestamp: {time.time() - age_s + faults.clock_step_s:.6f}\r\n" if self._timestamps else ""
        )
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n{stamp}\r\n"
        return head.encode() + jpeg + b"\r\n"

    def _with_damage(self, jpeg: bytes) -> bytes:
        """`jpeg` cut short, as when a packet is lost, or with other bytes in it, as on a bad cable; each in
        half of the cases."""
        cut = self._random.randrange(len(jpeg) // 4, 3 * len(jpeg) // 4)
        if self._random.random() < 0.5:
            return jpeg[:cut]
        noise = self._random.randbytes(min(64, len(jpeg) - cut - 2))
        return jpeg[:cut] + noise + jpeg[cut + len(noise) :]

    def _publish(self, part: bytes) -> None:
        with self._fresh:
            self._part, self._number = part, self._number + 1
            self._fresh.notify_all()

    # Connections

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self.port))
        except OSError as e:
            listener.close()
            raise DeviceError(f"the port {self.port} cannot be used: {e.strerror}") from None
        listener.listen()
        listener.settimeout(0.05)
        self.port, self._listener = listener.getsockname()[1], listener

    def _hang_up(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def _accept(self) -> None:
        serving: list[threading.Thread] = []
        while not self._stopping.is_set():
            if self._reset.is_set():
                self._reset.clear()
                self._hang_up()
            if self.faults.unplugged:
                self._hang_up()
                self._stopping.wait(0.02)
                continue
            if (listener := self._listener) is None:
                with contextlib.suppress(DeviceError):  # the port is not free yet: again
                    self._listen()
                continue
            try:
                client, _ = listener.accept()
            except OSError:  # none within 50 ms, or closed by `stop`
                continue
            self._clients.add(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            thread.start()
            serving = [t for t in serving if t.is_alive()] + [thread]
        self._hang_up()
        for thread in serving:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # the other side may end it
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(2.0)
            request = b""
            while b"\r\n\r\n" not in request and len(request) < 65536:
                if not (chunk := client.recv(4096)):
                    raise ConnectionResetError
                request += chunk
            client.sendall(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-store\r\n"
                + f"Content-Type: multipart/x-mixed-replace; boundary={BOUNDARY}\r\n\r\n".encode()
            )
            sent_number = self._number  # one more than the painted number of the newest part
            while not self._stopping.is_set():
                with self._fresh:
                    if not self._fresh.wait_for(
                        lambda sent_number=sent_number: self._number > sent_number, 0.1
                    ):
                        continue
                    self.skipped.extend(range(sent_number, self._number - 1))
                    part, sent_number = self._part, self._number
                client.sendall(part)
        self._clients.discard(client)


def mark(color: np.ndarray, number: int, t_ns: int) -> np.ndarray:
    """A copy with the low 16 bits of `number` and the microseconds of `t_ns` (40 bits: 12 days) as black and
    white squares along the top, which survive JPEG."""
    out = color.copy()
    per_row = out.shape[1] // MARK
    value = (number & 0xFFFF) << 40 | (t_ns // 1000) & 0xFFFFFFFFFF
    for bit in range(56):
        row, column = divmod(bit, per_row)
        out[row * MARK : (row + 1) * MARK, column * MARK : (column + 1) * MARK] = 255 * (value >> bit & 1)
    return out


def read_mark(color: np.ndarray) -> tuple[int, int]:
    """(number, t_us) of a frame painted by `mark`, compare with `time.monotonic_ns() // 1000 &
    0xFFFFFFFFFF`."""
    per_row, value = color.shape[1] // MARK, 0
    for bit in range(56):
        row, column = divmod(bit, per_row)
        square = color[row * MARK + 3 : row * MARK + 9, column * MARK + 3 : column * MARK + 9]
        value |= int(square.mean() > 127) << bit
    return value >> 40, value & 0xFFFFFFFFFF


def wandering_bars(height: int, width: int) -> Render:
    """Colour bars that wander to the right."""
    colors = np.random.default_rng(0).integers(40, 220, (8, 3), dtype=np.uint8)
    bars = np.repeat(colors, -(-width // 8), axis=0)[:width]
    count = 0

    def render() -> tuple[np.ndarray, int]:
        nonlocal count
        count += 1
        t_ns = time.monotonic_ns()
        return np.broadcast_to(np.roll(bars, 2 * count, axis=0), (height, width, 3)), t_ns

    return render


def from_json(description: Mapping[str, Any]) -> MjpegTwin:
    """A twin, not started, of the fields `ring`, `height`, `width`, `fps`, `port`, `faults` and `paint`, each
    of which may be left out; without a ring it shows `wandering_bars`. DeviceError names a wrong field."""
    fields = ("ring", "height", "width", "fps", "port", "faults", "paint")
    for name in description:
        require_known("field", name, fields)
    size = (description.get("height", 480), description.get("width", 640))
    faults = CameraFaults()
    set_faults(faults, description.get("faults", {}))
    render = FrameRing(Path(description["ring"])) if description.get("ring") else wandering_bars(*size)
    fps, port, paint = (
        description.get("fps", 30.0),
        description.get("port", 0),
        description.get("paint", False),
    )
    return MjpegTwin(render, fps, size, faults, port, paint=paint)


if __name__ == "__main__":
    sys.exit(process.run(from_json, lambda twin: {"url": twin.url}))
