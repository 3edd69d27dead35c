"""RealSense cameras: colour, and depth aligned to it, from a camera, from a recording of one, or from a twin.

All three go through librealsense's own synchroniser, aligner and stream profiles; only where frames come from
differs. The library's traps are met here: a pipeline gives the same frame again with a partner that is old,
the end of a recording looks like a cable that was pulled, and a stamp may be of the camera's clock or of the
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

CLOCK_FRAMES = 8  # that are given up at the start, so that one which came late does not date those after it
WALL_CLOCK_OFF_S = 2.0  # a frame so old, or from the future, was stamped before the host's clock was set


def make(name: str, config: Config, history: int = 6) -> CaptureCamera:
    """The camera, and as its `depth` the depth in units of `info.depth_scale_m`. DeviceError: settings that
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
    """For the capture process. config: fields of `Config`."""
    parsed = parse(Config, config, "the RealSense camera")
    check(parsed)
    return RealSenseSource(parsed)


class RealSenseSource:
    """The `FrameSource`. context: the `rs.context` in which a live camera is sought, default a new one."""

    def __init__(self, config: Config, context: Any = None) -> None:
        self.config = config
        self._context = context
        self._feed: Feed | None = None
        self._ended = ""

    def open(self) -> SourceInfo:
        if self._ended:
            raise Ended(self._ended)
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
        # also of sensors that name the inverse model: the library itself projects with them as Brown and
        # Conrady do
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
        seen = 0
        while seen < CLOCK_FRAMES and (left := deadline - time.monotonic()) > 0:
            arrived = self._feed.wait(left)
            if arrived is not None and (color := arrived.get_color_frame()):
                self._capture_ns(color, time.monotonic_ns())
                seen += 1

    def grab(self, timeout_s: float) -> Frame | None:
        """DeviceError: the camera is gone. Ended: the recording is over."""
        assert self._feed is not None, "open it first"
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            arrived = self._feed.wait(min(left, 0.1))
            if arrived is not None:
                if (frame := self._frame(arrived)) is not None:
                    return frame
            else:
                try:
                    self._feed.require_present()
                except Ended as e:
                    self._ended = str(e)
                    raise
        return None

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _frame(self, arrived: Any) -> Frame | None:
        """A `Frame` of a set of frames; None when one is missing, was given before or belongs to another
        instant."""
        receive_ns = time.monotonic_ns()
        color = arrived.get_color_frame()
        depth = arrived.get_depth_frame() if self.config.depth else None
        if not color or (self.config.depth and not depth):
            return None
        seq = self._pairs.seq(color, depth or None)
        if seq is None:
            return None
        capture_ns = self._capture_ns(color, receive_ns)
        plane = None
        if depth:
            if self._align is not None:
                depth = self._align.process(arrived).get_depth_frame()
            plane = np.array(depth.get_data(), np.uint16)
        return Frame(np.array(color.get_data(), np.uint8), plane, capture_ns, receive_ns, seq)

    def _capture_ns(self, frame: Any, receive_ns: int) -> int:
        stamp_ns = round(frame.get_timestamp() * 1e6)
        domain, domains = frame.get_frame_timestamp_domain(), self._rs.timestamp_domain
        if self.config.source == "live" and domain in (domains.global_time, domains.system_time):
            # the library has mapped it to the host's wall clock already, better than from arrivals alone
            mapped = from_wall_clock(stamp_ns, receive_ns)
            if mapped is not None:
                # a stamp of the system's time is of the arrival
                return mapped - round(self.config.latency_s * 1e9) * (domain == domains.system_time)
        return self._clock.capture_ns(stamp_ns, receive_ns)


def from_wall_clock(stamp_ns: int, receive_ns: int) -> int | None:
    """`stamp_ns` of `time.time_ns` on `time.monotonic_ns`, at most `receive_ns`. None when it is so far from
    now that it must be from before the host's clock was set."""
    age_ns = time.time_ns() - stamp_ns
    if abs(age_ns) > WALL_CLOCK_OFF_S * 1e9:
        return None
    return min(time.monotonic_ns() - age_ns, receive_ns)


class Pairs:
    """Which sets of frames are news. fps: nominal. looped: a counter that goes back is of a recording that is
    played again; else of a camera that was reset."""

    def __init__(self, rs: Any, fps: float, looped: bool = False) -> None:
        self._rs, self._fps, self._looped = rs, fps, looped
        self._before = (-1, -1)
        self._seq = -1

    def seq(self, color: Any, depth: Any | None) -> int | None:
        """The number of the set, which counts frames that the camera left out, too; None when one of its
        frames was given before, or they are of instants more than half a period apart."""
        before = self._before
        numbers = color.get_frame_number(), -1 if depth is None else depth.get_frame_number()
        if numbers[0] == before[0] or (depth is not None and numbers[1] == before[1]):
            return None
        if depth is not None and apart_s(self._rs, color, depth) > 0.5 / self._fps:
            return None
        self._before = numbers
        began_anew = numbers[0] < before[0]
        if began_anew and self._looped:
            return None  # the last frame and the first come at once, which no camera does
        self._seq += 1 if began_anew or before[0] < 0 else numbers[0] - before[0]
        return self._seq


def apart_s(rs: Any, a: Any, b: Any) -> float:
    """Between the captures of two frames of librealsense, s; between their arrivals where their stamps are of
    different clocks."""
    if a.get_frame_timestamp_domain() == b.get_frame_timestamp_domain():
        return abs(a.get_timestamp() - b.get_timestamp()) * 1e-3
    arrival = rs.frame_metadata_value.time_of_arrival
    if not (a.supports_frame_metadata(arrival) and b.supports_frame_metadata(arrival)):
        return 0.0  # nothing to tell them apart by: the library's own pairing stands
    return abs(a.get_frame_metadata(arrival) - b.get_frame_metadata(arrival)) * 1e-3
