"""What cameras show: frames that cannot be read, are black, flat or overexposed, stand still, or come
twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..codec import decode
from ..features import is_depth, is_frames
from ..frames import DamagedFrames, FrameReader
from .findings import Finding, Recording, Severity, Stream, runs
from .vectors import still

SMALL = (64, 48)  # what frames are judged at, (width, height)
BASELINE_S = 0.13  # motion is what changes in this time: longer than two frames of a slow camera
FAST_FRAMES = 16  # of an episode, with --fast

BLACK_MEAN, BLACK_MAX = 12.0, 40.0  # of 255; darker than any lit scene, and nothing in it is lit
WHITE_LEVEL, WHITE_SHARE = 250.0, 0.6  # at the end of the scale no contrast is left
FLAT_STD = 2.0  # one colour: a covered lens, a decoder without data
EMPTY_SHARE = 0.98  # of a depth frame without a reading
BLANK_SEVERE_S = 0.5
FROZEN_S, FROZEN_SEVERE_S = 0.4, 1.0
FROZEN_MOVED = 3.0  # times what counts as standing still
TWICE_SHARE = 0.1  # of the frames while something moves
BUSY = 0.3  # of what changes when most does
TWICE_STEP = 0.35  # of what changes in the frames before and after it


@dataclass
class Scan:
    """Of one camera. rows `(N,)` that could be read and their t_s; same `(N,)`: the frame is the one before,
    to the last bit; step `(N,)`: mean difference to it in levels of 255, NaN for the first; light, spread,
    low, high, clipped `(N,)`: mean, standard deviation, extremes and share at the end of the scale (depth:
    `clipped` is the share without a reading, the rest NaN). motion: (from_s, to_s, what changed between) of
    frames BASELINE_S apart, `(M, 3)`. damaged: row → why."""

    key: str
    rows: np.ndarray
    t_s: np.ndarray
    same: np.ndarray
    step: np.ndarray
    light: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    clipped: np.ndarray
    motion: np.ndarray
    damaged: dict[int, str]
    fast: bool


def scan_frames(r: Recording, stream: Stream, fast: bool = False) -> Scan:
    """Every frame, one at a time. fast: checksums and repeats of all, but only FAST_FRAMES are decoded."""
    count = len(stream.t_s)
    reader = FrameReader(r.episode.path / stream.key / "value")
    try:
        reader.read_encoded([])
        as_stored = True
    except DamagedFrames:
        as_stored = False  # written by another hand: decoded through zarr
    wanted = set(np.linspace(0, count - 1, FAST_FRAMES).round().astype(int).tolist()) if fast else None
    depth = is_depth(stream.key)
    frame, before = np.empty(reader.shape[1:], reader.dtype), np.empty(reader.shape[1:], reader.dtype)
    raw_before, small_before = b"", None
    recent: deque[tuple[float, np.ndarray]] = deque()
    kept, same, measured, motion, damaged = [], [], [], [], {}
    for row in range(count):
        decoded = wanted is None or row in wanted
        try:
            raw = reader.read_encoded([row])[0] if as_stored else b""
            if decoded:
                if as_stored:
                    decode(raw, reader.kind, True, frame)
                else:
                    reader.read([row], frame[None])
        except (DamagedFrames, ValueError, RuntimeError) as error:
            damaged[row] = str(error)
            continue
        again = bool(raw) and raw == raw_before
        # blosc may order its blocks otherwise with several threads, so equal pixels can be other bytes of
        # equal length
        if not again and kept and wanted is None and len(raw) == len(raw_before):
            again = np.array_equal(frame, before)
        kept.append(row)
        same.append(again)
        raw_before = raw
        if not decoded:
            measured.append((np.nan,) * 6)
            continue
        if depth:
            measured.append((np.nan,) * 5 + (float(np.mean(frame == 0)),))
        else:
            small = _small(frame)
            step = np.nan if small_before is None or fast else float(np.abs(small - small_before).mean())
            clipped = float(np.mean(small >= WHITE_LEVEL))
            measured.append((step, small.mean(), small.std(), small.min(), small.max(), clipped))
            small_before = small
            if not fast:
                t = float(stream.t_s[row])
                recent.append((t, small))
                while len(recent) > 1 and recent[1][0] <= t - BASELINE_S + 1e-4:
                    recent.popleft()
                if recent[0][0] <= t - BASELINE_S + 1e-4:
                    motion.append((recent[0][0], t, float(np.abs(small - recent[0][1]).mean())))
        frame, before = before, frame
    step, light, spread, low, high, clipped = np.array(measured, np.float64).reshape(-1, 6).T
    rows = np.array(kept, np.int64)
    return Scan(
        stream.key,
        rows,
        stream.t_s[rows],
        np.array(same, bool),
        step,
        light,
        spread,
        low,
        high,
        clipped,
        np.array(motion, np.float64).reshape(-1, 3),
        damaged,
        fast,
    )


def check_frames(r: Recording, scan: Scan) -> Iterator[Finding]:
    yield from _damaged(r, scan)
    if len(scan.rows):
        yield from _blank(r, scan)
        yield from _frozen(r, scan)
        yield from _twice(r, scan)


def _damaged(r: Recording, scan: Scan) -> Iterator[Finding]:
    if not scan.damaged:
        return
    rows = sorted(scan.damaged)
    t = r.streams[scan.key].t_s[rows]
    yield r.finding(
        "damaged",
        "severe",
        f"{len(rows)} of {len(rows) + len(scan.rows)} frames cannot be read, the first: {scan.damaged[rows[0]]}",
        scan.key,
        (float(t[0]), float(t[-1])),
        len(rows),
        0,
    )


def _blank(r: Recording, scan: Scan) -> Iterator[Finding]:
    black = (scan.light < BLACK_MEAN) & (scan.high < BLACK_MAX)
    if is_depth(scan.key):
        kinds = [("empty", scan.clipped > EMPTY_SHARE, "holds almost no reading", EMPTY_SHARE, scan.clipped)]
    else:
        white = scan.clipped > WHITE_SHARE
        flat = (scan.spread < FLAT_STD) & ~black & ~white
        kinds = [
            ("black", black, "is black", BLACK_MEAN, scan.light),
            ("overexposed", white, "is overexposed", WHITE_SHARE, scan.clipped),
            ("flat", flat, "shows one colour alone", FLAT_STD, scan.spread),
        ]
    period = r.streams[scan.key].period_s
    for check, mask, words, threshold, measured in kinds:
        spans = [(float(scan.t_s[a]), float(scan.t_s[b]) + period) for a, b in runs(mask)]
        if not spans:
            continue
        longest = max(end - start for start, end in spans)
        judged = int(np.isfinite(measured).sum())
        severity: Severity = "severe" if longest > BLANK_SEVERE_S or mask.sum() > 0.2 * judged else "warning"
        yield r.finding(
            check,
            severity,
            f"{mask.sum()} of {judged} frames: the image {words} (longest {longest:.2f} s)",
            scan.key,
            (spans[0][0], spans[-1][1]),
            float(measured[mask].mean()),
            threshold,
        )


def _frozen(r: Recording, scan: Scan) -> Iterator[Finding]:
    """Frames equal to the last bit while the arm goes somewhere. A simulated camera may rightly repeat itself
    while nothing moves, so it is held against the joints."""
    for first, last in runs(scan.same):
        start, end = float(scan.t_s[first - 1]), float(scan.t_s[last])
        if end - start < FROZEN_S or last - first < 1:
            continue
        gone = _travelled(r.joints, start, end)
        if gone < FROZEN_MOVED:
            continue
        yield r.finding(
            "frozen",
            "severe" if end - start >= FROZEN_SEVERE_S else "warning",
            f"the image stands still for {end - start:.2f} s ({last - first + 2} equal frames) while the joints move",
            scan.key,
            (start, end),
            end - start,
            FROZEN_S,
        )


def _travelled(joints: Stream | None, start_s: float, end_s: float) -> float:
    """How far the joint that moved most went within these seconds, in units of standing still."""
    if joints is None or joints.values is None:
        return 0.0
    part = joints.values[(joints.t_s >= start_s) & (joints.t_s <= end_s)]
    part = part[np.isfinite(part).all(axis=1)]
    return float(((part.max(axis=0) - part.min(axis=0)) / still(joints)).max()) if len(part) else 0.0


def _twice(r: Recording, scan: Scan) -> Iterator[Finding]:
    """Single frames that bring nothing new amid motion: a camera slower than its stream. After a lossy video
    the second is no longer equal to the bit, so what changes is held against what changes before and
    after."""
    period = r.streams[scan.key].period_s
    if scan.fast or is_depth(scan.key) or len(scan.rows) < 20 or period <= 0:
        return
    step = scan.step[1:]
    before, after = np.concatenate([[np.nan], step[:-1]]), np.concatenate([step[1:], [np.nan]])
    busy = np.fmax(step, np.fmax(before, after)) > max(BUSY * float(np.quantile(step, 0.95)), 0.1)
    repeated = busy & (step < TWICE_STEP * np.fmin(before, after))
    share = float(repeated.sum() / max(busy.sum(), 1))
    if busy.sum() < 20 or share < TWICE_SHARE:
        return
    rows = np.flatnonzero(repeated) + 1
    yield r.finding(
        "duplicates",
        "warning",
        f"{share:.0%} of the frames that should show motion repeat the one before ({scan.same.sum()} to the last bit): the "
        f"camera brings about {(1 - share) / period:.3g} new images a second, not {1 / period:.3g}",
        scan.key,
        (float(scan.t_s[rows[0]]), float(scan.t_s[rows[-1]])),
        share,
        TWICE_SHARE,
    )


def frame_streams(r: Recording) -> list[Stream]:
    return [s for s in r.streams.values() if is_frames(s.key) and len(s.t_s)]


def _small(frame: np.ndarray) -> np.ndarray:
    """Grey, float32, about 64×48."""
    import cv2

    grey = frame
    if frame.ndim == 3:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if frame.shape[2] == 3 else frame[..., 0]
    if grey.shape[0] > SMALL[1] or grey.shape[1] > SMALL[0]:
        grey = cv2.resize(grey, SMALL, interpolation=cv2.INTER_AREA)
    return grey.astype(np.float32)
