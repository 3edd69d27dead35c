"""Which faults `ulna data check` finds in recordings of a real robot, and what it says of episodes that have
none.

Each fault is put into every second episode (0, 2, 4, …) of a copy of the data. detected: of these, the share
with a finding of the right kind that they did not have before; false_alarms: the same of the others. A
camera's lag is put into all of them.

python benchmarks/checks.py path/to/lerobot_folder
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results

from ulna.datasets.checks.check import Finding, check
from ulna.datasets.episode import Episode
from ulna.datasets.features import ACTION, STATE, is_image
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

MS, S = 1_000_000, 1_000_000_000


@dataclass
class Rows:
    """One stream, to be spoilt: values `(T, …)`, capture and receive `(T,)` ns."""

    values: np.ndarray
    capture: np.ndarray
    receive: np.ndarray

    def keep(self, rows: np.ndarray) -> None:
        self.values, self.capture, self.receive = self.values[rows], self.capture[rows], self.receive[rows]


Streams = dict[str, Rows]
Fault = Callable[[Streams, int], None]


def camera(streams: Streams) -> Rows:
    return next(rows for key, rows in streams.items() if is_image(key))


def busiest(streams: Streams, seconds: float) -> int:
    """When, in ns, the arm begins to move most for that long."""
    state = streams[STATE]
    speed = np.abs(np.diff(state.values, axis=0)).sum(axis=1)
    n = max(1, int(seconds * 1e9 / np.median(np.diff(state.capture))))
    return int(state.capture[np.argmax(np.convolve(speed, np.ones(n), "valid"))])


def gap(streams: Streams, ms: int) -> None:
    for rows in streams.values():
        start = 3 * S
        rows.keep((rows.capture < start) | (rows.capture > start + ms * MS))


def camera_gap(streams: Streams, ms: int) -> None:
    rows = camera(streams)
    rows.keep((rows.capture < 3 * S) | (rows.capture > 3 * S + ms * MS))


def clock(streams: Streams, ms: int) -> None:
    rows = camera(streams)
    rows.capture = rows.capture + np.where(rows.capture > 3 * S, ms * MS, 0)
    rows.receive = rows.receive + S  # so that a jump ahead does not also come before its receipt


def rate(streams: Streams, percent: int) -> None:
    for rows in streams.values():
        rows.capture = (rows.capture * (1 + percent / 100)).astype(np.int64)
        rows.receive = np.maximum(rows.receive, rows.capture)


def frozen(streams: Streams, ms: int) -> None:
    rows = camera(streams)
    start = busiest(streams, ms / 1000)
    rows_in_span = np.flatnonzero((rows.capture >= start) & (rows.capture <= start + ms * MS))
    rows.values[rows_in_span] = rows.values[rows_in_span[0]]


def black(streams: Streams, frames: int) -> None:
    rng = np.random.default_rng(0)
    rows = camera(streams)
    rows.values[60 : 60 + frames] = rng.integers(0, 6, rows.values[60 : 60 + frames].shape, dtype=np.uint8)


def spike(streams: Streams, percent: int) -> None:
    state = streams[STATE]
    joint = int(np.argmax(np.ptp(state.values, axis=0)))
    state.values[90, joint] += percent / 100 * np.ptp(state.values[:, joint])


def static(streams: Streams, _: int) -> None:
    for key in (STATE, ACTION):
        streams[key].values[:] = streams[key].values[0]


def short(streams: Streams, ms: int) -> None:
    for rows in streams.values():
        rows.keep(rows.capture <= ms * MS)


def slow(streams: Streams, times: int) -> None:
    """The operator took that many times as long."""
    for rows in streams.values():
        rows.keep(np.repeat(np.arange(len(rows.values)), times))
        rows.capture = np.arange(len(rows.values)) * S // 30
        rows.receive = rows.capture.copy()


def bright(streams: Streams, levels: int) -> None:
    rows = camera(streams)
    rows.values = np.clip(rows.values.astype(np.int16) + levels, 0, 255).astype(np.uint8)


def pose(streams: Streams, percent: int) -> None:
    for key in (STATE, ACTION):
        values = streams[key].values
        joint = int(np.argmax(np.ptp(streams[STATE].values, axis=0)))
        values[:, joint] += percent / 100 * np.ptp(streams[STATE].values[:, joint])


def late(streams: Streams, ms: int) -> None:
    rows = camera(streams)
    rows.capture, rows.receive = rows.capture + ms * MS, rows.receive + ms * MS


FAULTS: dict[str, tuple[str, Fault, list[int]]] = {
    "all streams stop, ms": ("gap", gap, [100, 200, 600]),
    "camera stops, ms": ("gap", camera_gap, [100, 200, 600]),
    "camera clock is set, ms": ("clock", clock, [50, 150, 500, -150]),
    "loop is slower by, %": ("rate", rate, [2, 5, 20]),
    "image stands, ms": ("frozen", frozen, [300, 600, 1500]),
    "black frames": ("black", black, [1, 20]),
    "one wrong reading, % of range": ("jump", spike, [10, 30, 60]),
    "nothing moves": ("static", static, [1]),
    "cut to, ms": ("short", short, [700]),
}
ODD = {  # in one episode only: an outlier is rare
    "slower by, times": ("outlier", slow, [2, 3]),
    "brighter by, levels": ("outlier", bright, [10, 40]),
    "pose is off by, % of range": ("outlier", pose, [30, 100]),
    "one camera late, ms": ("misaligned", late, [100, 200, 300, 400]),
}


def spoil(source: EpisodeStore, to: Path, fault: Fault | None, amount: int, which: set[int]) -> EpisodeStore:
    store = EpisodeStore.create(to, source.features, source.control_hz, source.robot)
    with EpisodeWriter(store) as writer:
        for e in source.episodes:
            streams = {k: Rows(e.read(k), *e.times_ns(k)) for k in e.streams}
            if fault is not None and e.index in which:
                fault(streams, amount)
            write(writer, e, streams)
    return store


def write(writer: EpisodeWriter, e: Episode, streams: Streams) -> None:
    writer.start({"task": e.task})
    for key, rows in streams.items():
        for value, capture, receive in zip(rows.values, rows.capture, rows.receive, strict=True):
            writer.append(key, value, int(capture), int(receive))
    writer.end({})


def kinds(findings: list[Finding]) -> dict[int, list[str]]:
    """By episode, the kinds of findings with their stream."""
    by: dict[int, list[str]] = {}
    for f in findings:
        by.setdefault(f.episode, []).append(f.check)
    return by


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("--size", type=int, default=96)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = import_lerobot(args.source, Path(folder) / "base", (args.size, args.size))
        start = time.perf_counter()
        clean = check(base)
        seconds = time.perf_counter() - start
        before = kinds(clean)
        count, number = len(base), 0
        rows: list[dict[str, Any]] = []
        for some, faults in ((True, FAULTS), (False, ODD)):
            for name, (expected, fault, amounts) in faults.items():
                for amount in amounts:
                    groups = [set(range(0, count, 2))] if some else [{i} for i in range(0, count, 3)]
                    hit = spoilt = alarms = whole = other = 0
                    for which in groups:
                        number += 1
                        store = spoil(base, Path(folder) / str(number), fault, amount, which)
                        after = kinds(check(store))
                        for i in range(count):
                            new = after.get(i, []).count(expected) > before.get(i, []).count(expected)
                            hit += new and i in which
                            spoilt += i in which
                            whole += i not in which
                            more = {k for k in after.get(i, []) if k not in before.get(i, [])}
                            alarms += bool(more) and i not in which
                            other += bool(more - {expected}) and i in which
                    rows.append(
                        {
                            "fault": name,
                            "amount": amount,
                            "check": expected,
                            "detected": f"{hit}/{spoilt}",
                            "false_alarms": f"{alarms}/{whole}",
                            "with_another_finding": f"{other}/{spoilt}",
                        }
                    )
                    print(rows[-1], flush=True)
        lags = []
        own = lag_of(clean)
        for ms in (-300, -200, -100, -50, 0, 50, 100, 200, 300):
            number += 1
            store = spoil(base, Path(folder) / str(number), late, ms, set(range(count)))
            lag = lag_of(check(store))
            lags.append({"put_in_ms": ms, **lag})
            print(lags[-1], flush=True)
        results.save(
            "checks",
            {
                "data": f"{args.source.name}, {count} episodes, images at {args.size}x{args.size}",
                "seconds_to_check": round(seconds, 2),
                "frames": sum(e.length for e in base.episodes),
                "untouched": {c: sum(f.check == c for f in clean) for c in sorted({f.check for f in clean})},
                "untouched_lag": own,
                "faults": rows,
                "lag_of_all_episodes": lags,
            },
        )


def lag_of(findings: list[Finding]) -> dict[str, Any]:
    whole = [f for f in findings if f.check == "misaligned" and f.episode < 0]
    return {
        "said_ms": None if not whole or whole[0].value is None else round(1000 * whole[0].value),
        "severity": whole[0].severity if whole else None,
    }


if __name__ == "__main__":
    main()
