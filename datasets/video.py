"""Reads frames from videos and encoded images, and writes videos."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .episode import StoreError

# no playlists: they would open other files
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,ogg"
DEEP_GREY = ("gray16le", "gray16be")
LEAD_S = 0.5
MOST_SHIFT_S = 1.0  # from rows to their frames
Kind = Literal["colour", "depth", "codes"]


@dataclass(frozen=True)
class Picture:
    """How the pictures of a file are. kind: `depth` has 16 bits of grey; `codes` is grey of other depths
    above 8 bits, whose steps are not known."""

    height: int
    width: int
    kind: Kind = "colour"


@contextlib.contextmanager
def _video(path: Path, place: str) -> Iterator[tuple[Any, Any]]:
    """(container, its video stream). Raises StoreError, which begins with `place`."""
    import av
    from av.error import FFmpegError

    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise StoreError(f"{place}: the video {path} cannot be decoded (its codec is not known)")
            yield container, stream
    except FFmpegError as error:
        raise StoreError(f"{place}: the video {path} cannot be decoded ({error.strerror})") from None
    except IndexError:
        raise StoreError(f"{place}: {path} holds no video") from None


def video_header(path: Path, place: str) -> tuple[Picture, np.ndarray | None]:
    """How a video's pictures are, and the times of all frames in seconds, ascending `(N,)` float64, or None
    where the file does not have them. Nothing is decoded. Raises StoreError, which begins with `place`."""
    with _video(path, place) as (container, stream):
        codec = stream.codec_context
        if not (codec.width and codec.height):
            raise StoreError(f"{place}: the video {path} does not say how large its pictures are")
        grey = (codec.pix_fmt or "").startswith("gray") and codec.pix_fmt not in ("gray", "gray8")
        kind: Kind = "depth" if codec.pix_fmt in DEEP_GREY else "codes" if grey else "colour"
        picture = Picture(codec.height, codec.width, kind)
        stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
        if stream.time_base is None or None in stamps:
            return picture, None
        return picture, np.sort(np.array(stamps, np.int64)) * float(stream.time_base)


def require_frames(
    path: Path, frames_s: np.ndarray, times_s: np.ndarray, stop_s: float, fps: float, place: str
) -> int:
    """How many of a video's frames at `frames_s` `(N,)` are of the episode with rows at `times_s`. Raises
    StoreError where `video_frames` would, as far as times tell."""
    half = 0.5 / fps
    own = frames_s[frames_s < stop_s - half]
    if not len(own):
        raise StoreError(f"{place}: the video {path} holds no frame of this episode")
    after = np.clip(np.searchsorted(own, times_s), 1, max(1, len(own) - 1))
    before = np.minimum(after - 1, len(own) - 1)
    after = np.minimum(after, len(own) - 1)
    nearest = np.where(times_s - own[before] <= own[after] - times_s, before, after)
    far = np.abs(times_s - own[nearest]) > half
    again = np.diff(nearest, prepend=-1) == 0
    if (far | again).any():
        row = int(np.flatnonzero(far | again)[0])
        raise _no_frame(path, row, times_s, bool(far[row]), float(own[nearest[row]]), float(own[-1]), place)
    return int(np.count_nonzero(own >= times_s[0] - half))


def time_shift(frames_s: np.ndarray, times_s: np.ndarray, start_s: float, stop_s: float, fps: float) -> float:
    """How much later rows at `times_s` are than their frames, in seconds. 0 unless an episode's part of a
    video (`start_s` to `stop_s`) has as many frames as rows, and all rows are later (or earlier) by the same,
    no more than MOST_SHIFT_S: GR00T's demonstrations count their rows from one period on."""
    half = 0.5 / fps
    own = frames_s[(frames_s >= start_s - half) & (frames_s < stop_s - half)]
    if len(own) != len(times_s):
        return 0.0
    later = times_s - own
    is_same = np.abs(later - later[0]).max() <= half
    return float(later[0]) if is_same and half < abs(later[0]) <= MOST_SHIFT_S else 0.0


def _no_frame(
    path: Path, row: int, times_s: np.ndarray, far: bool, frame_s: float, last_s: float, place: str
) -> StoreError:
    if far:
        few = f"; it has fewer frames than the {len(times_s)} rows" if times_s[row] > last_s else ""
        return StoreError(
            f"{place}: the video {path} has no frame for row {row} at {times_s[row]:.3f} s{few}"
        )
    return StoreError(
        f"{place}: rows {row - 1} and {row} both fall on the frame at {frame_s:.3f} s of the video {path}: "
        "its timestamps are not those of its video"
    )


