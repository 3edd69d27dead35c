"""Single frames as image files for the browser: lossless ones, small ones, thumbnails; depth in colours."""

from __future__ import annotations

from html import escape
from typing import Literal

import numpy as np

from ...datasets.episode import Episode, StoreError
from ...datasets.features import is_depth, is_frames
from ..report.plots import Line, sparkline
from .series import Timeline

SAMPLED_FOR_RANGE = 8
THUMBNAIL_WIDTH = 160


def rgb(e: Episode, key: str, rows: list[int], near_far: tuple[float, float] | None = None) -> np.ndarray:
    """Frames of `rows` for the eye, `(N, H, W, 3)` uint8. Depth is coloured from near to far (`near_far`, in
    the stored unit), and black where it is unknown."""
    frames = e.read_frames(key, rows)
    if is_depth(key):
        near, far = near_far or depth_range(e, key)
        return np.stack([_in_colours(f, near, far) for f in frames]) if len(frames) else frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3, 4):
        raise StoreError(f"stream {key} holds {frames.dtype} {frames.shape[1:]}, which is no picture")
    return frames[..., :3] if frames.shape[-1] > 1 else np.repeat(frames, 3, axis=-1)


def depth_range(e: Episode, key: str) -> tuple[float, float]:
    """(Near, far) in the stored unit: the 1st and 99th percentile of the known depths in a few frames."""
    rows = np.unique(np.linspace(0, e.rows(key) - 1, SAMPLED_FOR_RANGE).round().astype(int))
    depths = e.read_frames(key, rows) if e.rows(key) else np.zeros(0, np.uint16)
    depths = depths[depths > 0]
    if not len(depths):
        return 0.0, 1.0
    near, far = np.percentile(depths, [1, 99])
    return float(near), float(max(far, near + 1))


def picture(
    e: Episode, key: str, row: int, how: Literal["png", "jpeg", "raw"], near_far: tuple[float, float] | None
) -> tuple[bytes, str]:
    """(Bytes of the file, media type) of one frame. how: `png` is a lossless image, `raw` lossless 16-bit
    depth, `jpeg` is fast."""
    import cv2

    if how == "raw" and is_depth(key):
        pixels = e.read_frames(key, [row])[0].squeeze()
    else:
        pixels = cv2.cvtColor(rgb(e, key, [row], near_far)[0], cv2.COLOR_RGB2BGR)
    if how == "jpeg":
        return _encode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85]), "image/jpeg"
    return _encode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]), "image/png"


def thumbnail(e: Episode, timeline: Timeline | None) -> tuple[bytes, str]:
    """(Bytes of the file, media type) of a thumbnail: the middle frame of the first camera that can be read,
    colour before depth; without one, the curves of `timeline`."""
    import cv2

    for key in sorted(filter(is_frames, e.streams), key=is_depth):
        try:
            frame = rgb(e, key, [e.rows(key) // 2])[0]
        except (StoreError, IndexError):
            continue
        h, w = frame.shape[:2]
        width = min(w, THUMBNAIL_WIDTH)
        small = cv2.resize(frame, (width, max(1, h * width // w)), interpolation=cv2.INTER_AREA)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        return _encode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82]), "image/jpeg"
    return _curves(timeline).encode(), "image/svg+xml"


def _curves(timeline: Timeline | None) -> str:
    """A drawing of an episode without cameras."""
    lines = []
    for vector in (timeline.vectors if timeline else {}).values():
        step = max(1, len(vector.t_s) // 80)
        for d in range(min(vector.values.shape[1], 4)):
            column = vector.values[::step, d]
            if len(column) > 1 and np.isfinite(column).all() and np.ptp(column) > 0:
                y = (column - column.min()) / np.ptp(column)
                lines.append(Line("", vector.t_s[::step].tolist(), y.tolist(), "abc"[d % 3]))
        if lines:
            break
    svg = sparkline("curves", lines, 160, 120) if lines else '<svg viewBox="0 0 160 120">'
    style = (
        "<style>polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".a{stroke:#2b8ca6}.b{stroke:#d9822b}.c{stroke:#9370c4}</style>"
    )
    head, _, rest = svg.partition(">")
    body = rest if lines else "</svg>"
    return f'{head} xmlns="{escape("http://www.w3.org/2000/svg")}">{style}{body}'


def _in_colours(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    import cv2

    depth = depth.squeeze()
    shares = np.clip((depth.astype(np.float32) - near) / (far - near), 0, 1)
    bgr = cv2.applyColorMap((255 * (1 - shares)).astype(np.uint8), cv2.COLORMAP_TURBO)
    bgr[depth == 0] = 0
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _encode(kind: str, pixels: np.ndarray, options: list[int]) -> bytes:
    import cv2

    ok, data = cv2.imencode(kind, pixels, options)
    if not ok:
        raise StoreError(f"a frame of shape {pixels.shape} cannot be coded as {kind}")
    return data.tobytes()
