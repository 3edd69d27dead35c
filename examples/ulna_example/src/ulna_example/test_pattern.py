"""A camera that needs no hardware: a bar that runs across a colour ramp. It is for trying out robot files.

It keeps the contract of `ulna.drivers.camera.Camera`. Frame n is taken `n / fps` seconds after `open`, and is
computed when it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ulna.drivers.camera import CameraHealth, CameraState, Intrinsics, StaleFrame
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.config import setting
from ulna.drivers.sample import Sample


@dataclass(frozen=True)
class Config:
    """The fields of `[cameras.NAME]` with `driver = "test-pattern"`."""

    height: int = setting(240, 16, 4096, "pixels")
    """Of a frame."""
    width: int = setting(320, 16, 4096, "pixels")
    """Of a frame."""
    fps: float = setting(30.0, 1, 240, "Hz")
    """Frames a second."""


def make(name: str, config: Config) -> TestPattern:
    """The camera `name`, closed."""
    return TestPattern(name, config.height, config.width, config.fps)


class TestPattern:
    intrinsics: Intrinsics | None = None

    def __init__(self, name: str, height: int, width: int, fps: float) -> None:
        self.name, self.height, self.width, self.fps = name, height, width, fps
        self._clock = MonotonicClock()
        self._opened_ns: int | None = None

    def open(self) -> None:
        self._opened_ns = self._clock.now_ns()

    def close(self) -> None:
        self._opened_ns = None

    def latest(self, max_age_s: float | None = None) -> Sample:
        frame = self._frame(self._newest())
        age_s = (self._clock.now_ns() - frame.t_capture_ns) * 1e-9
        if max_age_s is not None and age_s > max_age_s:
            raise StaleFrame(f"{self.name}: the newest frame is {age_s:.3f} s old")
        return frame

    def next(self, after_seq: int, timeout_s: float) -> Sample:
        seq = max(self._newest(), after_seq + 1)
        due = self._time_ns(seq)
        if due > self._clock.now_ns() + round(timeout_s * 1e9):
            self._clock.sleep_until(self._clock.now_ns() + round(timeout_s * 1e9))
            raise StaleFrame(f"{self.name}: no frame after number {after_seq} within {timeout_s:g} s")
        self._clock.sleep_until(due)
        return self._frame(seq)

    def window(self, k: int) -> list[Sample]:
        newest = self._newest()
        return [self._frame(seq) for seq in range(max(0, newest - k + 1), newest + 1)]

    def health(self) -> CameraHealth:
        if self._opened_ns is None:
            return CameraHealth(CameraState.FAILED, math.inf, 0.0, message=f"{self.name} is closed")
        age_s = (self._clock.now_ns() - self._time_ns(self._newest())) * 1e-9
        return CameraHealth(CameraState.STREAMING, age_s, self.fps)

    def _newest(self) -> int:
        """Number of the newest frame. StaleFrame: the camera is closed."""
        if self._opened_ns is None:
            raise StaleFrame(f"{self.name} is closed: it has no frame")
        return int((self._clock.now_ns() - self._opened_ns) * 1e-9 * self.fps)

    def _time_ns(self, seq: int) -> int:
        if self._opened_ns is None:
            raise StaleFrame(f"{self.name} is closed: it has no frame")
        return self._opened_ns + math.ceil(seq / self.fps * 1e9)

    def _frame(self, seq: int) -> Sample:
        data = np.zeros((self.height, self.width, 3), np.uint8)
        data[..., 0] = np.linspace(0, 255, self.width).astype(np.uint8)
        data[..., 1] = np.linspace(0, 255, self.height).astype(np.uint8)[:, None]
        data[:, seq * 4 % self.width] = 255
        taken_ns = self._time_ns(seq)
        return Sample(data, taken_ns, max(taken_ns, self._clock.now_ns()), seq)
