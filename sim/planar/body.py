"""The body, a point or a disc with a speed limit, and what it may touch. Positions are float64 columns in
metres, one row an environment.

Only +, -, ×, ÷, square roots and comparisons: they are exact to the last bit whatever the batch, where sines
and sums over axes may differ between a vector unit's lanes and the rest."""

from __future__ import annotations

import numpy as np

Column = np.ndarray


def columns(points_n2: np.ndarray) -> tuple[Column, Column]:
    """x and y of points, e.g. of an observation in float32."""
    return points_n2[:, 0].astype(np.float64), points_n2[:, 1].astype(np.float64)


def towards(
    x: Column, y: Column, goal_x: Column | float, goal_y: Column | float, step: float
) -> tuple[Column, Column]:
    """The goal, or the point `step` metres on the straight way to it."""
    dx, dy = goal_x - x, goal_y - y
    share = step / np.maximum(np.sqrt(dx * dx + dy * dy), step)
    return x + share * dx, y + share * dy


def distance(x: Column, y: Column, to_x: Column | float, to_y: Column | float) -> Column:
    dx, dy = to_x - x, to_y - y
    return np.sqrt(dx * dx + dy * dy)


def passing_distance(
    x0: Column, y0: Column, x1: Column, y1: Column, to_x: Column | float, to_y: Column | float
) -> Column:
    """How near the way from point 0 to point 1 comes to a point, so that nothing is jumped over."""
    dx, dy = x1 - x0, y1 - y0
    ex, ey = to_x - x0, to_y - y0
    share = (ex * dx + ey * dy) / np.maximum(dx * dx + dy * dy, 1e-12)
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    ex, ey = ex - share * dx, ey - share * dy
    return np.sqrt(ex * ex + ey * ey)


def push_disc(x: Column, y: Column, disc_x: Column, disc_y: Column, reach: float) -> tuple[Column, Column]:
    """Where a disc lies after the body has come to (x, y): as far off as `reach` (the sum of the radii) along
    the line of centres if they overlap, else where it lay. Quasi-static: it never slides on."""
    dx, dy = disc_x - x, disc_y - y
    apart = np.maximum(np.sqrt(dx * dx + dy * dy), 1e-9)
    shift = np.maximum(reach - apart, 0.0) / apart
    return disc_x + shift * dx, disc_y + shift * dy


def slide_in_cells(
    free: np.ndarray, cell: float, x0: Column, y0: Column, x1: Column, y1: Column
) -> tuple[Column, Column]:
    """The way from point 0 (in a free cell) to point 1 on a map of square cells, sliding along walls: first
    in x, then in y; a move into a wall ends short of it. free: `(rows, columns)` bool with a wall all round,
    cell [r, c] reaching from (c, r) to (c + 1, r + 1) times `cell` metres. A step must be shorter than a
    cell."""
    row, column = np.floor(y0 / cell).astype(np.int64), np.floor(x0 / cell).astype(np.int64)
    x = _stop_at_wall(free, cell, row, column, x0, x1, along_x=True)
    column = np.floor(x / cell).astype(np.int64)
    return x, _stop_at_wall(free, cell, row, column, y0, y1, along_x=False)


WALL_GAP = 1e-6  # m, so that rounding never puts the body into the wall it leans on


def _stop_at_wall(
    free: np.ndarray, cell: float, row: np.ndarray, column: np.ndarray, a: Column, b: Column, along_x: bool
) -> Column:
    index = column if along_x else row
    goal = np.floor(b / cell).astype(np.int64)
    open_ = free[row, goal] if along_x else free[goal, column]
    face = np.where(b > a, (index + 1) * cell - WALL_GAP, index * cell + WALL_GAP)
    return np.where(open_, b, face)
