"""Pictures of planar scenes, in numpy: discs seen from above.

Legend: n environments, P side in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .body import Column

TABLE = (0.93, 0.92, 0.90)

Disc = tuple[Column, Column, float, tuple[float, float, float]]
"""x and y `(n,)` m of the centres, the radius in m, the colour in RGB, 0 to 1."""


def seen_from_above(discs: Sequence[Disc], side: int, half: float) -> np.ndarray:
    """`(n, P, P, 3)` uint8: the square of `half` m each way around the origin, x to the right and y up. Later
    discs lie on earlier ones. The share of a pixel that a disc covers is mixed, so that a picture tells
    places to less than a pixel. side: P."""
    pixel = 2 * half / side
    along = (np.arange(side) + 0.5) * pixel - half
    picture = np.empty((len(discs[0][0]), side, side, 3))
    picture[...] = TABLE
    for x, y, radius, colour in discs:
        dx, dy = along[None, None, :] - x[:, None, None], -along[None, :, None] - y[:, None, None]
        covered = (radius - np.sqrt(dx * dx + dy * dy)) / pixel + 0.5
        share = np.minimum(np.maximum(covered, 0.0), 1.0)[..., None]
        picture += share * (np.array(colour) - picture)
    return (picture * 255 + 0.5).astype(np.uint8)