def video_frames(
    path: Path,
    times_s: np.ndarray,
    stop_s: float,
    fps: float,
    place: str,
    picture: Picture | None = None,
    lead_s: float = LEAD_S,
) -> Generator[np.ndarray]:
    """The frame `(H, W, 3)` uint8 RGB, or `(H, W)` uint16 of a `picture` of depth, nearest to each of the
    ascending `times_s` of the file's own time line.

    Each frame must be within half a period of its time and before `stop_s`, where another episode begins, and
    no frame may serve two times. Where `picture` is given, each must be of its size. Raises StoreError, which
    begins with `place`, otherwise. lead_s: how long before the first of them to begin to decode; where frames
    are stored in another order than they are shown, little is too little."""
    half = 0.5 / fps
    row = 0
    with _video(path, place) as (container, stream):
        stream.thread_type = "AUTO"
        if times_s[0] > 2 * lead_s and stream.time_base is not None:  # skip what comes first
            container.seek(int((times_s[0] - lead_s) / stream.time_base), stream=stream)
        frames_with_time = (f for f in container.decode(stream) if f.time is not None)
        episode_frames = itertools.takewhile(lambda f: f.time < stop_s - half, frames_with_time)
        last: Any = None
        is_used = False
        for frame in itertools.chain(episode_frames, [None]):
            while last is not None and (
                frame is None or times_s[row] - last.time <= frame.time - times_s[row]
            ):
                far = abs(times_s[row] - last.time) > half
                if far or is_used:
                    end = last.time if frame is None else math.inf
                    raise _no_frame(path, row, times_s, far, last.time, end, place)
                if picture is not None and (last.height, last.width) != (picture.height, picture.width):
                    raise StoreError(
                        f"{place}: the video {path} has {last.width}×{last.height} pixels in row {row}, not "
                        f"{picture.width}×{picture.height}"
                    )
                deep = picture is not None and picture.kind == "depth"
                yield last.to_ndarray(format="gray16le" if deep else "rgb24")
                is_used = True
                row += 1
                if row == len(times_s):
                    return
            last, is_used = frame, False
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


def still_picture(data: bytes | None, place: str) -> Picture:
    """How a PNG, JPEG, TIFF … is, by its header. Raises StoreError, which begins with `place`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            deep = image.mode.startswith("I")
            return Picture(
                image.height, image.width, "depth" if deep else "codes" if image.mode == "F" else "colour"
            )
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        why = f" ({error})" if isinstance(error, Image.DecompressionBombError) else ""
        raise StoreError(f"{place} cannot be decoded{why}") from None


def still_frames(
    column: Any, place: str, picture: Picture | None = None, first: int = 0
) -> Generator[np.ndarray]:
    """The images of a column of PNG or JPEG bytes: `(H, W, 3)` uint8 RGB, or `(H, W)` uint16 of depth.
    Where `picture` is given, each must be like it. first: number of the first row, for messages. Raises
    StoreError, which begins with `place`."""
    import cv2

    for row, value in enumerate(column, first):
        where = f"{place}: the image of row {row}"
        data = still_bytes(value, where)
        own = still_picture(data, where)
        if picture is not None and own != picture:
            raise StoreError(
                f"{where} is {own.kind} of {own.width}×{own.height} pixels, not {picture.kind} of "
                f"{picture.width}×{picture.height}"
            )
        deep = own.kind != "colour"
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if deep else cv2.IMREAD_COLOR
        )
        if image is None or (deep and (image.ndim, image.dtype) != (2, np.uint16)):
            raise StoreError(f"{where} cannot be decoded")
        yield image if deep else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def still_bytes(value: Any, where: str) -> bytes:
    """The bytes of one entry of a column of images. Raises StoreError, which begins with `where`."""
    d = value.as_py() if hasattr(value, "as_py") else value
    data = d.get("bytes") if isinstance(d, dict) else d
    if not data and isinstance(d, dict) and d.get("path"):
        raise StoreError(
            f"{where} lies in a file of its own, {d['path']}, and not in the table: it is not read"
        )
    if not isinstance(data, bytes) or not data:
        raise StoreError(f"{where} cannot be decoded")
    return data


def resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """`image` as (height, width) `size`, every pixel the mean of the area it covers (of depth, the nearest);
    as it is where `size` is None."""
    if size is None or image.shape[:2] == size:
        return image
    import cv2

    # means of depth would make up surfaces between near and far
    method = cv2.INTER_AREA if image.dtype == np.uint8 else cv2.INTER_NEAREST
    return cv2.resize(image, (size[1], size[0]), interpolation=method)
