"""Reads frames from videos and encoded images, and writes videos."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .episode import StoreError


def video_frames(
    path: Path, times_s: np.ndarray, stop_s: float, fps: float, place: str
) -> Generator[np.ndarray]:
    """The frame `(H, W, 3)` uint8 RGB nearest to each of the ascending `times_s` of the file's own time line.

    Each frame must be within half a period of its time and before `stop_s`, where another episode begins, and
    no frame may serve two times. Raises StoreError, which begins with `place`, otherwise."""
    import av
    from av.error import FFmpegError

    half = 0.5 / fps
    row = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if times_s[0] > 1.0 and stream.time_base is not None:  # other episodes come first: skip them
                container.seek(int((times_s[0] - 0.5) / stream.time_base), stream=stream)
            frames_with_time = (f for f in container.decode(stream) if f.time is not None)
            episode_frames = itertools.takewhile(lambda f: f.time < stop_s - half, frames_with_time)
            last: Any = None
            is_used = False
            for frame in itertools.chain(episode_frames, [None]):
                while last is not None and (
                    frame is None or times_s[row] - last.time <= frame.time - times_s[row]
                ):
                    if abs(times_s[row] - last.time) > half:
                        few = f"; it has fewer frames than the {len(times_s)} rows" if frame is None else ""
                        raise StoreError(
                            f"{place}: the video {path} has no frame for row {row} at "
                            f"{times_s[row]:.3f} s{few}"
                        )
                    if is_used:
                        raise StoreError(
                            f"{place}: rows {row - 1} and {row} both fall on the frame at {last.time:.3f} s "
                            "of "
                            f"the video {path}: its timestamps are not those of its video"
                        )
                    yield last.to_ndarray(format="rgb24")
                    is_used = True
                    row += 1
                    if row == len(times_s):
                        return
                last, is_used = frame, False
    except FFmpegError as error:
        raise StoreError(f"{place}: the video {path} cannot be decoded ({error.strerror})") from None
    except IndexError:
        raise StoreError(f"{place}: {path} holds no video") from None
    raise StoreError(f"{place}: the video {path} holds no frame of this episode")


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    shape: tuple[int, ...],
    fps: float,
    crf: int,
    lossless: bool,
    length: int,
) -> None:
    """`frames`, each `shape` uint8 RGB, as H.264 with a key frame every second frame, as LeRobot does for
    random access. StoreError unless the file holds exactly `length` frames afterwards."""
    import av

    height, width = shape[:2]
    if not lossless and (height % 2 or width % 2):
        raise StoreError(
            f"images of {width}×{height} cannot be H.264 in 4:2:0, which needs even sizes: use --lossless"
        )
    rate = Fraction(fps).limit_denominator(100_000)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.options = {"crf": "0" if lossless else str(crf), "preset": "veryfast", "g": "2", "bf": "0"}
        stream.thread_count = 2
        for i, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            image.pts, image.time_base = i, 1 / rate
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    count = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            count += bool(packet.size)
    if count != length:
        raise StoreError(f"{path.name} came out with {count} frames instead of {length}")


def still_frames(column: Any, place: str) -> Generator[np.ndarray]:
    """The images `(H, W, 3)` uint8 RGB of a column of PNG or JPEG bytes."""
    import cv2

    for row, value in enumerate(column):
        d = value.as_py()
        data = d.get("bytes") if isinstance(d, dict) else d
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            raise StoreError(f"{place}: the image of row {row} cannot be decoded")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """`image` as (height, width) `size`, every pixel the mean of the area it covers; as it is where `size` is
    None."""
    if size is None or image.shape[:2] == size:
        return image
    import cv2

    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
