"""Frames out of videos and coded images, for import."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from .store import StoreError


def video_frames(
    path: Path, times_s: np.ndarray, stop_s: float, fps: float, where: str
) -> Generator[np.ndarray]:
    """The frame `(H, W, 3)` uint8 RGB nearest to each of the ascending `times_s` of the file's own time line.

    It must be within half a period, before `stop_s`, where another episode's frames begin, and another one for every
    row; else StoreError, which begins with `where`.
    """
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
            timed = (f for f in container.decode(stream) if f.time is not None)
            ours = itertools.takewhile(lambda f: f.time < stop_s - half, timed)
            last: Any = None
            used = False
            for frame in itertools.chain(ours, [None]):
                while last is not None and (
                    frame is None or times_s[row] - last.time <= frame.time - times_s[row]
                ):
                    if abs(times_s[row] - last.time) > half:
                        few = f"; it has fewer frames than the {len(times_s)} rows" if frame is None else ""
                        raise StoreError(
                            f"{where}: the video {path} has no frame for row {row} at {times_s[row]:.3f} s{few}"
                        )
                    if used:
                        raise StoreError(
                            f"{where}: rows {row - 1} and {row} both fall on the frame at {last.time:.3f} s of the video "
                            f"{path}: its timestamps are not those of its video"
                        )
                    yield last.to_ndarray(format="rgb24")
                    used = True
                    row += 1
                    if row == len(times_s):
                        return
                last, used = frame, False
    except FFmpegError as error:
        raise StoreError(f"{where}: the video {path} cannot be decoded ({error.strerror})") from None
    except IndexError:
        raise StoreError(f"{where}: {path} holds no video") from None
    raise StoreError(f"{where}: the video {path} holds no frame of this episode")


def still_frames(column: Any, where: str) -> Generator[np.ndarray]:
    """The images `(H, W, 3)` uint8 RGB of a column of PNG or JPEG bytes."""
    import cv2

    for row, value in enumerate(column):
        d = value.as_py()
        data = d.get("bytes") if isinstance(d, dict) else d
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            raise StoreError(f"{where}: the image of row {row} cannot be decoded")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """`image` as (height, width) `size`, every pixel the mean of the area it covers; as it is where `size` is None."""
    if size is None or image.shape[:2] == size:
        return image
    import cv2

    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
