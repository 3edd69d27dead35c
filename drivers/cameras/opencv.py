"""Webcams (V4L2) and network cameras (MJPEG over HTTP, RTSP), through OpenCV.

OpenCV confirms settings that it does not make, its `isOpened` stays true when the cable is out, and its
handles do not recover. So settings are read back, a refused mode is reported with the camera's own list of
modes, and a lost stream is opened again (`drivers.cameras.capture_process`)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..arm import DeviceError
from ..camera import Intrinsics
from ..config import parse, setting
from . import v4l2
from .capture import CaptureCamera, FrameSource, Refused, SourceInfo
from .frame_ring import Frame
from .http_mjpeg import HttpMjpeg, NotMultipart, without_password

STABLE = (Path("/dev/v4l/by-id"), Path("/dev/v4l/by-path"))
SETTLE_S = (
    0.2  # how long a network camera's frames are only compared with its clock before the first is given
)
# enum v4l2_exposure_auto_type of linux/v4l2-controls.h: fully automatic, manual, with a fixed aperture;
# webcams have the last two
AUTOMATIC, MANUAL, APERTURE_PRIORITY = 0, 1, 3


@dataclass(frozen=True)
class Config:
    """The fields of `[cameras.NAME]` with `driver = "opencv"`."""

    device: str
    """`/dev/v4l/by-id/…` or `/dev/v4l/by-path/…`, or an http, https or rtsp address."""
    height: int = setting(480, 16, 8192, "px")
    """Of the frames as the camera sends them, before `rotate`."""
    width: int = setting(640, 16, 8192, "px")
    """Of the frames as the camera sends them, before `rotate`."""
    fps: float = setting(30.0, 0.5, 1000, "Hz")
    """Frames a second."""
    fourcc: str = ""
    """Pixel format on the wire, such as MJPG or YUYV; empty: the camera's choice."""
    rotate: int = 0
    """Degrees clockwise: 0, 90, 180 or 270."""
    exposure: float | None = setting(None, 0, 1e6)
    """In the camera's units (UVC: 100 µs); None: automatic."""
    gain: float | None = setting(None, -1e4, 1e4)
    """In the camera's units; None leaves it as it is (most cameras choose it with an automatic exposure)."""
    white_balance_K: float | None = setting(None, 1000, 20000, "K")
    """Colour temperature; None: automatic."""
    latency_s: float = setting(0.0, 0, 2, "s")
    """From capture to arrival, subtracted where the device gives no time of its own."""
    matrix: tuple = ()
    """9 numbers by rows, the pinhole matrix of the frames as delivered; empty: unknown."""
    distortion: tuple = ()
    """5 numbers, Brown-Conrady; empty: none is known."""
    reader: str = "auto"
    """Of an http address: `multipart` (MJPEG, read here), `ffmpeg`, or `auto`, which tries them."""


def make(name: str, config: Config) -> CaptureCamera:
    """A closed camera. DeviceError: `device` is not a stable name, or settings are wrong."""
    _check(config, f"camera {name}")
    height, width = _frame_size(config)
    return CaptureCamera(name, "ulna.drivers.cameras.opencv", asdict(config), height, width, config.fps)


def source(config: Mapping[str, Any]) -> FrameSource:
    """The source of frames for the capture process. config: fields of `Config`. DeviceError as `make`."""
    import cv2

    cv2.setNumThreads(1)  # or one camera takes every core from the others and from control
    settings = parse(Config, config, "the camera's config")
    _check(settings, "the camera")
    if settings.device.startswith(("http://", "https://")) and settings.reader != "ffmpeg":
        return HttpSource(settings)
    return OpenCvSource(settings)


