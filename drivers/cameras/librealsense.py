"""librealsense: loading the library, and a software camera for its synchroniser and its recorder.

The library cannot put such a camera behind `rs.pipeline` (`software_device.add_to` is without effect in 2.56
and 2.59), but its sensors, syncer, aligner, profiles and metadata are the same objects that a plugged-in
camera gives."""

from __future__ import annotations

import contextlib
import ctypes
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..sysfs import ROOT, UsbDevice, usb_devices

INTEL = 0x8086


def on_usb(root: Path = ROOT) -> list[UsbDevice]:
    """RealSense cameras by their USB descriptors, without the library."""
    return [d for d in usb_devices(root) if d.vendor == INTEL and "realsense" in d.name.lower()]


def load() -> Any:
    """The module `pyrealsense2`, with libusb loaded before it. DeviceError says what to install."""
    # the wheel is linked to libusb-1.0 but does not contain it; where the system has none, the copy in
    # libusb-package serves
    with contextlib.suppress(ImportError, OSError):
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
    try:
        import pyrealsense2  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        if "libusb" in str(e):
            raise DeviceError(
                "librealsense needs libusb-1.0: install the Python package libusb-package or the system's "
                "libusb-1.0-0"
            ) from e
        raise DeviceError(f"a RealSense camera needs the Python package pyrealsense2: {e}") from e
    return pyrealsense2


@dataclass(frozen=True)
class Pinhole:
    """Focal lengths and principal point in pixels, no distortion."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class CameraModel:
    """A camera with one mode. color, depth: lenses of the two sensors, each `height` by `width`. baseline_m:
    m, from the color sensor to the depth sensor along the color image's x (the D435's is 0.015).
    depth_scale_m: m per unit of depth."""

    serial: str
    height: int
    width: int
    fps: int
    color: Pinhole
    depth: Pinhole
    baseline_m: float = 0.0
    depth_scale_m: float = 0.001

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> CameraModel:
        """DeviceError: not the JSON of a camera of a size that exists."""
        try:
            fields = json.loads(text)
            fields["color"], fields["depth"] = Pinhole(**fields["color"]), Pinhole(**fields["depth"])
            model = CameraModel(**fields)
            is_valid = all(
                isinstance(n, int) and 1 <= n <= 8192 for n in (model.height, model.width, model.fps)
            )
            numbers = (*asdict(model.color).values(), *asdict(model.depth).values(), model.baseline_m)
            is_valid &= all(isinstance(x, int | float) for x in numbers) and 0 < model.depth_scale_m < 1
            is_valid &= isinstance(model.serial, str)
        except (TypeError, ValueError, KeyError) as e:
            raise DeviceError(f"this is not the description of a camera: {e}") from e
        if not is_valid:
            raise DeviceError(f"there is no such camera: {model}")
        return model


class SoftwareCamera:
    """`model` as a device of librealsense.

    device: the `rs.software_device`. color_profile, depth_profile: its stream profiles.
    """

    def __init__(self, model: CameraModel) -> None:
        self.model = model
        self._rs = rs = load()
        self.device = rs.software_device()
        info = rs.camera_info
        for key, value in (
            (info.name, "Intel RealSense D435 (software)"),
            (info.serial_number, model.serial),
            (info.product_line, "D400"),
        ):
            self.device.register_info(key, value)
        self._depth = self.device.add_sensor("Stereo Module")
        self._color = self.device.add_sensor("RGB Camera")
        self._depth.add_read_only_option(rs.option.depth_units, model.depth_scale_m)
        self.depth_profile = self._add(self._depth, rs.stream.depth, rs.format.z16, 2, model.depth)
        self.color_profile = self._add(self._color, rs.stream.color, rs.format.rgb8, 3, model.color)
        extrinsics = rs.extrinsics()
        extrinsics.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1]
        extrinsics.translation = [model.baseline_m, 0, 0]
        self.depth_profile.register_extrinsics_to(self.color_profile, extrinsics)
        self.device.create_matcher(rs.matchers.dlr_c)
        # Without it the library computes a rate from a frame "before the first" at time 0: 0.001 frames a
        # second after some dozen frames, with which its syncer pairs no frames any more.
        for sensor in (self._depth, self._color):
            sensor.set_metadata(rs.frame_metadata_value.actual_fps, 1000 * model.fps)
        self._running_sensors: list[Any] = []

    def _add(self, sensor: Any, stream: Any, form: Any, size: int, lens: Pinhole) -> Any:
        rs, model = self._rs, self.model
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height = model.width, model.height
        intrinsics.fx, intrinsics.fy, intrinsics.ppx, intrinsics.ppy = lens.fx, lens.fy, lens.cx, lens.cy
        intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        video = rs.video_stream()
        video.type, video.index, video.uid = stream, 0, int(stream)
        video.width, video.height, video.fps, video.bpp, video.fmt = (
            model.width,
            model.height,
            model.fps,
            size,
            form,
        )
        video.intrinsics = intrinsics
        return sensor.add_video_stream(video).as_video_stream_profile()

    def start(self, sink: Any, device: Any = None) -> None:
        """Send frames to `sink`, a `rs.syncer` or `rs.frame_queue`. device: a `rs.recorder` around this
        camera's device, default that device itself."""
        for sensor in (device or self.device).query_sensors():
            sensor.open(sensor.get_stream_profiles())
            sensor.start(sink)
            self._running_sensors.append(sensor)

    def push(
        self, color: np.ndarray, depth: np.ndarray | None, number: int, color_ns: int, depth_ns: int
    ) -> None:
        """Send a frame of each sensor. color: `(H, W, 3)` uint8 RGB. depth: `(H, W)` uint16, None when that
        sensor gave none this time. color_ns, depth_ns: on the camera's own clock."""
        if depth is not None:
            self._push(self._depth, self.depth_profile, depth, 2, number, depth_ns)
        self._push(self._color, self.color_profile, color, 3, number, color_ns)

    def _push(self, sensor: Any, profile: Any, pixels: np.ndarray, size: int, number: int, t_ns: int) -> None:
        frame = self._rs.software_video_frame()
        frame.pixels = np.ascontiguousarray(pixels)
        frame.stride, frame.bpp, frame.profile = size * self.model.width, size, profile
        frame.timestamp, frame.domain = t_ns / 1e6, self._rs.timestamp_domain.hardware_clock
        frame.frame_number = number
        if size == 2:
            frame.depth_units = self.model.depth_scale_m
        sensor.on_video_frame(frame)

    def stop(self) -> None:
        for sensor in self._running_sensors:
            sensor.stop()
            sensor.close()
        self._running_sensors.clear()
