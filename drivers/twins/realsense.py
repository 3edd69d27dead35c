"""The twin of a RealSense camera: frames of colour and depth on a local socket, which the driver pushes into
librealsense.

`python -m ulna.drivers.twins.realsense` serves the frames of a `FrameRing`, or a test picture, as
`from_json` says (see `process`); it answers `{"address": …}`. `record` makes a recording.

On the wire a message is the length of its header (4 bytes, big-endian), the header (JSON) and the planes that
it announces in `bytes`. The camera speaks first, with its `CameraModel`; then come frames: `number`,
`color_ns` and `depth_ns` on its own clock."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..arm import DeviceError
from ..cameras.frame_ring import FrameRing
from ..cameras.librealsense import CameraModel, Pinhole, SoftwareCamera, load
from . import process
from .faults import CameraFaults, set_faults

HEADER_MAX = 1 << 16
CONNECT_S = 3.0  # until a camera has sent its model
# color (H, W, 3) uint8, depth (H, W) uint16, t_ns on time.monotonic_ns
Picture = tuple[np.ndarray, np.ndarray, int]


class RealSenseTwin:
    """One camera, for one client at a time, in a thread of its own: `with RealSenseTwin(model, render) as
    twin: twin.address`.

    frames: a ring with depth, of which every frame is sent, or a function that gives a picture, called
    `model.fps` times a second. address: `unix:PATH` or `tcp:HOST:PORT`; port 0 is any free one, and stays the
    same while unplugged. The camera's clock starts at 0 with it. depth_late_s: by how much the depth sensor
    exposes after the color sensor."""

    def __init__(
        self,
        model: CameraModel,
        frames: FrameRing | Callable[[], Picture],
        faults: CameraFaults | None = None,
        address: str = "tcp:127.0.0.1:0",
        depth_late_s: float = 0.001,
        seed: int = 0,
    ) -> None:
        if isinstance(frames, FrameRing) and not frames.has_depth:
            raise DeviceError(f"the ring {frames.path} has no depth: a RealSense twin needs it")
        self.model, self.faults, self.address = model, faults or CameraFaults(), address
        self._frames, self._depth_late_ns = frames, round(depth_late_s * 1e9)
        self._rng = np.random.default_rng(seed)
        self._stopping, self._reset = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="realsense twin", daemon=True)
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None

    def start(self) -> None:
        self._listen()
        self._start_ns = time.monotonic_ns()
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def power_cycle(self) -> None:
        """Its connection is closed, and its clock starts at 0 again."""
        self._reset.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        number = 0
        last: Picture | None = None
        try:
            for picture in self._pictures():
                faults = self.faults
                if self._reset.is_set():
                    self._reset.clear()
                    self._unplug()
                    self._start_ns = time.monotonic_ns()
                if faults.unplugged:
                    self._unplug()
                    continue
                with contextlib.suppress(DeviceError):  # somebody took the port meanwhile: it may come free
                    self._listen()
                    self._meet_clients()
                if picture is None or faults.stalled:
                    continue
                number += 1
                if faults.frozen and last is not None:
                    picture = last[0], last[1], picture[2]
                last = picture
                if self._client is not None:
                    self._send_picture(number, picture, faults)
        finally:
            self._unplug()

    def _pictures(self) -> Iterable[Picture | None]:
        """Pictures at the camera's rate, and None at least every 50 ms between them, so that `_run` sees to
        clients and faults."""
        last_seq, due = -1, time.monotonic()
        while not self._stopping.is_set():
            now, period = time.monotonic(), 1 / (self.model.fps * max(self.faults.slow, 1e-3))
            if isinstance(self._frames, FrameRing):
                frame = self._frames.next(last_seq, 0.05)
                last_seq = last_seq if frame is None else frame.seq
                # a ring has its own pace: at the full rate all of its frames are sent, else some of them
                if frame is None or frame.depth is None or (self.faults.slow < 1 and now < due):
                    yield None
                    continue
                due = max(due + period, now)
                yield frame.color, frame.depth, frame.t_capture_ns
            elif now < due:
                self._stopping.wait(min(due - now, 0.05))
                if time.monotonic() < due:
                    yield None
            else:
                due = max(due + period, now - period)  # pictures missed in a pause are not made up for
                yield self._frames()

    def _send_picture(self, number: int, picture: Picture, faults: CameraFaults) -> None:
        assert self._client is not None
        color, depth, t_ns = picture
        if faults.black:
            color, depth = np.zeros_like(color), np.zeros_like(depth)
        device_ns = t_ns - self._start_ns + round(faults.clock_step_s * 1e9)
        planes = [np.ascontiguousarray(color).data.cast("B"), np.ascontiguousarray(depth).data.cast("B")]
        if self._rng.random() < faults.corrupt:
            planes[0] = planes[0][: len(planes[0]) // 2]  # USB loses packets: a picture that ends early
        header = {"number": number, "color_ns": device_ns, "depth_ns": device_ns + self._depth_late_ns}
        try:
            send(self._client, header, *planes)
        except OSError:
            self._hang_up()

    def _meet_clients(self) -> None:
        # a client never speaks, so there is something to read only at its end
        if self._client is not None and select.select([self._client], [], [], 0)[0]:
            self._hang_up()
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        client.settimeout(5.0)  # a client that takes nothing for so long is given up
        try:
            if self._client is not None:
                send(client, {"error": "another process has it open"})
                client.close()
                return
            send(client, {"camera": json.loads(self.model.to_json())})
        except OSError:
            client.close()
            return
        self._client = client

    def _listen(self) -> None:
        if self._listener is not None:
            return
        family, where = socket_address(self.address)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_UNIX:
                Path(str(where)).unlink(missing_ok=True)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen()
            listener.setblocking(False)
        except OSError as e:
            listener.close()
            raise DeviceError(
                f"the twin of a RealSense camera cannot listen at {self.address}: {e.strerror}"
            ) from e
        if family == socket.AF_INET:
            self.address = "tcp:{}:{}".format(*listener.getsockname())
        self._listener = listener

    def _unplug(self) -> None:
        self._hang_up()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if self.address.startswith("unix:"):
                Path(self.address[5:]).unlink(missing_ok=True)

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def socket_address(address: str) -> tuple[int, Any]:
    """(family, what `bind` and `connect` take) of `unix:PATH` or `tcp:HOST:PORT`. DeviceError: neither."""
    kind, _, rest = address.partition(":")
    host, colon, port = rest.rpartition(":")
    if kind == "unix" and rest:
        return socket.AF_UNIX, rest
    if kind == "tcp" and colon and port.isdigit() and int(port) < 65536:
        return socket.AF_INET, (host, int(port))
    raise DeviceError(f"the address of a RealSense twin is unix:PATH or tcp:HOST:PORT, not {address!r}")


def send(to: socket.socket, header: dict[str, Any], *planes: memoryview) -> None:
    """One message. OSError: the other side is gone, or takes nothing for the socket's timeout."""
    text = json.dumps({**header, "bytes": [len(p) for p in planes]}).encode()
    to.sendall(struct.pack(">I", len(text)) + text)
    for plane in planes:
        to.sendall(plane)


