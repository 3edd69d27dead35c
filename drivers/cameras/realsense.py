"""RealSense cameras: colour, and depth aligned to it, from a camera, a recording of one, or a twin.

All three go through librealsense's own synchroniser, aligner and stream profiles; they differ in the feed
alone (`realsense_feeds`). The library's traps are handled here: a pipeline may give a frame again with an old
partner, the end of a recording looks like a pulled cable, and a stamp may be of the camera's clock or of the
host's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..camera import Intrinsics
from ..clock_offset import ClockOffset
from ..config import parse
from .capture import CaptureCamera, Ended, SourceInfo
from .frame_ring import Frame
from .librealsense import load
from .realsense_config import Config, check
from .realsense_feeds import Feed, LiveFeed, RecordingFeed, TwinFeed

CLOCK_FRAMES = 8  # framesets at the start that only relate the clocks, so that a late one dates no frame
WALL_CLOCK_OFF_S = 2.0  # a stamp further from now was made before the host's clock was set


def make(name: str, config: Config, history: int = 6) -> CaptureCamera:
    """The camera, closed; its `depth` is in units of `info.depth_scale_m`. DeviceError: settings that
    contradict each other."""
    check(config)
    return CaptureCamera(
        name,
        "ulna.drivers.cameras.realsense",
        asdict(config),
        config.height,
        config.width,
        config.fps,
        has_depth=config.depth,
        history=history,
    )


def source(config: Mapping[str, Any]) -> RealSenseSource:
    """The source of frames for the capture process. config: fields of `Config`. DeviceError as `make`."""
    settings = parse(Config, config, "the RealSense camera")
    check(settings)
    return RealSenseSource(settings)


class RealSenseSource:
    """The `FrameSource`. context: the `rs.context` in which a live camera is looked for, default a new
    one."""

    def __init__(self, config: Config, context: Any = None) -> None:
        self.config = config
        self._context = context
        self._feed: Feed | None = None
        self._end_message = ""

    def open(self) -> SourceInfo:
        if self._end_message:
            raise Ended(self._end_message)
        self.close()
        config = self.config
        self._rs = rs = load()
        try:
            if config.source == "live":
                self._feed = feed = LiveFeed(rs, config, self._context)
            else:
                self._feed = feed = {"recording": RecordingFeed, "twin": TwinFeed}[config.source](rs, config)
        except DeviceError:
            raise
        except RuntimeError as e:  # which librealsense raises, bare
            raise DeviceError(f"librealsense cannot open the camera: {e}") from e
        self._align = rs.align(rs.stream.color) if config.depth and config.align == "color" else None
        self._clock = ClockOffset(config.latency_s)
        self._pairs = Pairs(rs, config.fps, looped=config.source == "recording")
        self._set_clock()
        lens = feed.color.get_intrinsics()
        matrix = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]], np.float64)
        # also for sensors that name the inverse model: the library itself projects with these coefficients as
        # Brown and Conrady do
        k1, k2, p1, p2, k3 = lens.coeffs
        return SourceInfo(
            f"{feed.name} {feed.serial}",
            lens.height,
            lens.width,
            feed.color.fps(),
            Intrinsics(matrix, lens.width, lens.height, (k1, k2, p1, p2, k3)),
            feed.depth_scale_m if config.depth else None,
            feed.message,
        )

    def _set_clock(self) -> None:
        assert self._feed is not None
        deadline = time.monotonic() + 2 * CLOCK_FRAMES / self.config.fps
        n = 0
        while n < CLOCK_FRAMES and (remaining_s := deadline - time.monotonic()) > 0:
            frameset = self._feed.wait(remaining_s)
            if frameset is not None and (color := frameset.get_color_frame()):
                self._capture_ns(color, time.monotonic_ns())
                n += 1

    def grab(self, timeout_s: float) -> Frame | None:
        """DeviceError: the camera is gone. Ended: the recording is over."""
        assert self._feed is not None, "open it first"
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            frameset = self._feed.wait(min(remaining_s, 0.1))
            if frameset is not None:
                if (frame := self._frame(frameset)) is not None:
                    return frame
            else:
                try:
                    self._feed.require_present()
                except Ended as e:
                    self._end_message = str(e)
                    raise
        return None

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _frame(self, frameset: Any) -> Frame | None:
        """The `Frame` of a frameset; None when one of its two frames is missing, was given before or belongs
        to another instant."""
        receive_ns = time.monotonic_ns()
        color = frameset.get_color_frame()
        depth = frameset.get_depth_frame() if self.config.depth else None
        if not color or (self.config.depth and not depth):
            return None
        seq = self._pairs.seq(color, depth or None)
        if seq is None:
            return None
        capture_ns = self._capture_ns(color, receive_ns)
        depth_image = None
        if depth:
            if self._align is not None:
                depth = self._align.process(frameset).get_depth_frame()
            depth_image = np.array(depth.get_data(), np.uint16)
        return Frame(np.array(color.get_data(), np.uint8), depth_image, capture_ns, receive_ns, seq)

    def _capture_ns(self, frame: Any, receive_ns: int) -> int:
        stamp_ns = round(frame.get_timestamp() * 1e6)
        domain, domains = frame.get_frame_timestamp_domain(), self._rs.timestamp_domain
        if self.config.source == "live" and domain in (domains.global_time, domains.system_time):
            # the library has mapped it to the host's wall clock already, better than from arrivals alone
            mapped_ns = from_wall_clock(stamp_ns, receive_ns)
            if mapped_ns is not None:
                # a stamp of the system's time is that of the arrival
                return mapped_ns - round(self.config.latency_s * 1e9) * (domain == domains.system_time)
        return self._clock.capture_ns(stamp_ns, receive_ns)


def from_wall_clock(stamp_ns: int, receive_ns: int) -> int | None:
    """`stamp_ns` of `time.time_ns` on the clock of `time.monotonic_ns`, at most `receive_ns`. None when it is
    so far from now that it was made before the host's clock was set."""
    age_ns = time.time_ns() - stamp_ns
    if abs(age_ns) > WALL_CLOCK_OFF_S * 1e9:
        return None
    return min(time.monotonic_ns() - age_ns, receive_ns)


