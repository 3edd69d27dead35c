"""Videos of an episode's cameras for the browser: H.264 in MP4, made when somebody looks, kept in a cache.

Each frame's time stamp is its capture time: a camera that stopped for a second stands still for a second. The
file's zero is the camera's first frame (`start_s` on the episode's time line). Key frames are close together,
so that scrubbing is quick, and the index lies in front, so that a browser reads by range only what it shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.episode import Episode, StoreError
from ...datasets.features import is_depth
from .pictures import depth_range, rgb

MADE_AS = "1"  # changes when the same frames would give another file
TICKS_A_SECOND = 1_000_000
KEY_FRAME_EVERY = 12
PIECE_BYTES = 32 << 20  # decoded frames in memory at a time
FORGOTTEN_S = 4.0  # a video that was not requested for so long makes way for another
LIMIT_BYTES = 4 << 30


@dataclass
class Job:
    """A video to make. seconds: capture times of its frames `(T,)`. state: waiting, encoding, ready or
    failed. share: share of the frames that is encoded, 0 to 1. message: why it failed. asked_s: time of the
    last request, s."""

    digest: str
    episode: Episode
    key: str
    seconds: np.ndarray
    state: str = "waiting"
    share: float = 0.0
    message: str = ""
    asked_s: float = 0.0


class Abandoned(Exception):
    """Nobody waits for this video any more."""


class VideoCache:
    """Makes one video at a time, the last requested one first. Call `close()` at the end."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="videos", daemon=True)
        self._worker.start()

    def ask(self, e: Episode, key: str, seconds: np.ndarray) -> Job:
        """The state of the video of a camera; starts to make it when there is none. seconds: capture times
        `(T,)`, from any zero."""
        digest = hashlib.sha256(f"{MADE_AS} {e.path.resolve()} {e.content} {key}".encode()).hexdigest()[:40]
        with self._changed:
            job = self._jobs.get(digest)
            if job is None or (job.state == "ready" and not self.path(job).is_file()):
                job = self._jobs[digest] = Job(digest, e, key, seconds)
                if self.path(job).is_file():
                    job.state, job.share = "ready", 1.0
            job.asked_s = time.monotonic()
            self._changed.notify_all()
        if job.state == "ready":
            with contextlib.suppress(OSError):
                os.utime(self.path(job))  # the cache removes the videos that were not requested for longest
        return job

    def path(self, job: Job) -> Path:
        return self.folder / f"{job.digest}.mp4"

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                waiting: list[Job] = []
                while not self._closed and not (
                    waiting := [j for j in self._jobs.values() if j.state == "waiting"]
                ):
                    self._changed.wait()
                if self._closed:
                    return
                job = max(waiting, key=lambda j: j.asked_s)
                job.state = "encoding"
            self._make(job)

    def _make(self, job: Job) -> None:
        work = self.folder / f".{job.digest}.{secrets.token_hex(4)}.mp4"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            write_video(work, job.episode, job.key, job.seconds, lambda share: self._go_on(job, share))
            os.replace(work, self.path(job))
            job.share, job.state = 1.0, "ready"
        except Abandoned:
            with self._changed:
                self._jobs.pop(job.digest, None)
        except (OSError, ValueError) as error:  # av's errors are both
            job.message, job.state = f"no video of {job.key}: {error}", "failed"
        except Exception as error:  # the worker must outlive one bad video
            logging.getLogger("ulna.viewer").exception("no video of %s", job.key)
            job.message, job.state = f"no video of {job.key}: {error!r}", "failed"
        finally:
            with contextlib.suppress(OSError):
                work.unlink(missing_ok=True)

    def _go_on(self, job: Job, share: float) -> None:
        job.share = share
        with self._changed:
            others = any(j.state == "waiting" for j in self._jobs.values())
            if self._closed or (others and time.monotonic() - job.asked_s > FORGOTTEN_S):
                raise Abandoned

    def _make_room(self) -> None:
        """Remove the videos that were not requested for longest, and unfinished files of a killed viewer."""
        videos = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                if re.fullmatch(r"\.[0-9a-f]{40}\.[0-9a-f]{8}\.mp4", path.name):
                    if time.time() - stat.st_mtime > 3600:
                        path.unlink()
                elif re.fullmatch(r"[0-9a-f]{40}\.mp4", path.name):
                    videos.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in videos)
        for _, size, path in sorted(videos):
            if total <= self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def write_video(
    path: Path, e: Episode, key: str, seconds: np.ndarray, progress: Any = lambda share: None
) -> None:
    """Write all frames of a camera as H.264, each at its capture time. In place of a frame that cannot be
    read comes the one before it.

    progress(share): called with 0 to 1 after each piece, and may raise to stop. StoreError: the stream has no
    frames, or none that can be read."""
    import av

    if not len(seconds):
        raise StoreError("it has no frames")
    stamps = time_stamps(seconds)
    last = int(np.median(np.diff(stamps))) if len(stamps) > 1 else TICKS_A_SECOND // 10
    durations = np.append(np.diff(stamps), max(last, 1))
    near_far = depth_range(e, key) if is_depth(key) else None
    height, width = _first_readable(e, key, near_far).shape[:2]
    options = {"movflags": "faststart", "video_track_timescale": str(TICKS_A_SECOND)}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = _fraction()
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
        # without these in the file, browsers guess by its height
        stream.codec_context.colorspace = stream.codec_context.color_primaries = 1
        stream.codec_context.color_trc, stream.codec_context.color_range = 1, 1
        stream.options = {
            "crf": "20",
            "preset": "veryfast",
            "x264-params": f"bframes=0:keyint={KEY_FRAME_EVERY}:min-keyint=1:rc-lookahead=0",
        }
        packet_count = 0

        def mux(packets: Any) -> None:
            nonlocal packet_count
            for packet in packets:
                packet.duration = int(durations[packet_count])
                packet_count += 1
                container.mux(packet)

        before = np.zeros((height, width, 3), np.uint8)
        piece = int(np.clip(PIECE_BYTES // (height * width * 3), 1, 64))
        for first in range(0, len(stamps), piece):
            rows = list(range(first, min(first + piece, len(stamps))))
            for row, pixels in zip(rows, _frames(e, key, rows, near_far), strict=True):
                before = before if pixels is None else pixels
                frame = av.VideoFrame.from_ndarray(_even(before), format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                frame.pts, frame.time_base = int(stamps[row]), _fraction()
                mux(stream.encode(frame))
            progress((rows[-1] + 1) / len(stamps))
        mux(stream.encode())


def time_stamps(seconds: np.ndarray) -> np.ndarray:
    """Time stamps in microseconds from the first frame, `(T,)` int64, each later than the one before, as a
    video requires."""
    stamps = np.round((seconds - seconds[0]) * TICKS_A_SECOND).astype(np.int64)
    order = np.arange(len(stamps))
    return np.maximum.accumulate(stamps - order) + order


def _fraction() -> Any:
    from fractions import Fraction

    return Fraction(1, TICKS_A_SECOND)


def _frames(
    e: Episode, key: str, rows: list[int], near_far: tuple[float, float] | None
) -> list[np.ndarray | None]:
    try:
        return list(rgb(e, key, rows, near_far))
    except StoreError:
        if len(rows) == 1:
            return [None]
        return [f for row in rows for f in _frames(e, key, [row], near_far)]


def _first_readable(e: Episode, key: str, near_far: tuple[float, float] | None) -> np.ndarray:
    last: StoreError | None = None
    for row in range(e.rows(key)):
        try:
            return rgb(e, key, [row], near_far)[0]
        except StoreError as error:
            last = error
    raise last or StoreError("it has no frames")


def _even(frame: np.ndarray) -> np.ndarray:
    """A frame with even height and width, which 4:2:0 needs."""
    h, w = frame.shape[:2]
    if h % 2 or w % 2:
        frame = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame)