class HttpSource:
    """Pictures of motion JPEG read directly. A stream of another kind is left to FFmpeg, unless `reader`
    forbids it; so is one that shows no picture at its first opening."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stream = HttpMjpeg(config.device, config.latency_s, max(1.5, 15 / config.fps))
        self._first: Frame | None = None
        self._fallback: OpenCvSource | None = None
        self._has_streamed = False

    def open(self) -> SourceInfo:
        try:
            self._stream.open()
            info = self._open_first()
        except NotMultipart as why:
            if self.config.reader == "multipart":
                raise DeviceError(f'{why}; reader = "ffmpeg" reads other kinds of streams') from None
            self._stream.close()
            return self._open_ffmpeg(why)
        self._has_streamed = True
        return info

    def _open_first(self) -> SourceInfo:
        """NotMultipart: something came, but no picture, and none has come before."""
        config, name = self.config, self._stream.name
        # the quickest of the frames of the first SETTLE_S relates the two clocks; the last of them is given
        # first
        first, deadline = None, time.monotonic() + 3 + 2 / config.fps
        while time.monotonic() < deadline:
            if (frame := self.grab(0.05)) is not None:
                deadline = min(deadline, time.monotonic() + SETTLE_S) if first is None else deadline
                first = frame
        if first is None and self._stream.received and not self._has_streamed:
            raise NotMultipart(f'{name} answers but sends no picture that reader = "multipart" can find')
        if first is None:
            raise DeviceError(f"{name} answers but sends no picture")
        self._first = first
        height, width = first.color.shape[:2]
        _require_size(name, config, height, width)
        return SourceInfo(name, height, width, config.fps, _intrinsics(config))

    def _open_ffmpeg(self, why: NotMultipart) -> SourceInfo:
        self._fallback = OpenCvSource(self.config)
        try:
            info = self._fallback.open()
        except Refused:
            raise
        except DeviceError as error:
            raise DeviceError(f'{why}, nor does reader = "ffmpeg": {error}') from None
        return replace(info, message='it is read by reader = "ffmpeg"')

    def grab(self, timeout_s: float) -> Frame | None:
        if self._fallback is not None:
            return self._fallback.grab(timeout_s)
        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        if (read := self._stream.read(timeout_s)) is None:
            return None
        color, capture_ns, receive_ns, number = read
        return Frame(_rotate(color, self.config.rotate), None, capture_ns, receive_ns, number)

    def close(self) -> None:
        self._first = None
        self._stream.close()
        if self._fallback is not None:
            self._fallback.close()
            self._fallback = None


class OpenCvSource:
    """`cv2.VideoCapture` on a V4L2 node, or on an address through FFmpeg."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = without_password(config.device)
        self._local = config.device.startswith("/")
        self._capture: Any = None
        self._first: Frame | None = None
        self._count = 0

    def open(self) -> SourceInfo:
        # OpenCV waits 10 s for a frame of a V4L2 camera unless this is set before it is loaded
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")
        import cv2

        c = self.config
        if self._local:
            node = _look_at(Path(c.device))
            self._capture = cap = cv2.VideoCapture(os.path.realpath(c.device), cv2.CAP_V4L2)
            if not cap.isOpened():
                raise DeviceError(f"{self.name} is busy: close the program that uses it")
            self._set(node)
        else:
            timeouts = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                5000,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                round(1000 * max(1.5, 15 / c.fps)),
            ]
            self._capture = cap = cv2.VideoCapture(c.device, cv2.CAP_FFMPEG, timeouts)
            if not cap.isOpened():
                raise DeviceError(
                    f"no stream can be opened at {self.name}: is the camera on, is the path right?"
                )
        first = self.grab(0)
        height, width = first.color.shape[:2]
        _require_size(self.name, c, height, width)
        # FFmpeg keeps the frames that came while it probed the stream: read until one has to be waited for
        start = last_wait = time.monotonic()
        while not self._local and last_wait - start < 2:
            first = self.grab(0)
            if (now := time.monotonic()) - last_wait > 0.5 / c.fps:
                break
            last_wait = now
        self._first = first
        return SourceInfo(self.name, height, width, c.fps, _intrinsics(c))

    def grab(self, timeout_s: float) -> Frame:
        """Waits as long as OpenCV's own timeout, whatever `timeout_s`, since OpenCV has none for one read."""
        import cv2

        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        ok, bgr = self._capture.read()
        receive_ns = time.monotonic_ns()
        if not ok:
            raise DeviceError(f"{self.name} stopped sending: it was unplugged, switched off or stalled")
        capture_ns = receive_ns - round(self.config.latency_s * 1e9)
        if self._local:
            stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            capture_ns = _capture_ns(stamp_ns, receive_ns, capture_ns)
        self._count += 1
        color = _rotate(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), self.config.rotate)
        return Frame(color, None, capture_ns, receive_ns, self._count)

    def close(self) -> None:
        self._first = None
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _set(self, node: v4l2.Node) -> None:
        """Set the mode and read it back. Refused: the camera has chosen another."""
        import cv2

        c, cap = self.config, self._capture
        if c.fourcc:
            cap.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*c.fourcc.ljust(4)))
        cap.set(cv2.CAP_PROP_FRAME_WIDTH, c.width)
        cap.set(cv2.CAP_PROP_FRAME_HEIGHT, c.height)
        cap.set(cv2.CAP_PROP_FPS, c.fps)
        width, height = round(cap.get(cv2.CAP_PROP_FRAME_WIDTH)), round(cap.get(cv2.CAP_PROP_FRAME_HEIGHT))
        fps = cap.get(cv2.CAP_PROP_FPS)
        fourcc = round(cap.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1").strip()
        request = (c.width, c.height, c.fourcc.strip() or fourcc)
        if (width, height, fourcc) != request or (fps > 0 and abs(fps - c.fps) > 0.05 * c.fps):
            raise Refused(
                f"{self.name} ({node.card}) gives {fourcc} {width} × {height} at {fps:g} fps where "
                f"{request[2]} {c.width} × {c.height} at {c.fps:g} fps was asked for; it has "
                f"{_mode_list(node.modes)}"
            )
        controls = {
            "exposure": (cv2.CAP_PROP_EXPOSURE, c.exposure),
            "gain": (cv2.CAP_PROP_GAIN, c.gain),
            "white_balance_K": (cv2.CAP_PROP_WB_TEMPERATURE, c.white_balance_K),
        }
        # a camera keeps the settings of the program before; one that lacks a control refuses, without harm
        if c.exposure is not None:
            cap.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL)
        elif not cap.set(cv2.CAP_PROP_AUTO_EXPOSURE, APERTURE_PRIORITY):
            cap.set(cv2.CAP_PROP_AUTO_EXPOSURE, AUTOMATIC)
        cap.set(cv2.CAP_PROP_AUTO_WB, float(c.white_balance_K is None))
        for what, (prop, value) in controls.items():
            if value is not None:
                cap.set(prop, value)
                if abs((actual := cap.get(prop)) - value) > max(1, 0.05 * abs(value)):
                    raise Refused(
                        f"{self.name} does not take {what} = {value:g} (it stays at {actual:g}): leave it "
                        "out, or see the range with v4l2-ctl --list-ctrls"
                    )


