"""The age of a frame when the control loop gets it: a network camera of 640 × 480 at 30 Hz, read by ours,
plain OpenCV and LeRobot's.

python benchmarks/cameras.py

The camera is the MJPEG twin in a process of its own. It paints the time of capture into the pixels before it
encodes them, so every age is read from the picture alone, and includes encoding, network and decoding.
Targets: age p50 <= 5 ms for `latest()` called as a frame arrives (called at random times, half a period more
for any reader); ring read <= 100 us."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import results

from ulna.drivers.camera import StaleFrame
from ulna.drivers.cameras import opencv
from ulna.drivers.cameras.frame_ring import FrameRing
from ulna.drivers.twins.mjpeg import read_mark

ROUNDS, FRAMES, POLLS, PAUSE_S = 3, 150, 150, 2.0
Read = Callable[[], np.ndarray]  # RGB or BGR: the marks are black and white


@contextmanager
def twin() -> Iterator[tuple[str, Callable[[dict[str, Any]], None]]]:
    """URL of a twin in its own process, and how to put a fault in."""
    command = [sys.executable, "-m", "ulna.drivers.twins.mjpeg"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def tell(what: dict[str, Any]) -> dict[str, Any]:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        url = tell({"height": 480, "width": 640, "fps": 30, "paint": True})["url"]
        yield url, lambda faults: print(tell({"faults": faults}), file=sys.stderr)
        stdin.close()


def age_ms(color: np.ndarray) -> float:
    now_us = time.monotonic_ns() // 1000 & 0xFFFFFFFFFF
    return (now_us - read_mark(color)[1]) / 1000


class PlainThread:
    """What most code does: a thread that reads `cv2.VideoCapture` and keeps the last frame under a lock."""

    def __init__(self, url: str) -> None:
        self.capture, self.count, self.frame = cv2.VideoCapture(url), 0, np.empty(0)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopping.is_set():
            ok, frame = self.capture.read()
            if not ok:
                return
            with self.lock:
                self.frame, self.count = frame, self.count + 1

    def latest(self) -> np.ndarray:
        with self.lock:
            return self.frame.copy()

    def next(self) -> np.ndarray:
        count = self.count
        while self.count == count:
            time.sleep(0.0005)
        return self.latest()

    def close(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.capture.release()


@contextmanager
def ours(url: str, reader: str) -> Iterator[tuple[Read, Read]]:
    camera, seq = opencv.make("front", opencv.Config(url, reader=reader)), -1
    camera.open()

    def following() -> np.ndarray:
        nonlocal seq
        sample = camera.next(seq, 5.0)
        seq = sample.seq
        return sample.data

    try:
        yield (lambda: camera.latest().data), following
    finally:
        camera.close()


@contextmanager
def plain(url: str) -> Iterator[tuple[Read, Read]]:
    reader = PlainThread(url)
    try:
        reader.next()
        yield reader.latest, reader.next
    finally:
        reader.close()


@contextmanager
def lerobot(url: str) -> Iterator[tuple[Read, Read]]:
    from lerobot.cameras.opencv import OpenCVCamera, OpenCVCameraConfig

    camera = OpenCVCamera(OpenCVCameraConfig(index_or_path=url))  # type: ignore[arg-type]  # a Path eats a slash
    camera.connect()
    try:
        yield camera.read_latest, lambda: camera.async_read(timeout_ms=5000)
    finally:
        camera.disconnect()


def measure(reads: tuple[Read, Read], ages_ms: dict[str, list[float]]) -> None:
    latest, following = reads
    for _ in range(30):
        following()
    ages_ms.setdefault("arrival", []).extend(age_ms(following()) for _ in range(FRAMES))
    rng = np.random.default_rng(0)
    for _ in range(POLLS):
        time.sleep(rng.uniform(0, 1 / 30))
        ages_ms.setdefault("latest", []).append(age_ms(latest()))
    time.sleep(PAUSE_S)
    ages_ms.setdefault("after_pause", []).append(age_ms(latest()))


def spread(ms: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(ms, q)), 2) for q in (50, 99)}


def ages(url: str) -> dict[str, Any]:
    """The readers take turns, so that what else the machine does falls on all alike."""
    readers: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[Read, Read]]]] = {
        "ulna, multipart": lambda: ours(url, "multipart"),
        "ulna, ffmpeg": lambda: ours(url, "ffmpeg"),
        "cv2.VideoCapture in a thread": lambda: plain(url),
        "lerobot OpenCVCamera": lambda: lerobot(url),
    }
    ages_ms: dict[str, dict[str, list[float]]] = {name: {} for name in readers}
    for _ in range(ROUNDS):
        for name, reader in readers.items():
            with reader() as reads:
                measure(reads, ages_ms[name])
    rows: dict[str, Any] = {
        name: {
            "age_on_arrival_ms": spread(ms["arrival"]),
            "age_at_latest_polled_at_random_ms": spread(ms["latest"]),
            f"age_after_{PAUSE_S:g}_s_pause_ms": [round(a, 1) for a in ms["after_pause"]],
        }
        for name, ms in ages_ms.items()
    }
    capture = cv2.VideoCapture(url)  # and without a thread, as scripts do
    for _ in range(60):
        capture.read()
    time.sleep(PAUSE_S)
    rows["cv2.VideoCapture without a thread"] = {
        f"age_after_{PAUSE_S:g}_s_pause_ms": [round(age_ms(capture.read()[1]), 1)]
    }
    capture.release()
    return rows


def capture_time_error(url: str) -> dict[str, Any]:
    """Of `Sample.t_capture_ns`, against the painted time."""
    rows = {}
    for reader in ("multipart", "ffmpeg"):
        camera, ms = opencv.make("front", opencv.Config(url, reader=reader)), []
        camera.open()
        seq = -1
        for _ in range(FRAMES):
            sample = camera.next(seq, 5.0)
            seq = sample.seq
            late_us = (sample.t_capture_ns // 1000 & 0xFFFFFFFFFF) - read_mark(sample.data)[1]
            ms.append(late_us / 1000)
        camera.close()
        rows[reader] = {**spread(ms), "standard_deviation": round(float(np.std(ms)), 2)}
    return rows


def after_a_stall(url: str, fault: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The camera sends nothing for 2.5 s: what a reader gives in that time, and 3 s after it."""
    rows = {}
    for name, reader in (
        ("ulna, multipart", lambda: ours(url, "multipart")),
        ("cv2.VideoCapture in a thread", lambda: plain(url)),
        ("lerobot OpenCVCamera", lambda: lerobot(url)),
    ):
        with reader() as (latest, _):
            fault({"stalled": True})
            time.sleep(2.5)
            during = _attempt(latest)
            fault({"stalled": False})
            time.sleep(3)
            rows[name] = {"during": during, "after": _attempt(latest)}
    return rows


