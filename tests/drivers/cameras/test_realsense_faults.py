"""A RealSense camera that stalls, is unplugged or ends: noticed and reported, and nothing is left behind; and
the twin's process that makes it do so."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.realsense import (
    FPS,
    NEAR,
    SIZE,
    H,
    W,
    all_frames,
    frames,
    open_source,
    picture,
    record_box,
    running,
    twin,
    until,
)

from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import CameraState
from ulna.drivers.cameras.capture import Refused
from ulna.drivers.cameras.frame_ring import FrameRing
from ulna.drivers.cameras.realsense import Config, RealSenseSource, make, source
from ulna.drivers.twins.faults import CameraFaults

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_box(tmp_path_factory.mktemp("recordings") / "box.db3")


# what goes wrong


def test_stall_is_stale_and_passes() -> None:
    with twin() as t, running(t) as camera:
        t.faults.stalled = True
        states = set()

        def stale() -> bool:
            states.add(camera.health().state)
            return CameraState.STALE in states

        until(stale)
        t.faults.stalled = False
        until(lambda: camera.health().state is CameraState.STREAMING)
        assert camera.next(-1, 10).t_capture_ns > time.monotonic_ns() - 1e9


def test_unplugging_is_noticed_and_replugging_mended() -> None:
    with twin() as t, running(t) as camera:
        last_seq = camera.latest(10).seq
        t.faults.unplugged = True
        until(lambda: camera.health().state is CameraState.RECONNECTING)
        assert t.address in camera.health().message
        t.faults.unplugged = False
        until(lambda: camera.health().state is CameraState.STREAMING)
        assert camera.next(last_seq, 10).seq > last_seq
        assert camera.reconnects == 1


def test_unplugging_in_the_words_of_the_source() -> None:
    with twin() as t, open_source(source="twin", address=t.address) as camera:
        frames(camera, 1)
        t.faults.unplugged = True
        with pytest.raises(DeviceError, match="was unplugged") as error:
            frames(camera, 1000)
        assert not isinstance(error.value, Refused), "it may come back"


def test_incomplete_frames_are_dropped_and_counted() -> None:
    with twin(CameraFaults(corrupt=0.5)) as t, open_source(source="twin", address=t.address) as camera:
        batch = frames(camera, 10)
    assert batch[-1].seq - batch[0].seq > len(batch) - 1
    assert all(f.color.shape == (H, W, 3) for f in batch)


def test_black_frozen_and_slow() -> None:
    with (
        twin(CameraFaults(black=True)) as t,
        open_source(source="twin", address=t.address, align="none") as camera,
    ):
        assert not any(f.color.any() or f.depth is None or f.depth.any() for f in frames(camera, 3))
        t.faults.black = False
        t.faults.frozen = True
        until(lambda: bool(frames(camera, 1)[0].color.any()))
        frames(camera, 3)
        batch = frames(camera, 3)
        assert all(np.array_equal(f.color, batch[0].color) for f in batch)
        assert batch[0].seq < batch[1].seq < batch[2].seq
        t.faults.frozen, t.faults.slow = False, 0.2
        frames(camera, 2)
        gap_ns = np.diff([f.t_capture_ns for f in frames(camera, 4)])
        assert np.median(gap_ns) > 2.5e9 / FPS


def test_the_end_of_a_recording_is_no_unplugging(recording: Path) -> None:
    camera = source({**SIZE, "source": "recording", "path": str(recording)})
    camera.open()
    _, message = all_frames(camera)
    assert "at its end; repeat = true" in message
    camera.close()
    with pytest.raises(Refused, match="at its end"):
        camera.open()


def test_the_end_of_a_recording_fails_the_camera(recording: Path) -> None:
    camera = make("front", Config(source="recording", path=str(recording), **SIZE))
    camera.open()
    until(lambda: camera.health().state is CameraState.FAILED)
    assert "at its end" in camera.health().message
    camera.close()


def test_two_cannot_have_one_camera() -> None:
    with twin() as t, open_source(source="twin", address=t.address) as first:
        frames(first, 1)
        with pytest.raises(DeviceError, match="another process has it open"):
            source({**SIZE, "source": "twin", "address": t.address}).open()
        first.close()
        second = source({**SIZE, "source": "twin", "address": t.address})

        def is_free() -> bool:
            with contextlib.suppress(DeviceError):
                second.open()
                return True
            return False

        until(is_free)
        frames(second, 1)
        second.close()


# the twin as a process, and what is left behind


def opens(camera: RealSenseSource) -> bool:
    with contextlib.suppress(DeviceError):
        camera.open()
        return True
    return False


def test_the_twins_process_serves_a_ring(tmp_path: Path) -> None:
    ring = FrameRing.create(H, W, depth=True)
    writer = FrameRing(ring.path, write=True)
    stopping = threading.Event()

    def film() -> None:
        k = 0
        while not stopping.wait(1 / FPS):
            color, depth, t_ns = picture(k := k + 1)
            writer.write(color, depth, t_capture_ns=t_ns)

    thread = threading.Thread(target=film)
    thread.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "ulna.drivers.twins.realsense"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None

        def tell(what: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        link = str(tmp_path / "camera")
        address = tell(
            {"ring": str(ring.path), "link": link, "serial": "42", "fps": 30.0, "height": H, "width": W}
        )["address"]
        assert address == f"unix:{link}"
        with open_source(source="twin", address=address, serial="42") as camera:
            frame = frames(camera, 3)[-1]
            assert frame.depth is not None
            assert frame.depth[50, 70] == NEAR, "aligned already: what the ring has is what comes"
            assert tell({"faults": {"blakc": True}})["error"].startswith("there is no fault 'blakc'")
            for order in ({"reset": True}, {"faults": {"unplugged": True}}):
                assert tell(order) == {"ok": True}
                with pytest.raises(DeviceError, match="was unplugged"):
                    frames(camera, 1000)
                camera.close()
                if "reset" in order:
                    until(lambda: opens(camera))
        process.stdin.close()
        assert process.wait(10) == 0
        assert not Path(link).exists()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        stopping.set()
        thread.join()
        writer.close()
        ring.close()
        ring.remove()


def test_a_twins_process_that_is_asked_nonsense_says_so() -> None:
    for description in (
        {"height": H, "width": W},
        {"height": H, "width": W, "fps": 30, "link": "/nowhere/at/all"},
    ):
        process = subprocess.run(
            [sys.executable, "-m", "ulna.drivers.twins.realsense"],
            check=False,
            input=json.dumps(description),
            capture_output=True,
            text=True,
        )
        assert process.returncode == 1
        assert "error" in json.loads(process.stdout)


def test_nothing_is_printed_and_no_thread_is_left(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def use() -> None:
        with twin() as t, open_source(source="twin", address=t.address) as camera:
            frames(camera, 2)
        with open_source(source="recording", path=str(recording)) as camera:
            frames(camera, 2)

    use()  # what the library keeps for the whole process is begun now
    before, files = threads(), len(list(Path("/proc/self/fd").iterdir()))
    use()
    until(lambda: threads() <= before)
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
    assert capfd.readouterr() == ("", "")
