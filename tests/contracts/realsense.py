"""RealSense cameras without hardware: a small scene, a twin and a recording of it, and what tests need to
read it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ulna.drivers.cameras.capture import CaptureCamera, Refused
from ulna.drivers.cameras.frame_ring import Frame
from ulna.drivers.cameras.librealsense import CameraModel, Pinhole
from ulna.drivers.cameras.realsense import Config, RealSenseSource, make, source
from ulna.drivers.twins.faults import CameraFaults
from ulna.drivers.twins.realsense import Picture, RealSenseTwin, record

H, W, FPS = 120, 160, 30
MODEL = CameraModel(
    "839112061234", H, W, FPS, Pinhole(150, 150, 80, 60), Pinhole(95, 95, 80, 60), 0.015, 0.001
)
NEAR, FAR = 800, 1500  # mm
BOX = np.s_[35:75, 55:85]  # of the near thing, in the depth image
SIZE: dict[str, Any] = {"height": H, "width": W, "fps": FPS}


def picture(k: int) -> Picture:
    """A box before a wall; color shows it where a pinhole camera would, and both carry the number `k` in a
    corner."""
    depth = np.full((H, W), FAR, np.uint16)
    depth[BOX] = NEAR
    color = np.full((H, W, 3), 40, np.uint8)
    top, bottom, left, right = box_in_color()
    color[round(top) : round(bottom), round(left) : round(right)] = (220, 30, 30)
    color[0, 0] = (k % 256, k // 256, 7)
    depth[0, 0] = k
    return color, depth, time.monotonic_ns()


def box_in_color() -> tuple[float, float, float, float]:
    """Top, bottom, left, right edge in color pixels, worked out from the lenses. Edges lie half a pixel
    before a pixel's center."""
    d, c, shift = MODEL.depth, MODEL.color, MODEL.color.fx * MODEL.baseline_m / (NEAR * MODEL.depth_scale_m)
    rows = [(v - 0.5 - d.cy) * c.fy / d.fy + c.cy + 0.5 for v in (BOX[0].start, BOX[0].stop)]
    columns = [(u - 0.5 - d.cx) * c.fx / d.fx + shift + c.cx + 0.5 for u in (BOX[1].start, BOX[1].stop)]
    return rows[0], rows[1], columns[0], columns[1]


class Pictures:
    """A new one at each call, numbered from 0."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Picture:
        self.count += 1
        return picture(self.count - 1)


def record_box(path: Path) -> Path:
    """Make a recording of 2 s, without depth in the framesets 20 to 25."""
    shots = (picture(k) for k in range(2 * FPS))
    record(path, MODEL, ((c, None if 20 <= k <= 25 else d) for k, (c, d, _) in enumerate(shots)))
    return path


@contextlib.contextmanager
def twin(faults: CameraFaults | None = None, **options: Any) -> Iterator[RealSenseTwin]:
    with RealSenseTwin(MODEL, Pictures(), faults, **options) as t:
        yield t


@contextlib.contextmanager
def open_source(**config: Any) -> Iterator[RealSenseSource]:
    opening = source({**SIZE, **config})
    try:
        opening.open()
        yield opening
    finally:
        opening.close()


@contextlib.contextmanager
def running(t: RealSenseTwin) -> Iterator[CaptureCamera]:
    camera = make("front", Config(source="twin", address=t.address, serial=MODEL.serial, **SIZE))
    camera.open()
    try:
        yield camera
    finally:
        camera.close()


def frames(of: RealSenseSource, count: int, within_s: float = 20.0) -> list[Frame]:
    batch: list[Frame] = []
    deadline = time.monotonic() + within_s
    while len(batch) < count:
        assert time.monotonic() < deadline, f"{len(batch)} of {count} frames in {within_s} s"
        if (frame := of.grab(0.25)) is not None:
            batch.append(frame)
    return batch


def all_frames(of: RealSenseSource) -> tuple[list[Frame], str]:
    """All frames until the recording ends, and the message at its end."""
    batch: list[Frame] = []
    try:
        while True:
            if (frame := of.grab(0.25)) is not None:
                batch.append(frame)
    except Refused as e:
        return batch, str(e)


def until(what: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)
