"""What a camera's frames show of its health: damage, darkness, standing pictures, and how far it is behind the joints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

import numpy as np

from .features import is_image
from .store import Episode, StoreError

PIECE = 32
DARK, FLAT = 8.0, 4.0  # mean and deviation of a black frame, of 255
GRID_S = 0.01
FURTHEST_S = 0.5
LAGS_S = np.arange(-50, 51) * GRID_S
SMOOTH = 7  # steps of the grid: two frames of a 30 Hz camera
FEWEST_FOR_INTERVAL = 4
SMALL = 24  # pixels a side in which motion is looked for
MOVES_PER_S, MOVED = 0.02, 0.02  # joint speed and way, rad or m, above which a picture has to change


@dataclass
class Frames:
    """Spans are (start, end) ns by capture. duplicates: share of frames that repeat the one before while the joints move. follows: see
    `correlation`."""

    damaged: list[tuple[int, int, str]] = field(default_factory=list)
    dark: list[tuple[int, int]] = field(default_factory=list)
    frozen: list[tuple[int, int]] = field(default_factory=list)
    duplicates: float = 0.0
    brightness: float | None = None
    follows: np.ndarray | None = None


def look(
    e: Episode, key: str, t_capture_ns: np.ndarray, speed: tuple[np.ndarray, np.ndarray] | None, fast: bool
) -> Frames:
    """Goes through all frames once (every tenth where `fast`), a few at a time. speed: (moments ns, joint speed)."""
    seen = Frames()
    rows = np.arange(0, len(t_capture_ns), 10 if fast else 1)
    means, deviations, prints, small, good = [], [], [], [], []
    for row, frame in _frames(e, key, rows, seen, t_capture_ns):
        good.append(row)
        step = max(1, frame.shape[0] // SMALL), max(1, frame.shape[1] // SMALL)
        little = frame[:: step[0], :: step[1]].astype(np.float64)
        little = little.mean(-1) if frame.ndim == 3 else little
        means.append(float(little.mean()))
        deviations.append(float(little.std()))
        prints.append(crc32(np.ascontiguousarray(frame).data))
        small.append(little.astype(np.float32))
    if not good:
        return seen
    t = t_capture_ns[np.array(good)]
    period = int(np.median(np.diff(t))) if len(t) > 1 else 0
    if is_image(key):
        seen.brightness = float(np.mean(means))
        dark = (np.array(means) < DARK) & (np.array(deviations) < FLAT)
        seen.dark = [(int(t[a]), int(t[b - 1]) + period) for a, b in _spans(dark)]
    if fast or speed is None or len(t) < 3:
        return seen
    same = np.diff(np.array(prints, np.int64)) == 0
    joint_speed = np.interp(t, *speed)
    seen.duplicates = float((same & (joint_speed[1:] > MOVES_PER_S)).mean())
    way = np.concatenate([[0.0], np.cumsum(np.diff(t) * 1e-9 * (joint_speed[1:] + joint_speed[:-1]) / 2)])
    for first, last in _spans(same):  # row `last` repeats the row before it, and so back to `first`
        if t[last] - t[first] > 0.2e9 and way[last] - way[first] > MOVED:
            seen.frozen.append((int(t[first]), int(t[last])))
    if is_image(key):
        energy = np.array([np.abs(b - a).mean() for a, b in pairwise(small)])
        seen.follows = correlation((t[:-1] + t[1:]) // 2, energy, *speed)
    return seen


def correlation(
    t_energy: np.ndarray, energy: np.ndarray, t_speed: np.ndarray, speed: np.ndarray
) -> np.ndarray | None:
    """How well `energy` follows `speed` at each of `LAGS_S`, -1..1; None where nothing moves or too little was seen. Times in ns."""
    start, end = max(t_energy[0], t_speed[0]), min(t_energy[-1], t_speed[-1])
    grid = np.arange(start, end, GRID_S * 1e9)
    n = len(grid)
    if n < 3 * FURTHEST_S / GRID_S:
        return None
    a = _standard(_smooth(np.interp(grid, t_energy, np.sqrt(energy)), SMOOTH))
    b = _standard(_smooth(np.interp(grid, t_speed, np.sqrt(speed)), SMOOTH))
    if a is None or b is None:
        return None
    found = []
    for s in range(-len(LAGS_S) // 2 + 1, len(LAGS_S) // 2 + 1):
        x, y = a[max(0, s) : n + min(0, s)], b[max(0, -s) : n - max(0, s)]
        found.append(float(x @ y / np.sqrt((x @ x) * (y @ y) + 1e-12)))
    return np.array(found)


def lag(curves: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float] | None:
    """(seconds by which the picture is behind the joints, half the width of its 90 % interval) from the correlations `(L,)` of
    several episodes, by resampling these; None unless their mean has one clear peak."""
    if not curves:
        return None
    every = np.stack(curves)
    if len(every) < FEWEST_FOR_INTERVAL:
        clear = _peak(every.mean(0), 0.5, 0.15)
        return None if clear is None else (clear, GRID_S * 4)
    found = _peak(every.mean(0), 0.2, 0.02)
    if found is None:
        return None
    rng = np.random.default_rng(seed)
    draws = [every[rng.integers(0, len(every), len(every))].mean(0) for _ in range(200)]
    low, high = np.quantile([LAGS_S[int(d.argmax())] for d in draws], [0.05, 0.95])
    return found, float(max(high - found, found - low, GRID_S))


def _peak(curve: np.ndarray, least: float, sharp: float) -> float | None:
    at = int(curve.argmax())
    beside = curve[[max(0, at - 15), min(len(curve) - 1, at + 15)]].mean()
    if curve[at] < least or at in (0, len(curve) - 1) or curve[at] - beside < sharp:
        return None
    left, middle, right = curve[at - 1 : at + 2]
    bend = left - 2 * middle + right
    return float(LAGS_S[at] + (0.5 * (left - right) / bend * GRID_S if bend < 0 else 0.0))


def _frames(
    e: Episode, key: str, rows: np.ndarray, seen: Frames, t: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for piece in np.array_split(rows, max(1, -(-len(rows) // PIECE))):
        try:
            yield from zip(piece.tolist(), e.read_frames(key, piece), strict=True)
        except StoreError:
            for row in piece.tolist():
                try:
                    yield row, e.read_frames(key, [row])[0]
                except StoreError as error:
                    seen.damaged.append((int(t[row]), int(t[row]), str(error).split(": ", 2)[-1]))


def _spans(yes: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], yes.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _smooth(x: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(x, np.ones(width) / width, "same")


def _standard(x: np.ndarray) -> np.ndarray | None:
    """Without slow drift, of deviation 1; None where nothing changes."""
    x = x - _smooth(x, min(len(x) // 2 * 2 - 1, 301))
    deviation = x.std()
    return x / deviation if deviation > 1e-6 else None