class Pairs:
    """Tells framesets that are new from repeated ones. fps: nominal. looped: a frame number that goes back
    means a recording that is played again; otherwise a camera that was reset."""

    def __init__(self, rs: Any, fps: float, looped: bool = False) -> None:
        self._rs, self._fps, self._looped = rs, fps, looped
        self._last_numbers = (-1, -1)
        self._seq = -1

    def seq(self, color: Any, depth: Any | None) -> int | None:
        """The number of a frameset, which also counts those that the camera left out; None when one of its
        frames was given before, or its frames are more than half a period apart."""
        last_numbers = self._last_numbers
        numbers = color.get_frame_number(), -1 if depth is None else depth.get_frame_number()
        if numbers[0] == last_numbers[0] or (depth is not None and numbers[1] == last_numbers[1]):
            return None
        if depth is not None and apart_s(self._rs, color, depth) > 0.5 / self._fps:
            return None
        self._last_numbers = numbers
        restarted = numbers[0] < last_numbers[0]
        if restarted and self._looped:
            return None  # the last frameset and the first come at once, which no camera does
        self._seq += 1 if restarted or last_numbers[0] < 0 else numbers[0] - last_numbers[0]
        return self._seq


def apart_s(rs: Any, a: Any, b: Any) -> float:
    """Time between the captures of two frames of librealsense, s; between their arrivals when their stamps
    are of different clocks."""
    if a.get_frame_timestamp_domain() == b.get_frame_timestamp_domain():
        return abs(a.get_timestamp() - b.get_timestamp()) * 1e-3
    arrival = rs.frame_metadata_value.time_of_arrival
    if not (a.supports_frame_metadata(arrival) and b.supports_frame_metadata(arrival)):
        return 0.0  # nothing to tell them apart by: the library's own pairing stands
    return abs(a.get_frame_metadata(arrival) - b.get_frame_metadata(arrival)) * 1e-3
