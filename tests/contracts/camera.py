"""The contract of `drivers.camera.Camera`, for any implementation: `check_camera(camera, clock)` with a
closed camera."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.drivers.camera import Camera, CameraState, StaleFrame
from ulna.drivers.clock import Clock


def check_camera(camera: Camera, clock: Clock) -> None:
    camera.close()
    with pytest.raises(StaleFrame, match=camera.name):
        camera.latest()
    camera.open()
    # stale: on a busy machine a frame may be late
    assert camera.health().state in (CameraState.CONNECTING, CameraState.STREAMING, CameraState.STALE)

    first = camera.next(-1, timeout_s=2.0)
    assert first.data.shape == (camera.height, camera.width, 3)
    assert first.data.dtype == np.uint8
    assert first.data.std() > 1, "a picture of something"
    assert first.t_capture_ns <= first.t_receive_ns <= clock.now_ns()

    same = camera.latest()
    assert same.seq >= first.seq
    later = camera.next(first.seq, timeout_s=2.0)
    assert later.seq > first.seq
    assert later.t_capture_ns - first.t_capture_ns >= 0.5e9 / camera.fps

    for _ in range(4):
        later = camera.next(later.seq, timeout_s=2.0)
    window = camera.window(3)
    assert [s.seq for s in window] == sorted({s.seq for s in window})
    assert len(window) == 3
    assert window[-1].seq >= later.seq

    since = getattr(camera, "since", None)
    if since is not None:  # every frame of a stretch, each once, the same that the others give
        third = camera.next(later.seq + 2, timeout_s=2.0)
        frames = since(later.seq)
        assert [s.seq for s in frames] == sorted({s.seq for s in frames})
        assert later.seq < frames[0].seq < third.seq <= frames[-1].seq
        (same,) = (s for s in frames if s.seq == third.seq)
        assert (same.t_capture_ns, same.t_receive_ns) == (third.t_capture_ns, third.t_receive_ns)
        np.testing.assert_array_equal(same.data, third.data)
        assert not since(frames[-1].seq + 10_000)
        later = third

    health = camera.health()
    for _ in range(300):  # on a busy machine a rate measured over a few frames is a rough one
        if health.state is CameraState.STREAMING and health.fps == pytest.approx(camera.fps, rel=0.2):
            break
        later = camera.next(later.seq, timeout_s=2.0)
        health = camera.health()
    assert health.state is CameraState.STREAMING
    assert 0 <= health.age_s < 1
    assert health.fps == pytest.approx(camera.fps, rel=0.2)
    intrinsics = camera.intrinsics
    if intrinsics is not None:
        assert (intrinsics.width, intrinsics.height) == (camera.width, camera.height)
        assert intrinsics.matrix.shape == (3, 3)
    with pytest.raises(StaleFrame):
        camera.next(later.seq + 10_000, timeout_s=0.2)
    camera.close()
    camera.close()
    assert since is None or not since(-1)
