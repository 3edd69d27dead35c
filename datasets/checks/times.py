"""When rows were captured: the loop's rate, gaps, clocks that jump, rows that were lost or repeated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..features import ACTION, REQUESTED, is_frames
from ..flags import AFTER_DROP, INVALID, STALE
from .findings import SINGLE, Finding, Recording, Severity, Stream, runs

GAP_PERIODS = 2.5  # training leaves a tick out when its newest row is two periods old, of stream or loop
GAP_SEVERE_S = 0.5  # an arm can go anywhere in this time, and a chunk of actions spans it
# a policy's actions replayed at the nominal rate are that much too fast or slow
RATE_WARNING, RATE_SEVERE = 0.03, 0.15
JITTER_PERIODS, JITTER_SHARE = 0.25, 0.05
JUMP_S = 0.1  # beyond what a USB bus or a network delays a row, and it stays
LOST_SEVERE = 0.05
STALE_SHARE = 0.1
EARLY_S = 1e-3


def check_times(r: Recording) -> Iterator[Finding]:
    for key, stream in r.streams.items():
        if not len(stream.t_s):
            continue
        if key != REQUESTED:  # has the times of `action`
            yield from _clock(r, stream)
            yield from _gaps(r, stream)
            if key != ACTION:
                yield from _coverage(r, stream)
        yield from _flags(r, stream)
    if ACTION in r.streams:
        yield from _rate(r, r.streams[ACTION])
    yield from _losses(r)


def _rate(r: Recording, action: Stream) -> Iterator[Finding]:
    intervals = np.diff(action.t_s)
    if len(intervals) < 5:
        return
    period, nominal = float(np.median(intervals)), 1 / r.control_hz
    off = abs(period / nominal - 1)
    if off > RATE_WARNING:
        yield r.finding(
            "rate",
            "severe" if off > RATE_SEVERE else "warning",
            f"the loop ran at {1 / max(period, 1e-9):.2f} Hz, nominal is {r.control_hz:g} Hz",
            ACTION,
            value=off,
            threshold=RATE_WARNING,
        )
    share = float(np.mean(np.abs(intervals - period) > JITTER_PERIODS * period))
    if share > JITTER_SHARE:
        yield r.finding(
            "jitter",
            "warning",
            f"{share:.0%} of the control periods differ from {1000 * period:.1f} ms by more than a quarter",
            ACTION,
            value=share,
            threshold=JITTER_SHARE,
        )


def _gaps(r: Recording, stream: Stream) -> Iterator[Finding]:
    if len(stream.t_s) < 3:
        return
    times = np.unique(stream.t_s)  # `_clock` reports a clock that steps back; here it must not hide a gap
    intervals = np.diff(times)
    period = float(np.median(intervals)) if len(intervals) else 0.0
    slower = max(period, 1 / r.control_hz) if stream.key != ACTION or period < 2 / r.control_hz else period
    limit = GAP_PERIODS * slower
    gaps = [(float(times[i]), float(times[i + 1])) for i in np.flatnonzero(intervals > limit)]
    for start, end in gaps if len(gaps) <= SINGLE else []:
        length = end - start
        yield r.finding(
            "gap",
            _gap_severity(length),
            f"nothing for {1000 * length:.0f} ms, where a row comes every {1000 * period:.1f} ms",
            stream.key,
            (start, end),
            length,
            limit,
        )
    if len(gaps) > SINGLE:
        longest = max(end - start for start, end in gaps)
        yield r.finding(
            "gap",
            _gap_severity(longest),
            f"{len(gaps)} gaps of more than {1000 * limit:.0f} ms, the longest {1000 * longest:.0f} ms; a "
            "row "
            f"comes every {1000 * period:.1f} ms",
            stream.key,
            (gaps[0][0], gaps[-1][1]),
            longest,
            limit,
        )


def _gap_severity(length_s: float) -> Severity:
    return "severe" if length_s > GAP_SEVERE_S else "warning"


def _coverage(r: Recording, stream: Stream) -> Iterator[Finding]:
    """A stream that begins late or ends early."""
    limit = GAP_PERIODS * max(stream.period_s, 1 / r.control_hz)
    first, last = float(stream.receive_s.min()), float(stream.t_s.max())
    if stream.t_s.min() > r.end_s + 1 or last < -1:
        return  # `_clock` says that they never meet
    if first > limit:
        yield r.finding(
            "gap",
            _gap_severity(first),
            f"nothing in the first {1000 * first:.0f} ms",
            stream.key,
            (0.0, first),
            first,
            limit,
        )
    if r.end_s - last > limit:
        yield r.finding(
            "gap",
            _gap_severity(r.end_s - last),
            f"nothing in the last {1000 * (r.end_s - last):.0f} ms",
            stream.key,
            (last, r.end_s),
            r.end_s - last,
            limit,
        )


def _clock(r: Recording, stream: Stream) -> Iterator[Finding]:
    t, receive_s = stream.t_s, stream.receive_s
    if t.min() > r.end_s + 1 or t.max() < -1:
        yield r.finding(
            "clock",
            "severe",
            f"its times never meet those of the actions: it begins {t[0]:.3g} s after them",
            stream.key,
            value=abs(float(t[0])),
            threshold=1.0,
        )
        return
    steps_back = np.flatnonzero(np.diff(t) < 0)
    if len(steps_back):
        worst = float(-np.diff(t).min())
        at = int(np.argmin(np.diff(t)))
        yield r.finding(
            "clock",
            "severe",
            f"capture times step back {len(steps_back)} times, by up to {1000 * worst:.1f} ms",
            stream.key,
            (float(t[at + 1]), float(t[at])),
            worst,
            0.0,
        )
    delay = receive_s - t
    early = np.flatnonzero(delay < -EARLY_S)
    if len(early):
        yield r.finding(
            "clock",
            "warning",
            f"{len(early)} of {len(t)} rows were received up to {-1000 * delay.min():.1f} ms before their "
            "capture",
            stream.key,
            (float(t[early[0]]), float(t[early[-1]])),
            float(-delay.min()),
            EARLY_S,
        )
    # setting a clock changes the delay for good; a bus that stutters delays only a few rows
    width = 8
    if len(t) < 2 * width:
        return
    windows = np.lib.stride_tricks.sliding_window_view(delay, width)
    medians = np.median(windows, axis=1)
    step = medians[width:] - medians[:-width]  # of the rows from i+width on, against those before
    spread = windows.max(axis=1) - windows.min(axis=1)
    calm = np.maximum(spread[width:], spread[:-width])
    jumps = np.abs(step) > np.maximum(JUMP_S, 3 * calm)
    for first, last in runs(jumps):
        at = first + int(np.argmax(np.abs(step[first : last + 1]))) + width
        if len(steps_back) and np.abs(steps_back - at).min() <= width:
            continue  # reported above
        yield r.finding(
            "clock",
            "severe",
            f"its clock jumps by {-1000 * step[at - width]:+.0f} ms against ours",
            stream.key,
            (float(t[at - 1]), float(t[at])),
            abs(float(step[at - width])),
            JUMP_S,
        )


def _flags(r: Recording, stream: Stream) -> Iterator[Finding]:
    stale = stream.flags & STALE != 0
    if stale.mean() > STALE_SHARE:
        yield r.finding(
            "stale",
            "warning",
            f"{stale.sum()} of {len(stale)} rows ({stale.mean():.0%}) repeat an older reading: the device is "
            "slower than the loop",
            stream.key,
            value=float(stale.mean()),
            threshold=STALE_SHARE,
        )
    invalid = stream.flags & INVALID != 0
    spans = list(runs(invalid))
    if spans:
        first, last = spans[0][0], spans[-1][1]
        yield r.finding(
            "invalid",
            "warning",
            f"the device doubted {invalid.sum()} of {len(invalid)} rows, in {len(spans)} stretches",
            stream.key,
            (float(stream.t_s[first]), float(stream.t_s[last])),
            float(invalid.mean()),
            0.0,
        )


def _losses(r: Recording) -> Iterator[Finding]:
    """Rows that the recorder dropped, or that never reached it, as it counted them."""
    counts = r.episode.attrs.get("dropped") or {}
    for key, stream in r.streams.items():
        places = np.flatnonzero(stream.flags & AFTER_DROP)
        count = int(counts.get(key, 0)) or len(places)
        if not count:
            continue
        share = count / (count + len(stream.t_s))
        phrase = f", at {len(places)} places" if len(places) else ""
        t = stream.t_s[places] if len(places) else np.array([0.0, r.end_s])
        yield r.finding(
            "dropped",
            "severe" if share > LOST_SEVERE or not is_frames(key) else "warning",
            f"{count} rows were lost ({share:.1%}){phrase}: the camera, the loop, the disk or the encoders "
            "did "
            "not keep up",
            key,
            (float(t[0]), float(t[-1])),
            share,
            0.0,
        )
