"""Checks of camera frames: unreadable, black, flat or overexposed ones, frozen images, and repeated
frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..codec import decode
from ..features import is_depth, is_frames
from ..frames import DamagedFrames
from .findings import Finding, Recording, Severity, Stream, runs
from .vectors import still

SMALL = (64, 48)  # (width, height) to which frames are shrunk for measuring
BASELINE_S = 0.13  # motion is what changes in this time: longer than two frames of a slow camera
FAST_FRAMES = 16  # of an episode, with --fast

BLACK_MEAN, BLACK_MAX = 12.0, 40.0  # of 255; darker than any lit scene, without a bright spot
WHITE_LEVEL, WHITE_SHARE = 250.0, 0.6  # at the end of the scale no contrast is left
FLAT_STD = 2.0  # one colour: a covered lens, a decoder without data
EMPTY_SHARE = 0.98  # of a depth frame without a reading
BLANK_SEVERE_S = 0.5
FROZEN_S, FROZEN_SEVERE_S = 0.4, 1.0
FROZEN_MOVED = 3.0  # times the travel that counts as standing still
TWICE_SHARE = 0.1  # of the frames while something moves
BUSY = 0.3  # of the largest change between frames
TWICE_STEP = 0.35  # of the change of the frames before and after it


@dataclass
class Scan:
    """Measurements of one camera's frames. rows, t_s `(N,)`: those that could be read. repeats `(N,)` bool:
    the frame equals the one before to the last bit. step `(N,)`: mean difference to the frame before in
    levels of 255, NaN for the first. light, spread, low, high, saturation `(N,)`: mean, standard deviation,
    extremes and share at the end of the scale (depth: `saturation` is the share without a reading, the others
    are NaN). motion `(M, 3)`: from_s, to_s and mean difference of frames BASELINE_S apart. damage: row → why
    it cannot be read."""

    key: str
    rows: np.ndarray
    t_s: np.ndarray
    repeats: np.ndarray
    step: np.ndarray
    light: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    saturation: np.ndarray
    motion: np.ndarray
    damage: dict[int, str]
    fast: bool


def scan_frames(r: Recording, stream: Stream, fast: bool = False) -> Scan:
    """Measure every frame, one at a time. fast: check all for checksums and repeats, but decode only
    FAST_FRAMES."""
    count = len(stream.t_s)
    reader = r.episode.frame_reader(stream.key)
    try:
        reader.read_encoded([])
        as_stored = True
    except DamagedFrames:
        as_stored = False  # not written by us: decoded by arrays.py
    sample_rows = set(np.linspace(0, count - 1, FAST_FRAMES).round().astype(int).tolist()) if fast else None
    depth = is_depth(stream.key)
    frame, frame_before = np.empty(reader.shape[1:], reader.dtype), np.empty(reader.shape[1:], reader.dtype)
    raw_before, small_before = b"", None
    recent: deque[tuple[float, np.ndarray]] = deque()
    row_list, repeats, measures, motion, damage = [], [], [], [], {}
    for row in range(count):
        is_decoded = sample_rows is None or row in sample_rows
        try:
            raw = reader.read_encoded([row])[0] if as_stored else b""
            if is_decoded:
                if as_stored:
                    decode(raw, reader.kind, True, frame)
                else:
                    reader.read([row], frame[None])
        except (DamagedFrames, ValueError, RuntimeError) as error:
            damage[row] = str(error)
            continue
        is_repeat = bool(raw) and raw == raw_before
        # with several threads blosc may order its blocks otherwise, so equal pixels may be stored as other
        # bytes of the same length
        if not is_repeat and row_list and sample_rows is None and len(raw) == len(raw_before):
            is_repeat = np.array_equal(frame, frame_before)
        row_list.append(row)
        repeats.append(is_repeat)
        raw_before = raw
        if not is_decoded:
            measures.append((np.nan,) * 6)
            continue
        if depth:
            measures.append((np.nan,) * 5 + (float(np.mean(frame == 0)),))
        else:
            small = _small(frame)
            step = np.nan if small_before is None or fast else float(np.abs(small - small_before).mean())
            saturation = float(np.mean(small >= WHITE_LEVEL))
            measures.append((step, small.mean(), small.std(), small.min(), small.max(), saturation))
            small_before = small
            if not fast:
                t = float(stream.t_s[row])
                recent.append((t, small))
                while len(recent) > 1 and recent[1][0] <= t - BASELINE_S + 1e-4:
                    recent.popleft()
                if recent[0][0] <= t - BASELINE_S + 1e-4:
                    motion.append((recent[0][0], t, float(np.abs(small - recent[0][1]).mean())))
        frame, frame_before = frame_before, frame
    step, light, spread, low, high, saturation = np.array(measures, np.float64).reshape(-1, 6).T
    rows = np.array(row_list, np.int64)
    return Scan(
        stream.key,
        rows,
        stream.t_s[rows],
        np.array(repeats, bool),
        step,
        light,
        spread,
        low,
        high,
        saturation,
        np.array(motion, np.float64).reshape(-1, 3),
        damage,
        fast,
    )


def check_frames(r: Recording, scan: Scan) -> Iterator[Finding]:
    yield from _damage(r, scan)
    if len(scan.rows):
        yield from _blank(r, scan)
        yield from _frozen(r, scan)
        yield from _twice(r, scan)


def _damage(r: Recording, scan: Scan) -> Iterator[Finding]:
    if not scan.damage:
        return
    rows = sorted(scan.damage)
    t = r.streams[scan.key].t_s[rows]
    yield r.finding(
        "damaged",
        "severe",
        f"{len(rows)} of {len(rows) + len(scan.rows)} frames cannot be read, the first: "
        f"{scan.damage[rows[0]]}",
        scan.key,
        (float(t[0]), float(t[-1])),
        len(rows),
        0,
    )


def _blank(r: Recording, scan: Scan) -> Iterator[Finding]:
    black = (scan.light < BLACK_MEAN) & (scan.high < BLACK_MAX)
    if is_depth(scan.key):
        kinds = [
            ("empty", scan.saturation > EMPTY_SHARE, "holds almost no reading", EMPTY_SHARE, scan.saturation)
        ]
    else:
        white = scan.saturation > WHITE_SHARE
        flat = (scan.spread < FLAT_STD) & ~black & ~white
        kinds = [
            ("black", black, "is black", BLACK_MEAN, scan.light),
            ("overexposed", white, "is overexposed", WHITE_SHARE, scan.saturation),
            ("flat", flat, "shows one colour alone", FLAT_STD, scan.spread),
        ]
    period = r.streams[scan.key].period_s
    for check, mask, words, threshold, measure in kinds:
        spans = [(float(scan.t_s[a]), float(scan.t_s[b]) + period) for a, b in runs(mask)]
        if not spans:
            continue
        longest = max(end - start for start, end in spans)
        count = int(np.isfinite(measure).sum())
        severity: Severity = "severe" if longest > BLANK_SEVERE_S or mask.sum() > 0.2 * count else "warning"
        yield r.finding(
            check,
            severity,
            f"{mask.sum()} of {count} frames: the image {words} (longest {longest:.2f} s)",
            scan.key,
            (spans[0][0], spans[-1][1]),
            float(measure[mask].mean()),
            threshold,
        )


def _frozen(r: Recording, scan: Scan) -> Iterator[Finding]:
    """Frames that are equal to the last bit while the arm moves. While nothing moves, a simulated camera may
    rightly repeat itself, so the joints are compared."""
    for first, last in runs(scan.repeats):
        start, end = float(scan.t_s[first - 1]), float(scan.t_s[last])
        if end - start < FROZEN_S or last - first < 1:
            continue
        travel = _travel(r.joints, start, end)
        if travel < FROZEN_MOVED:
            continue
        yield r.finding(
            "frozen",
            "severe" if end - start >= FROZEN_SEVERE_S else "warning",
            f"the image stands still for {end - start:.2f} s ({last - first + 2} equal frames) while the "
            "joints move",
            scan.key,
            (start, end),
            end - start,
            FROZEN_S,
        )


def _travel(joints: Stream | None, start_s: float, end_s: float) -> float:
    """How far the joint that moved most went within these seconds, in multiples of the travel that counts as
    standing still."""
    if joints is None or joints.values is None:
        return 0.0
    part = joints.values[(joints.t_s >= start_s) & (joints.t_s <= end_s)]
    part = part[np.isfinite(part).all(axis=1)]
    return float(((part.max(axis=0) - part.min(axis=0)) / still(joints)).max()) if len(part) else 0.0


def _twice(r: Recording, scan: Scan) -> Iterator[Finding]:
    """Single frames without change amid motion: the camera is slower than its stream. After lossy video a
    repeated frame no longer equals the one before to the last bit, so its change is compared with the changes
    before and after."""
    period = r.streams[scan.key].period_s
    if scan.fast or is_depth(scan.key) or len(scan.rows) < 20 or period <= 0:
        return
    step = scan.step[1:]
    before, after = np.concatenate([[np.nan], step[:-1]]), np.concatenate([step[1:], [np.nan]])
    busy = np.fmax(step, np.fmax(before, after)) > max(BUSY * float(np.quantile(step, 0.95)), 0.1)
    repeats = busy & (step < TWICE_STEP * np.fmin(before, after))
    share = float(repeats.sum() / max(busy.sum(), 1))
    if busy.sum() < 20 or share < TWICE_SHARE:
        return
    rows = np.flatnonzero(repeats) + 1
    yield r.finding(
        "duplicates",
        "warning",
        f"{share:.0%} of the frames that should show motion repeat the one before ({scan.repeats.sum()} to "
        "the "
        f"last bit): the camera brings about {(1 - share) / period:.3g} new images a second, not "
        f"{1 / period:.3g}",
        scan.key,
        (float(scan.t_s[rows[0]]), float(scan.t_s[rows[-1]])),
        share,
        TWICE_SHARE,
    )


def frame_streams(r: Recording) -> list[Stream]:
    """The streams of images and depth that have rows."""
    return [s for s in r.streams.values() if is_frames(s.key) and len(s.t_s)]


def _small(frame: np.ndarray) -> np.ndarray:
    """`frame` as grey float32, shrunk to at most SMALL."""
    import cv2

    grey = frame
    if frame.ndim == 3:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if frame.shape[2] == 3 else frame[..., 0]
    if grey.shape[0] > SMALL[1] or grey.shape[1] > SMALL[0]:
        grey = cv2.resize(grey, SMALL, interpolation=cv2.INTER_AREA)
    return grey.astype(np.float32)