def _attempt(latest: Read) -> str:
    try:
        return f"a frame {age_ms(latest()):.0f} ms old"
    except (StaleFrame, RuntimeError, TimeoutError) as e:
        return f"{type(e).__name__}"


def ring_times() -> dict[str, Any]:
    ring = FrameRing.create(480, 640)
    writer, frame = FrameRing(ring.path, write=True), np.zeros((480, 640, 3), np.uint8)
    try:
        rows = {}
        for name, call in (
            ("write_us", lambda: writer.write(frame, t_capture_ns=0)),
            ("read_us", ring.latest),
            ("plain_copy_us", frame.copy),
        ):
            us = []
            for _ in range(3000):
                start = time.perf_counter()
                result = call()
                us.append((time.perf_counter() - start) * 1e6)
                del result
            rows[name] = spread(us)
        return rows
    finally:
        writer.close()
        ring.close()
        ring.remove()


if __name__ == "__main__":
    rows: dict[str, Any] = {"ring_640x480": ring_times()}
    with twin() as (url, fault):
        rows["age"] = ages(url)
        rows["capture_time_error_ms"] = capture_time_error(url)
        rows["stall"] = after_a_stall(url, fault)
    results.save("cameras", {"rounds": ROUNDS, "frames": FRAMES, **rows})