def _check(config: Config, who: str) -> None:
    device = config.device
    if re.fullmatch(r"(/dev/video)?\d+", device):
        names = _names_of(Path(device if device.startswith("/") else f"/dev/video{device}"))
        hint = f"write {names[0]}" if names else "look for its name in /dev/v4l/by-id or /dev/v4l/by-path"
        raise DeviceError(f"{who}: {device} is another camera after the next reboot or replug; {hint}")
    if not device.startswith(("/", "http://", "https://", "rtsp://")):
        raise DeviceError(
            f"{who}: device is {device!r}, it must be a path under /dev/v4l or begin with http://, "
            "https:// or rtsp://"
        )
    if "://" in device:
        try:
            parts = urlsplit(device)
            readable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            readable = False
        if not readable:  # the message does not show the device: a piece of it may be the password
            raise DeviceError(
                f"{who}: the host or the port in device cannot be read: write it like "
                "http://192.168.1.10:8080/stream, with %23, %2F and %40 for #, / and @ in a password"
            )
    if config.rotate not in (0, 90, 180, 270):
        raise DeviceError(f"{who}: rotate is {config.rotate}, it must be 0, 90, 180 or 270")
    # Y16 ends with a blank, which users leave out
    if config.fourcc and not re.fullmatch(r"[!-~]{3}[ -~]?", config.fourcc):
        raise DeviceError(f"{who}: fourcc is {config.fourcc!r}, it must be four letters such as MJPG")
    if config.reader not in ("auto", "multipart", "ffmpeg"):
        raise DeviceError(f"{who}: reader is {config.reader!r}, it must be auto, multipart or ffmpeg")
    try:
        _intrinsics(config)
    except (ValueError, TypeError):
        raise DeviceError(f"{who}: matrix must be 9 numbers by rows, distortion 5 numbers") from None


