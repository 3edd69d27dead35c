"""Rollout videos that a browser plays: H.264 in MP4, 4:2:0."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class _Camera(Protocol):
    def latest(self) -> Any: ...


class VideoRecorder:
    """A subscriber that films each episode with `camera` into `folder/seed-N.mp4`, one frame per tick.

    The camera is not one of the robot's, so filming changes nothing that the policy sees or the physics does.
    """

    def __init__(self, camera: _Camera, folder: Path, fps: float) -> None:
        self.camera, self.folder, self.fps = camera, folder, fps
        self.files: list[Path] = []
        self._frames: list[np.ndarray] = []

    def start(self, meta: Mapping[str, Any]) -> None:
        self._name = f"seed-{meta['seed']}.mp4"
        self._frames = []

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        self._frames.append(self.camera.latest().data)

    def end(self, meta: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self._name
        write_mp4(path, self._frames, self.fps)
        self.files.append(path)

    def interrupt(self, reason: str) -> None:
        self._frames = []


def write_mp4(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """frames: `(H, W, 3)` uint8 RGB, H and W even."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
