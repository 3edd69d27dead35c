"""A `Tracker` that needs no marker and no training: where an object of one colour is in the cameras'
pictures.

For each camera it gives whether the object is seen, its centre, its size and how it is turned, all in the
picture. With two views that is enough for a policy without images to reach for a small object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arm import DeviceError
from ..camera import Camera
from ..config import require_known, setting
from ..sample import Sample

PARTS = ("seen", "u", "v", "size", "cos4", "sin4")
TURNED_PIXELS = 64  # a smaller object's rectangle turns by its noise alone


@dataclass(frozen=True)
class Config:
    """The fields of `[trackers.NAME]` with `driver = "colour"`."""

    cameras: list
    """Names of the robot's cameras, such as `["front", "wrist"]`."""
    hue_low: float = setting(205.0, 0, 360, "degrees")
    """Where the object's hues begin on the colour circle: red 0, green 120, blue 240."""
    hue_high: float = setting(255.0, 0, 360, "degrees")
    """Where they end; below `hue_low` where they go through red. The defaults are blue."""
    saturation: float = setting(0.4, 0, 1)
    """The least of a pixel that counts, since grey has no hue."""
    value: float = setting(0.15, 0, 1)
    """The least brightness of a pixel that counts, since black has no hue."""
    min_pixels: int = setting(6, 1, 100_000, "pixels")
    """A smaller area is taken for noise."""


class ColourTracker:
    """`read().data`: `(6 · cameras,)` float64, per camera `PARTS`: `seen` 0 or 1; `u`, `v` of the centre, -1
    to 1 from the left and the top; `size`, the root of its share of the picture; `cos4`, `sin4` of its
    rectangle's angle times four (a square repeats every 90°), both 0 where it is too small to tell. An object
    that is not seen keeps its last numbers but `seen`, and is marked invalid. Times are those of the
    pictures."""

    def __init__(self, name: str, config: Config, cameras: Mapping[str, Camera]) -> None:
        for camera in config.cameras:
            require_known(f"camera for [trackers.{name}]:", str(camera), cameras)
        if not config.cameras:
            raise DeviceError(f"[trackers.{name}] names no cameras: it looks at their pictures")
        self.name, self.config = name, config
        self._cameras = {c: cameras[c] for c in config.cameras}
        self.names = tuple(f"{name}.{c}.{part}" for c in self._cameras for part in PARTS)
        self.units = ("1",) * len(self.names)
        self._last_views: dict[str, tuple[int, np.ndarray]] = {}

    def open(self) -> None:
        self._last_views.clear()

    def close(self) -> None:
        pass

    def read(self) -> Sample:
        values, valid, seq = [], [], 0
        captures, receipts = [], []
        for name, camera in self._cameras.items():
            frame = camera.latest()
            view = self._last_views.get(name)
            if view is None or view[0] != frame.seq:
                view = frame.seq, self.look(frame.data, None if view is None else view[1])
                self._last_views[name] = view
            values.append(view[1])
            valid.append(np.full(len(PARTS), bool(view[1][0])))
            seq += frame.seq
            captures.append(frame.t_capture_ns)
            receipts.append(frame.t_receive_ns)
        return Sample(np.concatenate(values), min(captures), max(receipts), seq, np.concatenate(valid))

    def look(self, picture: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
        """`PARTS` `(6,)` float64 of one picture `(H, W, 3)` uint8. last: the numbers to keep when the object
        is not seen."""
        import cv2

        c = self.config
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)  # OpenCV's hue is half a degree each
        hue = hsv[..., 0].astype(np.float32) * 2
        ring = (
            (hue >= c.hue_low) & (hue <= c.hue_high)
            if c.hue_low <= c.hue_high
            else (hue >= c.hue_low) | (hue <= c.hue_high)
        )
        mask: Any = (ring & (hsv[..., 1] >= 255 * c.saturation) & (hsv[..., 2] >= 255 * c.value)).astype(
            np.uint8
        )
        count, labels, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count < 2 or (area := int(stats[1:, cv2.CC_STAT_AREA].max())) < c.min_pixels:
            values = np.zeros(len(PARTS)) if last is None else last.copy()
            values[0] = 0.0
            return values
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        height, width = mask.shape
        u, v = centres[largest] + 0.5
        direction = np.zeros(2)
        if area >= TURNED_PIXELS:
            points = np.argwhere(labels == largest)[:, ::-1].astype(np.float32)
            angle = 4 * np.radians(cv2.minAreaRect(points)[2])
            direction = np.array([np.cos(angle), np.sin(angle)])
        return np.array(
            [
                1.0,
                2 * u / width - 1,
                2 * v / height - 1,
                np.sqrt(area / (height * width)),
                *direction,
            ]
        )


def make(name: str, config: Config, cameras: Mapping[str, Camera]) -> ColourTracker:
    return ColourTracker(name, config, cameras)