def _look_at(path: Path) -> v4l2.Node:
    """The camera node at `path`. DeviceError: nothing is plugged in there now. Refused: it is no camera, or
    not permitted."""
    try:
        node = v4l2.ask(path)
    except PermissionError:
        raise Refused(f"no permission for {path}: add yourself to the group video and log in again") from None
    except OSError:
        names = sorted(str(p) for folder in STABLE if folder.is_dir() for p in folder.iterdir())
        raise DeviceError(
            f"no camera is plugged in at {path}; there is {', '.join(names) or 'none at all'}"
        ) from None
    if node is None:
        raise Refused(f"{path} is no V4L2 camera")
    if not node.capture:
        raise Refused(f"{path} ({node.card}) gives no pictures: take the name that ends in video-index0")
    return node


def _names_of(node: Path) -> list[str]:
    links = (p for folder in STABLE if folder.is_dir() for p in sorted(folder.iterdir()))
    return [str(p) for p in links if os.path.realpath(p) == str(node)]


def _mode_list(modes: tuple[v4l2.Mode, ...]) -> str:
    lines = [
        f"{m.fourcc} {m.width} × {m.height}"
        + (f" at {', '.join(f'{f:g}' for f in m.fps)} fps" if m.fps else "")
        for m in modes
    ]
    rest = f" and {len(lines) - 24} more" if len(lines) > 24 else ""
    return ("; ".join(lines[:24]) or "no list of modes") + rest


def _capture_ns(stamp_ns: int, receive_ns: int, otherwise_ns: int) -> int:
    """`stamp_ns` if it is a time of CLOCK_MONOTONIC, as a right driver gives it, else `otherwise_ns`. A
    little after `receive_ns` is rounding; far from it is another clock. Seconds before is possible: a frame
    that waited in the kernel while this process did not run, and must not pass for new."""
    if receive_ns - 60_000_000_000 < stamp_ns < receive_ns + 50_000_000:
        return min(stamp_ns, receive_ns)
    return otherwise_ns


def _frame_size(config: Config) -> tuple[int, int]:
    """(height, width) of the frames after rotation, px."""
    sideways = config.rotate in (90, 270)
    return (config.width, config.height) if sideways else (config.height, config.width)


def _require_size(name: str, config: Config, height: int, width: int) -> None:
    """Refused unless frames of `(height, width)`, after rotation, have the configured size."""
    if (height, width) != _frame_size(config):
        w, h = (height, width) if config.rotate in (90, 270) else (width, height)
        raise Refused(
            f"{name} sends {w} × {h}, not {config.width} × {config.height}: set width = {w} and height = "
            f"{h}, or change it in the camera"
        )


def _rotate(color: np.ndarray, degrees: int) -> np.ndarray:
    return color if degrees == 0 else np.ascontiguousarray(np.rot90(color, -degrees // 90))


def _intrinsics(config: Config) -> Intrinsics | None:
    if len(config.matrix) == 0:
        return None
    height, width = _frame_size(config)
    matrix = np.asarray(config.matrix, np.float64).reshape(3, 3)
    k1, k2, p1, p2, k3 = config.distortion or (0.0,) * 5
    return Intrinsics(matrix, width, height, (float(k1), float(k2), float(p1), float(p2), float(k3)))