def receive(of: socket.socket, plane_max: int) -> tuple[dict[str, Any], list[bytearray]]:
    """(header, planes) of one message. EOFError: the connection is closed. ValueError: not a message of this
    protocol."""
    (length,) = struct.unpack(">I", _receive(of, 4))
    if length > HEADER_MAX:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(_receive(of, length))
    sizes = header.get("bytes") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(isinstance(n, int) and 0 <= n <= plane_max for n in sizes):
        raise ValueError("a header without sizes, or with too large ones")
    return header, [_receive(of, n) for n in sizes]


def _receive(of: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    unread = memoryview(data)
    while unread:
        n = of.recv_into(unread)
        if n == 0:
            raise EOFError("the connection was closed")
        unread = unread[n:]
    return data


def meet(address: str) -> tuple[socket.socket, CameraModel]:
    """A connection to a twin, and the twin's camera model. DeviceError: no twin answers, it is in use, or
    something else answers."""
    family, where = socket_address(address)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_S)
        connection.connect(where)
        hello, _ = receive(connection, 0)
        if "error" in hello:
            raise DeviceError(f"the RealSense camera at {address} cannot be had: {hello['error']}")
        model = CameraModel.from_json(json.dumps(hello.get("camera")))
        connection.settimeout(None)
    except BaseException as e:
        connection.close()
        if isinstance(e, OSError | EOFError):
            raise DeviceError(f"no RealSense camera answers at {address}: {e}") from e
        if isinstance(e, ValueError):
            raise DeviceError(f"what answers at {address} is not a RealSense twin: {e}") from e
        raise
    return connection, model


