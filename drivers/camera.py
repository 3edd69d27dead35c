"""The contract of a camera: frames with capture times, and an honest state.

Any implementation is put through `tests/contracts/camera.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np

from .sample import Sample


class CameraState(Enum):
    CONNECTING = "connecting"
    STREAMING = "streaming"
    STALE = "stale"  # connected, but no frame within twice the frame period
    RECONNECTING = "reconnecting"
    FAILED = "failed"


@dataclass(frozen=True)
class CameraHealth:
    """age_s: of the newest frame (inf before the first). fps: measured. dropped: frames the sequence
    skipped."""

    state: CameraState
    age_s: float
    fps: float
    dropped: int = 0
    message: str = ""


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole model in pixels: `matrix` `(3, 3)` float64, `width`, `height`, Brown-Conrady `distortion`
    `(5,)`."""

    matrix: np.ndarray
    width: int
    height: int
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)


class StaleFrame(TimeoutError):
    """No frame as young as asked for; the message names the camera and the age of what there is."""


class Camera(Protocol):
    """A stream of RGB frames, `Sample.data` `(H, W, 3)` uint8. Identity is a serial number or a by-path name.

    `latest` never blocks on the device; `next` waits; `window(k)` gives the last k frames, oldest first
    (fewer right after `open`). All raise `StaleFrame` rather than pass an old frame for a new one.

    A camera that takes frames whether or not anybody asks also keeps a `drivers.sample.Backlog`. It is then
    recorded at its own rate; any other, a frame per control tick. One that may have depth is a `HasDepth`."""

    name: str
    height: int
    width: int
    fps: float

    def open(self) -> None: ...

    def close(self) -> None:
        """Release the device; safe to call twice, and on one never opened."""
        ...

    def latest(self, max_age_s: float | None = None) -> Sample: ...

    def next(self, after_seq: int, timeout_s: float) -> Sample: ...

    def window(self, k: int) -> list[Sample]: ...

    def health(self) -> CameraHealth: ...

    @property
    def intrinsics(self) -> Intrinsics | None: ...


class DepthStream(Protocol):
    """The depth of a camera: `Sample.data` `(H, W)` uint16 in units of `depth_scale_m`, 0 where unknown.

    depth_scale_m: m per unit, None before the camera is open."""

    @property
    def depth_scale_m(self) -> float | None: ...

    def latest(self) -> Sample: ...


@runtime_checkable
class HasDepth(Protocol):
    """A camera that may give depth, too. depth: None where it gives none; fixed when the camera is made."""

    @property
    def depth(self) -> DepthStream | None: ...


def depth_of(camera: Camera) -> DepthStream | None:
    """The depth of `camera`, None where it gives none."""
    return camera.depth if isinstance(camera, HasDepth) else None
