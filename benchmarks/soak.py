"""Each commanded arm at 100 Hz through random faults, one or two at once, and a judge that knows the truth.

   python benchmarks/soak.py             10 minutes, the three arms at once, each in a process of its own
   python benchmarks/soak.py --jobs 1    one arm after the other, for a slow machine: a reading is as true
                                         as its exchange was quick

What must never happen: an exception other than a refused command; a valid reading that is old; a valid
reading that differs from the joint's position at its capture time; torque that comes on without `enable`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from fault_benches import COMMANDED, HZ, RAMP_S, SWING_HZ, SWING_RAD, Bench, Swing, faults_of, running
from results import save

from ulna.drivers.arm import Arm, DeviceError
from ulna.drivers.sample import Sample

FRESH_S = 0.25  # a valid reading is no older than this when `read` gives it
# A valid reading is within TRUE_RAD (three counts of a servo) of the joint's position at some time within
# TRUE_MS of its capture time, or within the time of its exchange, but at most MOST_MS.
TRUE_RAD, TRUE_MS, MOST_MS = 0.005, 5.0, 25.0
KEPT_S = 2.0


class Judge:
    """Compares a driver's readings with the true positions that `see` gets. Times: monotonic ns. stale,
    wrong, uninvited: sentences on old readings, wrong readings, and torque that nobody enabled."""

    def __init__(self) -> None:
        self.stale: list[str] = []
        self.wrong: list[str] = []
        self.uninvited: list[str] = []
        self.active: list[str] = []  # the faults of now, for the words
        self._last_seq: int | None = None
        self._truth: deque[tuple[int, np.ndarray]] = deque()
        self._torque: np.ndarray | None = None
        self._lock = threading.Lock()
        self._enabling = False

    def see(self, t_ns: int, position: np.ndarray, torque: np.ndarray) -> None:
        """The truth at `t_ns`: position `(J,)` rad, torque `(J,)`, above 0 where it is on."""
        with self._lock:
            self._truth.append((t_ns, position.copy()))
            while self._truth[0][0] < t_ns - KEPT_S * 1e9:
                self._truth.popleft()
            now, last = torque > 0, self._torque
            if last is not None and (now & ~last).any() and not self._enabling:
                self.uninvited.append(f"joints {np.flatnonzero(now & ~last).tolist()}{self._while()}")
            self._torque = now

    @contextlib.contextmanager
    def enabling(self) -> Iterator[None]:
        """Torque may come on inside; `see` it there."""
        with self._lock:
            self._enabling = True
        try:
            yield
        finally:
            with self._lock:
                self._enabling = False

    def hear(self, sample: Sample, read_ns: int) -> bool:
        """Judge a reading that the driver gave at `read_ns`. Returns whether all of its joints are valid."""
        valid = np.broadcast_to(sample.valid, sample.data.shape)
        if not valid.any():
            return False
        age_s = (read_ns - sample.t_capture_ns) * 1e-9
        if age_s > FRESH_S:
            self.stale.append(f"{age_s:.3f} s old{self._while()}")
        elif sample.seq != self._last_seq:  # each once
            self._last_seq = sample.seq
            off = np.where(valid, self._off(sample), 0.0)
            if (off > TRUE_RAD).any():
                way_ms = (sample.t_receive_ns - sample.t_capture_ns) * 1e-6
                self.wrong.append(
                    f"joints {np.flatnonzero(off > TRUE_RAD).tolist()} off by up to {off.max():.3f} rad, "
                    f"read {1e3 * age_s:.1f} ms ago, {way_ms:.1f} ms under way{self._while()}"
                )
        return bool(valid.all())

    def _while(self) -> str:
        return f" while {', '.join(self.active)}" if self.active else ""

    def _off(self, sample: Sample) -> np.ndarray:
        """How far `(J,)` rad a reading lies outside the range of true positions around its capture time."""
        capture = sample.t_capture_ns
        way_ms = min((sample.t_receive_ns - capture) * 1e-6, MOST_MS - TRUE_MS)
        half = (way_ms + TRUE_MS) * 1e6
        positions: list[np.ndarray] = []
        with self._lock:
            for t, position in reversed(self._truth):
                if t > capture + half:
                    positions = [position]  # between two looks a joint was between two places
                    continue
                positions.append(position)
                if t < capture - half:
                    break
        return np.maximum(np.min(positions, axis=0) - sample.data, sample.data - np.max(positions, axis=0))


def soak(bench: Bench, faults: Mapping[str, dict[str, Any]], seconds: float, seed: int = 0) -> dict[str, Any]:
    """Drive the arm of `bench`, its torque on, through random `faults` for `seconds`, and judge it."""
    assert bench.plant is not None
    rng, judge, stopping, plant = random.Random(seed), Judge(), threading.Event(), bench.plant

    def watch() -> None:
        while not stopping.wait(0.001):
            judge.see(time.monotonic_ns(), plant.position, plant.torque)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    user, injections = _User(bench, judge), Counter[str]()
    active: list[str] = []
    until, change, due = time.monotonic() + seconds, 0.0, time.monotonic()
    try:
        while (now := time.monotonic()) < until:
            if now > change:
                for fault in active:
                    bench.mend(faults[fault])
                active = judge.active = rng.sample(list(faults), min(rng.choice([0, 1, 1, 2]), len(faults)))
                for fault in active:
                    bench.inject(faults[fault])
                injections.update(active)
                change = now + rng.uniform(0.5, 3.0)
            user.tick()
            due = max(due + 1 / HZ, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        stopping.set()
        watcher.join()
        for fault in active:
            bench.mend(faults[fault])
    return {
        "seconds": seconds,
        **user.counts,
        "injected": dict(sorted(injections.items())),
        "exceptions": len(user.exceptions),
        "stale_as_fresh": len(judge.stale),
        "wrong_as_valid": len(judge.wrong),
        "torque_uninvited": len(judge.uninvited),
        "examples": [*user.exceptions[:5], *judge.stale[:5], *judge.wrong[:5], *judge.uninvited[:5]],
    }


class _User:
    """Reads and commands at every tick, whatever it read. Enables an arm that still refuses commands a while
    after its readings are back, and cycles its power when that failed twice."""

    REFUSED, PAUSE = HZ // 3, HZ

    def __init__(self, bench: Bench, judge: Judge) -> None:
        self.bench, self.judge, self.arm = bench, judge, bench.device
        self.swing = Swing(self.arm.read().data)
        self.counts = dict.fromkeys(("ticks", "valid", "commanded", "refused", "enabled", "power_cycled"), 0)
        self.exceptions: list[str] = []
        self._n_refused = self._failed = 0

    def tick(self) -> None:
        arm: Arm = self.arm
        self.counts["ticks"] += 1
        try:
            read_ns = time.monotonic_ns()
            sample = arm.read()
            self._see()
            valid = self.judge.hear(sample, read_ns)
            self.counts["valid"] += valid
            try:
                arm.command(self.swing.next(), time.monotonic_ns() + 10**9 // HZ)
                self.counts["commanded"] += 1
                self._n_refused = 0
            except DeviceError:
                self.counts["refused"] += 1
                self._n_refused += 1
            arm.faults()
            arm.health()
            if self._n_refused > self.REFUSED and valid:
                self._enable()
        except Exception as error:  # noqa: BLE001  what must not be
            self.exceptions.append(repr(error))

    def _see(self) -> None:
        plant = self.bench.plant
        assert plant is not None
        self.judge.see(time.monotonic_ns(), plant.position, plant.torque)

    def _enable(self) -> None:
        self._n_refused = self.REFUSED - self.PAUSE
        with self.judge.enabling():
            try:
                self.arm.enable()
            except DeviceError:
                self._failed += 1
            else:
                self._failed = 0
                self.counts["enabled"] += 1
                self.swing.begin(self.arm.read().data)
            self._see()
        if self._failed >= 2:
            self.bench.order({"reset": True})
            self._failed = 0
            self.counts["power_cycled"] += 1


def soak_driver(name: str, seconds: float) -> dict[str, Any]:
    sys.setswitchinterval(0.0005)  # physics, judge and driver share this process
    with tempfile.TemporaryDirectory() as folder, running(name, Path(folder)) as bench:
        return soak(bench, faults_of(name), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=COMMANDED, action="append", help="these only; nothing is saved")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--jobs", type=int, default=len(COMMANDED), help="arms at a time")
    args = parser.parse_args()
    names = args.driver or COMMANDED
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, fresh) as pool:
        arms = dict(
            zip(names, pool.map(functools.partial(soak_driver, seconds=args.seconds), names), strict=True)
        )
    for name, numbers in arms.items():
        print(name, numbers, flush=True)
    if not args.driver:
        speed = 2 * np.pi * SWING_HZ * SWING_RAD
        judge = {"fresh_s": FRESH_S, "true_rad": TRUE_RAD, "within_ms": MOST_MS, "rad_per_s": round(speed, 2)}
        save("soak", {"arms": arms, "judge": judge, "ramp_s": RAMP_S})


if __name__ == "__main__":
    main()