def record(path: Path, model: CameraModel, pictures: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
    """Make a recording that `rs.pipeline` plays like a camera's. It takes as long as the recording will last,
    since the recorder stores when frames came. pictures: color, and depth or None where that sensor gave
    none. path: ends in `.db3` for librealsense from 2.57 on, in `.bag` before."""
    rs = load()
    camera = SoftwareCamera(model)
    path.unlink(missing_ok=True)
    try:
        recorder = rs.recorder(str(path), camera.device)
    except RuntimeError as e:
        raise DeviceError(f"librealsense {rs.__version__} cannot record {path}: {e}") from e
    camera.start(rs.frame_queue(8), recorder)
    start_ns, due = time.monotonic_ns(), time.monotonic()
    for number, (color, depth) in enumerate(pictures):
        t_ns = number * 1_000_000_000 // model.fps
        time.sleep(max(0.0, due + t_ns * 1e-9 - time.monotonic()))
        camera.push(color, depth, number, start_ns + t_ns, start_ns + t_ns)
    camera.stop()


def board_picture(model: CameraModel) -> Picture:
    """A board of bright and dark squares 1 m away; before it, 0.6 m away, swings a red square."""
    now = time.monotonic_ns()
    y, x = np.mgrid[: model.height, : model.width]
    side = max(model.height // 8, 1)
    board = ((x // side + y // side) % 2 * 120 + 60).astype(np.uint8)
    color, depth = np.stack([board] * 3, axis=-1), np.full(board.shape, 1 / model.depth_scale_m)
    left = int((0.5 + 0.4 * np.sin(now * 2e-9)) * (model.width - 2 * side))
    box = np.s_[3 * side : 5 * side, left : left + 2 * side]
    color[box], depth[box] = (200, 30, 30), 0.6 / model.depth_scale_m
    return color, np.round(depth).astype(np.uint16), now


def from_json(description: Mapping[str, Any]) -> RealSenseTwin:
    """A twin, not started, of `height`, `width` and `fps`. Optional: `ring` (path; default a test picture),
    `serial`, `lens` (fx, fy, cx, cy in px, of color and of the depth that is aligned to it; default as wide
    as a D435's color), `depth_scale_m`, `link` (path of a unix socket) or `port`, `faults`."""
    height, width = description["height"], description["width"]
    focal = 0.5 * width / np.tan(np.radians(69.0) / 2)  # D435 data sheet: color sensor, 69 degrees across
    lens = Pinhole(**description.get("lens") or {"fx": focal, "fy": focal, "cx": width / 2, "cy": height / 2})
    serial, scale = description.get("serial") or "000000000000", description.get("depth_scale_m", 0.001)
    model = CameraModel(serial, height, width, round(description["fps"]), lens, lens, depth_scale_m=scale)
    ring = FrameRing(Path(description["ring"])) if description.get("ring") else None
    faults = CameraFaults()
    set_faults(faults, description.get("faults") or {})
    address = (
        f"unix:{description['link']}"
        if description.get("link")
        else f"tcp:127.0.0.1:{description.get('port', 0)}"
    )
    return RealSenseTwin(model, ring or (lambda: board_picture(model)), faults, address)


if __name__ == "__main__":
    sys.exit(process.run(from_json, lambda twin: {"address": twin.address}))
