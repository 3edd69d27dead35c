"""The planar geometry of a T: two rectangles, their overlap with another T, their edges. Lengths in units of
the T's bar thickness; the origin is the centre of area."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# bar 4 × 1 on top of a stem 1 × 3, as in Push-T (Florence et al. 2021; Chi et al. 2023: 120 × 30 and 30 × 90)
_CENTROID_Y = (4 * 0.5 + 3 * -1.5) / 7  # with y = 0 at the seam
RECTANGLES = (  # centre (x, y), half size (x, y)
    (np.array([0.0, 0.5 - _CENTROID_Y]), np.array([2.0, 0.5])),
    (np.array([0.0, -1.5 - _CENTROID_Y]), np.array([0.5, 1.5])),
)
AREA = 7.0
SPACING = 0.35  # of the points of an edge, at most about


def rotation2(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s], [s, c]])


def corners(pose: np.ndarray) -> list[np.ndarray]:
    """Each rectangle's corners `(4, 2)`, counter-clockwise, for `pose` (x, y, yaw) in the same units."""
    turn = rotation2(pose[2])
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return [pose[:2] + (centre + signs * half) @ turn.T for centre, half in RECTANGLES]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The share of one T's area that lies in the other, 0 to 1; poses (x, y, yaw) in units of the bar
    thickness.

    Exact: the rectangles of one T do not overlap each other, so the four pairwise intersections add up.
    """
    return sum(_area(_clip(p, q)) for p in corners(a) for q in corners(b)) / AREA


def _clip(polygon: np.ndarray, window: np.ndarray) -> np.ndarray:
    """The part of a convex polygon in a convex counter-clockwise window (Sutherland and Hodgman 1974)."""
    for i in range(len(window)):
        if len(polygon) == 0:
            break
        start, edge = window[i], window[(i + 1) % len(window)] - window[i]
        side = edge[0] * (polygon[:, 1] - start[1]) - edge[1] * (polygon[:, 0] - start[0])
        inside = []
        for j in range(len(polygon)):
            k = (j + 1) % len(polygon)
            if side[j] >= 0:
                inside.append(polygon[j])
            if (side[j] >= 0) != (side[k] >= 0):
                inside.append(polygon[j] + (polygon[k] - polygon[j]) * (side[j] / (side[j] - side[k])))
        polygon = np.array(inside)
    return polygon


def _area(polygon: np.ndarray) -> float:
    if len(polygon) < 3:
        return 0.0
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(frozen=True)
class Contacts:
    """Where a T can be pushed: points on its outline `(N, 2)` and inward normals `(N, 2)`, in the T's own
    frame."""

    points: np.ndarray
    normals: np.ndarray


def contacts(clearance: float) -> Contacts:
    """Points along every edge where a disc of radius `clearance` just outside touches nothing else of the
    T."""
    points, normals = [], []
    for centre, half in RECTANGLES:
        for axis in (0, 1):
            for sign in (-1.0, 1.0):
                along = 1 - axis
                reach = half[along] - 0.15
                for offset in np.linspace(-reach, reach, max(2, round(2 * reach / SPACING) + 1)):
                    point = centre.copy()
                    point[axis] += sign * half[axis]
                    point[along] += offset
                    inward = np.zeros(2)
                    inward[axis] = -sign
                    if all(_distance(point - inward * clearance, r) > 0.98 * clearance for r in RECTANGLES):
                        points.append(point)
                        normals.append(inward)
    return Contacts(np.array(points), np.array(normals))


def _distance(point: np.ndarray, rectangle: tuple[np.ndarray, np.ndarray]) -> float:
    centre, half = rectangle
    return float(np.linalg.norm(np.maximum(np.abs(point - centre) - half, 0)))
