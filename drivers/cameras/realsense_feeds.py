"""Feeds of a RealSense camera's frames: the camera itself, a recording, or a twin.

librealsense raises the same bare RuntimeError for no camera, for one in use and for a mode that it lacks. So
a feed checks beforehand what it can, with messages of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..arm import DeviceError
from ..sysfs import ROOT, access_problem, text
from .capture import Ended, Refused
from .librealsense import SoftwareCamera, on_usb
from .realsense_config import Config

FIRST_FRAME_S = 5.0  # sensors take a second or two to settle; the library itself waits for so long


class Feed(Protocol):
    """A feed of framesets, opened when built. color: the stream profile. depth_scale_m: m per unit, 0 without
    depth. message: a sentence for the user, or empty. `wait` gives a frameset of librealsense, None when none
    came in time. `require_present` raises DeviceError when no more can come now, Ended when none ever can."""

    name: str
    serial: str
    message: str
    color: Any
    depth_scale_m: float

    def wait(self, timeout_s: float) -> Any | None: ...

    def require_present(self) -> None: ...

    def close(self) -> None: ...


class LiveFeed:
    """The camera with `config.serial`, or the only one there is."""

    def __init__(self, rs: Any, config: Config, context: Any = None) -> None:
        self._rs, self._context = rs, context or rs.context()
        device = find_device(rs, self._context.query_devices(), config.serial)
        self.serial = device.get_info(rs.camera_info.serial_number)
        self.name = device.get_info(rs.camera_info.name)
        require_mode(rs, device, config, f"{self.name} {self.serial}")
        usb = rs.camera_info.usb_type_descriptor
        slow = device.supports(usb) and device.get_info(usb).startswith("2")
        self.message = "it is on USB 2, which limits its modes: use a USB 3 port and cable" if slow else ""
        set_options(rs, device, config)
        rs_config = rs.config()
        rs_config.enable_device(self.serial)
        self._pipeline, profile = _start(rs, rs_config, config, f"{self.name} {self.serial}", self._context)
        if self.wait(FIRST_FRAME_S) is None:
            self.close()
            raise DeviceError(
                f"{self.name} {self.serial} starts and sends no frame: try another port or cable, or fewer "
                "cameras on the hub"
            )
        self.color = profile.get_stream(rs.stream.color).as_video_stream_profile()
        self.depth_scale_m = (
            profile.get_device().first_depth_sensor().get_depth_scale() if config.depth else 0.0
        )

    def wait(self, timeout_s: float) -> Any | None:
        return _wait(self._pipeline, timeout_s)

    def require_present(self) -> None:
        serials = [d.get_info(self._rs.camera_info.serial_number) for d in self._context.query_devices()]
        if self.serial not in serials:
            raise DeviceError(f"the RealSense camera {self.serial} was unplugged")

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # a camera that is gone cannot be stopped
            self._pipeline.stop()


class RecordingFeed:
    """`config.path` at the pace at which it was recorded."""

    message = ""

    def __init__(self, rs: Any, config: Config) -> None:
        self._rs, self._path, self._repeat = rs, config.path, config.repeat
        if not Path(config.path).is_file():
            raise Refused(f"there is no recording {config.path}")
        rs_config = rs.config()
        try:
            rs_config.enable_device_from_file(config.path, repeat_playback=config.repeat)
            device = rs_config.resolve(rs.pipeline_wrapper(rs.pipeline())).get_device()
        except RuntimeError as e:
            raise Refused(f"{config.path} is not a recording that librealsense can play: {e}") from e
        self.serial = device.get_info(rs.camera_info.serial_number)
        self.name = device.get_info(rs.camera_info.name)
        require_mode(rs, device, config, f"the recording {config.path}")
        if config.serial and config.serial != self.serial:
            raise Refused(
                f"the recording {config.path} is of the camera {self.serial}, not of {config.serial}"
            )
        del device  # only one may have the file open
        self._pipeline, profile = _start(rs, rs_config, config, f"the recording {config.path}")
        self._playback = profile.get_device().as_playback()
        self.color = profile.get_stream(rs.stream.color).as_video_stream_profile()
        self.depth_scale_m = (
            profile.get_device().first_depth_sensor().get_depth_scale() if config.depth else 0.0
        )

    def wait(self, timeout_s: float) -> Any | None:
        return _wait(self._pipeline, timeout_s)

    def require_present(self) -> None:
        if not self._repeat and self._playback.current_status() == self._rs.playback_status.stopped:
            raise Ended(f"the recording {self._path} is at its end; repeat = true plays it again")

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._pipeline.stop()


class TwinFeed:
    """Frames from a socket (`drivers.twins.realsense`), pushed into a `SoftwareCamera` as they arrive."""

    message = ""

    def __init__(self, rs: Any, config: Config) -> None:
        from ..twins.realsense import meet, receive

        self._socket, model = meet(config.address)
        try:
            if config.serial and config.serial != model.serial:
                raise DeviceError(
                    f"the RealSense camera at {config.address} is {model.serial}, not {config.serial}"
                )
            self._camera = camera = SoftwareCamera(model)
            require_mode(rs, camera.device, config, f"the RealSense camera at {config.address}")
        except BaseException:
            self._socket.close()
            raise
        self.name, self.serial = "RealSense twin", model.serial
        self.color, self.depth_scale_m = camera.color_profile, model.depth_scale_m
        self._address, self._receive, self._end_reason = config.address, receive, ""
        self._syncer = rs.syncer(8)
        camera.start(self._syncer)
        self._thread = threading.Thread(target=self._run, name="realsense frames", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> Any | None:
        return _wait(self._syncer, timeout_s)

    def require_present(self) -> None:
        if self._end_reason:
            raise DeviceError(f"the RealSense camera at {self._address} was unplugged: {self._end_reason}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing alone would not
        self._thread.join()
        self._socket.close()
        self._camera.stop()

    def _run(self) -> None:
        model = self._camera.model
        shape = (model.height, model.width)
        sizes = [3 * model.height * model.width, 2 * model.height * model.width]
        try:
            while True:
                header, planes = self._receive(self._socket, sizes[0])
                if [len(p) for p in planes] != sizes:
                    continue  # an incomplete frame: librealsense drops those of a camera, too
                color = np.frombuffer(planes[0], np.uint8).reshape(*shape, 3)
                depth = np.frombuffer(planes[1], np.uint16).reshape(shape)
                times = [int(header[k]) for k in ("number", "color_ns", "depth_ns")]
                self._camera.push(color, depth, *times)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
            self._end_reason = str(e) or type(e).__name__


def _start(rs: Any, rs_config: Any, config: Config, who: str, *context: Any) -> tuple[Any, Any]:
    """A pipeline started with the streams of `config`, and its profile."""
    rs_config.enable_stream(rs.stream.color, config.width, config.height, rs.format.rgb8, round(config.fps))
    if config.depth:
        rs_config.enable_stream(
            rs.stream.depth, config.width, config.height, rs.format.z16, round(config.fps)
        )
    pipeline = rs.pipeline(*context)
    try:
        return pipeline, pipeline.start(rs_config)
    except RuntimeError as e:
        raise DeviceError(f"{who} does not start (has another process opened it?): {e}") from e


def _wait(queue: Any, timeout_s: float) -> Any | None:
    try:
        arrived, frames = queue.try_wait_for_frames(max(1, round(1000 * timeout_s)))
    except RuntimeError:  # a pipeline that has lost its device
        return None
    return frames if arrived else None


def find_device(rs: Any, devices: Iterable[Any], serial: str, root: Path = ROOT) -> Any:
    """The device with this serial number, or the only one when `serial` is empty. DeviceError: there is none;
    the message names those that there are, and what keeps this user from those that are plugged in. Refused:
    there are several, and `serial` is empty."""
    by_serial = {d.get_info(rs.camera_info.serial_number): d for d in devices}
    if serial in by_serial:
        return by_serial[serial]
    if not serial and len(by_serial) == 1:
        return next(iter(by_serial.values()))
    serials = ", ".join(sorted(by_serial))
    if not serial and by_serial:
        raise Refused(f"which RealSense camera? There are several, set serial to one of {serials}")
    what = f"no RealSense camera {serial}" if serial else "no RealSense camera"
    problems = "; ".join(usb_problems(root))
    if serials:
        raise DeviceError(f"{what}: there is {serials}" + (f"; {problems}" if problems else ""))
    raise DeviceError(f"{what}: {problems or 'none is plugged in'}")


def usb_problems(root: Path = ROOT) -> list[str]:
    """A sentence for each RealSense camera on USB that this user may not open."""
    rule = "install the udev rules of librealsense (99-realsense-libusb.rules) and plug it in again"
    problems = []
    for d in on_usb(root):
        number = int(text(root / "sys/bus/usb/devices" / d.path / "devnum") or 0)
        problem = access_problem(f"/dev/bus/usb/{d.bus:03d}/{number:03d}", root, rule)
        if problem:
            problems.append(f"{d.name} on port {d.path}: {problem}")
    return problems


def require_mode(rs: Any, device: Any, config: Config, who: str) -> None:
    """Refused unless `device` has the streams of `config`; the message names the modes that it has."""
    streams = [(rs.stream.color, rs.format.rgb8)] + [(rs.stream.depth, rs.format.z16)] * config.depth
    for stream, form in streams:
        modes = set()
        for sensor in device.query_sensors():
            for profile in sensor.get_stream_profiles():
                if profile.stream_type() == stream and profile.format() == form:
                    video = profile.as_video_stream_profile()
                    modes.add((video.width(), video.height(), video.fps()))
        if (config.width, config.height, round(config.fps)) not in modes:
            available = ", ".join(f"{w} × {h} at {f}" for w, h, f in sorted(modes)) or "none"
            request = f"{config.width} × {config.height} at {config.fps:g} frames/s"
            raise Refused(f"{who} has no {stream.name} mode {request}: there is {available}")


def set_options(rs: Any, device: Any, config: Config) -> None:
    """Set exposure, gain and white balance of the color sensor; automatic where None. Refused: a value out of
    its range."""
    sensor = next(
        s
        for s in device.query_sensors()
        if any(p.stream_type() == rs.stream.color for p in s.get_stream_profiles())
    )
    # UVC counts exposure in 100 µs; the D405 takes its color with the stereo sensor, which counts µs
    exposure_unit = 1.0 if sensor.is_depth_sensor() else 0.01
    manual = [
        (rs.option.enable_auto_exposure, rs.option.exposure, config.exposure_us, exposure_unit),
        (rs.option.enable_auto_exposure, rs.option.gain, config.gain, 1.0),
        (rs.option.enable_auto_white_balance, rs.option.white_balance, config.white_balance_k, 1.0),
    ]
    for automatic in {automatic for automatic, *_ in manual}:
        if sensor.supports(automatic):
            fixed = any(value is not None for a, _, value, _ in manual if a == automatic)
            sensor.set_option(automatic, 0.0 if fixed else 1.0)
    for _, option, value, unit in manual:
        if value is None:
            continue
        if not sensor.supports(option):
            raise Refused(f"this camera's color sensor has no setting {option.name}")
        span = sensor.get_option_range(option)
        if not span.min <= value * unit <= span.max:
            low, high = span.min / unit, span.max / unit
            raise Refused(f"{option.name} is {value}, this camera takes {low:g}..{high:g}")
        sensor.set_option(option, value * unit)
