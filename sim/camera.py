"""A camera in PyBullet that keeps the contract of `drivers.camera.Camera`, rendered on the CPU only when
looked at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from ..drivers.camera import CameraHealth, CameraState, Intrinsics, StaleFrame
from ..drivers.sample import Sample
from .world import SimClock, World

NEAR, FAR = 0.01, 3.0
VIEWS = 31  # tells the draw of a moved camera from others of the same seed
AROUND, UP, NEARER = np.radians(40.0), np.radians(12.0), 0.15  # how far `moved` goes: rad, rad, share


class SimCamera:
    """view gives eye, target and up (each `(3,)` m) now. fov is vertical, degrees. A frame is rendered at
    most once per period and only when asked for; its capture time is the instant of the physics that it
    shows. Frames of a world that was cleared are forgotten; their numbers are not used again."""

    def __init__(
        self,
        world: World,
        clock: SimClock,
        name: str,
        view: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]],
        height: int = 96,
        width: int = 96,
        fps: float = 20.0,
        fov: float = 55.0,
    ) -> None:
        self.world, self.clock, self.name, self.view = world, clock, name, view
        self.height, self.width, self.fps, self.fov = height, width, fps, fov
        self._frames: deque[Sample] = deque(maxlen=16)
        self._open = False
        self._seq, self._build = -1, world.builds
        self._buffer: np.ndarray  # OpenGL's depth of the picture that was rendered last

    def open(self) -> None:
        self._open = True
        self._frames.clear()

    def close(self) -> None:
        self._open = False

    def latest(self, max_age_s: float | None = None) -> Sample:
        self._require_open()
        now = self.clock.now_ns()
        if self._build != self.world.builds:
            self._frames.clear()
            self._build = self.world.builds
        if not self._frames or now - self._frames[-1].t_capture_ns >= round(1e9 / self.fps):
            self._seq += 1
            self._frames.append(Sample(self.render(), now, now, self._seq))
        frame = self._frames[-1]
        if max_age_s is not None and now - frame.t_capture_ns > max_age_s * 1e9:
            raise StaleFrame(f"camera {self.name}: the newest frame is older than {max_age_s:.3f} s")
        return frame

    def next(self, after_seq: int, timeout_s: float) -> Sample:
        """Waiting is letting the physics run."""
        deadline = self.clock.now_ns() + round(timeout_s * 1e9)
        while (frame := self.latest()).seq <= after_seq:
            due = frame.t_capture_ns + round(1e9 / self.fps)
            if due > deadline:
                raise StaleFrame(f"camera {self.name}: no frame after {after_seq} within {timeout_s:.3f} s")
            self.clock.sleep_until(due)
        return frame

    def window(self, k: int) -> list[Sample]:
        self.latest()
        return list(self._frames)[-k:] if k > 0 else []

    def health(self) -> CameraHealth:
        if not self._open or not self._frames:
            return CameraHealth(CameraState.CONNECTING, float("inf"), 0.0)
        age = (self.clock.now_ns() - self._frames[-1].t_capture_ns) * 1e-9
        times = [f.t_capture_ns for f in self._frames]
        fps = (len(times) - 1) / ((times[-1] - times[0]) * 1e-9) if len(times) > 1 else 0.0
        return CameraHealth(CameraState.STREAMING, age, fps)

    @property
    def intrinsics(self) -> Intrinsics:
        """Of OpenGL's projection with square pixels: the principal point is the centre of the image."""
        f = self.height / (2 * np.tan(np.radians(self.fov) / 2))
        matrix = np.array([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])
        return Intrinsics(matrix, self.width, self.height)

    def _require_open(self) -> None:
        if not self._open:
            raise StaleFrame(f"camera {self.name} is not open")

    def render(self) -> np.ndarray:
        """What there is to see now, `(H, W, 3)` uint8."""
        colour, self._buffer = self._image()
        return colour

    def depth_rendered(self) -> np.ndarray:
        """Of the picture that was rendered last, distance along the optical axis, `(H, W)` uint16 in
        millimetres; 0 where there is nothing within `FAR`."""
        buffer = self._buffer.astype(np.float64)
        metres = FAR * NEAR / (FAR - (FAR - NEAR) * buffer)  # of OpenGL's depth buffer
        return np.where(buffer < 1.0, np.round(metres * 1000), 0).astype(np.uint16)

    def pose(self) -> np.ndarray:
        """Where it is now, `(7,)` float32 as `datasets.features.is_camera_pose` has it, in the world's frame,
        in which a single arm stands at the origin."""
        eye, target, up = self.view()
        ahead = _unit(target - eye)
        right = _unit(np.cross(ahead, up))
        axes = np.stack([right, np.cross(ahead, right), ahead], axis=1)
        return np.concatenate([eye, Rotation.from_matrix(axes).as_quat()]).astype(np.float32)

    def _image(self) -> tuple[np.ndarray, np.ndarray]:
        p, c = self.world.bullet, self.world.client
        eye, target, up = self.view()
        view = p.computeViewMatrix(eye.tolist(), target.tolist(), up.tolist())
        projection = p.computeProjectionMatrixFOV(self.fov, self.width / self.height, NEAR, FAR)
        _, _, rgba, depth, _ = p.getCameraImage(
            self.width,
            self.height,
            view,
            projection,
            lightDirection=self.world.looks.direction,
            lightAmbientCoeff=self.world.looks.ambient,
            lightDiffuseCoeff=self.world.looks.diffuse,
            shadow=0,
            flags=p.ER_NO_SEGMENTATION_MASK,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=c,
        )
        color = np.reshape(rgba, (self.height, self.width, 4))[..., :3].astype(np.uint8)
        return np.ascontiguousarray(color), np.reshape(depth, (self.height, self.width))


def moved(eye: np.ndarray, target: np.ndarray, seed: int, strength: float) -> np.ndarray:
    """Where a camera at `eye` `(3,)` that looks at `target` stands in the episode of `seed`: around the
    target by up to `AROUND`, up or down by up to `UP`, nearer or further by `NEARER` of the way, times
    `strength`, 0 (where it was) to 1. ValueError for another strength."""
    if not 0 <= strength <= 1:
        raise ValueError(f"views: {strength} is not between 0 (always the same) and 1 (as far as can be)")
    if strength == 0:
        return eye
    around, up, nearer = strength * np.random.default_rng([seed, VIEWS]).uniform(-1, 1, 3)
    x, y, z = eye - target
    away = np.linalg.norm(eye - target)
    yaw, pitch = np.arctan2(y, x) + AROUND * around, np.arcsin(z / away) + UP * up
    there = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    return target + away * (1 + NEARER * nearer) * there


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
