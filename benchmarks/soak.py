"""Random faults at 100 Hz, one or two at once, at each arm that is commanded; beside it a judge who knows the
truth.

   python benchmarks/soak.py             10 minutes, the three arms side by side, each in a process of its own
   python benchmarks/soak.py --jobs 1    one after the other, where that is too much for the machine: a reading is as true as
                                         the exchange that it came from was quick

What must never be: an exception other than a refused command; a valid reading that is old; a valid reading
that is not what the joint was when it is said to have been read; torque that comes on though nobody enabled
it."""

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

FRESH_S = 0.25  # a reading that calls itself valid is no older, when it is asked for
TRUE_RAD = 0.005  # three counts of a servo: as near it is to what the joint was ...
TRUE_MS, MOST_MS = 5.0, 25.0  # ... so near its capture time, or as near as it was under way; and that at most
KEPT_S = 2.0


class Judge:
    """Sees the truth `see` by `see`, and compares with it what a driver says. Times: monotonic ns. What it
    found: `stale`, `wrong`, `uninvited`, in words."""

    def __init__(self) -> None:
        self.stale: list[str] = []
        self.wrong: list[str] = []
        self.uninvited: list[str] = []
        self.active: list[str] = []  # the faults of now, for the words
        self._heard: int | None = None
        self._truth: deque[tuple[int, np.ndarray]] = deque()
        self._torque: np.ndarray | None = None
        self._lock = threading.Lock()
        self._enabling = False

    def see(self, t_ns: int, position: np.ndarray, torque: np.ndarray) -> None:
        """The truth at `t_ns`: `(J,)` rad, and `(J,)` where there is torque."""
        with self._lock:
            self._truth.append((t_ns, position.copy()))
            while self._truth[0][0] < t_ns - KEPT_S * 1e9:
                self._truth.popleft()
            now, before = torque > 0, self._torque
            if before is not None and (now & ~before).any() and not self._enabling:
                self.uninvited.append(f"joints {np.flatnonzero(now & ~before).tolist()}{self._while()}")
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

    def hear(self, sample: Sample, asked_ns: int) -> bool:
        """What the driver said when it was asked for a reading at `asked_ns`. Whether all of it is valid."""
        valid = np.broadcast_to(sample.valid, sample.data.shape)
        if not valid.any():
            return False
        age_s = (asked_ns - sample.t_capture_ns) * 1e-9
        if age_s > FRESH_S:
            self.stale.append(f"{age_s:.3f} s old{self._while()}")
        elif sample.seq != self._heard:  # each once
            self._heard = sample.seq
            off = np.where(valid, self._off(sample), 0.0)
            if (off > TRUE_RAD).any():
                way_ms = (sample.t_receive_ns - sample.t_capture_ns) * 1e-6
                self.wrong.append(
                    f"joints {np.flatnonzero(off > TRUE_RAD).tolist()} off by up to {off.max():.3f} rad, read {1e3 * age_s:.1f} ms ago, "
                    f"{way_ms:.1f} ms under way{self._while()}"
                )
        return bool(valid.all())

    def _while(self) -> str:
        return f" while {', '.join(self.active)}" if self.active else ""

    def _off(self, sample: Sample) -> np.ndarray:
        """`(J,)` rad by which it lies outside of where the joints were about its capture time."""
        capture = sample.t_capture_ns
        way_ms = min((sample.t_receive_ns - capture) * 1e-6, MOST_MS - TRUE_MS)
        half = (way_ms + TRUE_MS) * 1e6
        near: list[np.ndarray] = []
        with self._lock:
            for t, position in reversed(self._truth):
                if t > capture + half:
                    near = [position]  # between two looks a joint was between two places
                    continue
                near.append(position)
                if t < capture - half:
                    break
        return np.maximum(np.min(near, axis=0) - sample.data, sample.data - np.max(near, axis=0))


def soak(bench: Bench, faults: Mapping[str, dict[str, Any]], seconds: float, seed: int = 0) -> dict[str, Any]:
    """Drive the arm of `bench`, torque on, through `faults` for so long, and judge it."""
    assert bench.plant is not None
    rng, judge, stopping, plant = random.Random(seed), Judge(), threading.Event(), bench.plant

    def watch() -> None:
        while not stopping.wait(0.001):
            judge.see(time.monotonic_ns(), plant.position, plant.torque)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    user, injected = _User(bench, judge), Counter[str]()
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
                injected.update(active)
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
        "injected": dict(sorted(injected.items())),
        "exceptions": len(user.exceptions),
        "stale_as_fresh": len(judge.stale),
        "wrong_as_valid": len(judge.wrong),
        "torque_uninvited": len(judge.uninvited),
        "examples": [*user.exceptions[:5], *judge.stale[:5], *judge.wrong[:5], *judge.uninvited[:5]],
    }


class _User:
    """Reads and commands at every tick, whatever was read; enables an arm that went on refusing for a while
    though its readings are back, and cycles its power when that was no use twice."""

    REFUSED, PAUSE = HZ // 3, HZ

    def __init__(self, bench: Bench, judge: Judge) -> None:
        self.bench, self.judge, self.arm = bench, judge, bench.device
        self.swing = Swing(self.arm.read().data)
        self.counts = dict.fromkeys(("ticks", "valid", "commanded", "refused", "enabled", "power_cycled"), 0)
        self.exceptions: list[str] = []
        self._refused = self._failed = 0

    def tick(self) -> None:
        arm: Arm = self.arm
        self.counts["ticks"] += 1
        try:
            asked_ns = time.monotonic_ns()
            sample = arm.read()
            self._see()
            valid = self.judge.hear(sample, asked_ns)
            self.counts["valid"] += valid
            try:
                arm.command(self.swing.next(), time.monotonic_ns() + 10**9 // HZ)
                self.counts["commanded"] += 1
                self._refused = 0
            except DeviceError:
                self.counts["refused"] += 1
                self._refused += 1
            arm.faults()
            arm.health()
            if self._refused > self.REFUSED and valid:
                self._enable()
        except Exception as error:  # noqa: BLE001  what must not be
            self.exceptions.append(repr(error))

    def _see(self) -> None:
        plant = self.bench.plant
        assert plant is not None
        self.judge.see(time.monotonic_ns(), plant.position, plant.torque)

    def _enable(self) -> None:
        self._refused = self.REFUSED - self.PAUSE
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


def soaked(name: str, seconds: float) -> dict[str, Any]:
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
        found = dict(
            zip(names, pool.map(functools.partial(soaked, seconds=args.seconds), names), strict=True)
        )
    for name, numbers in found.items():
        print(name, numbers, flush=True)
    if not args.driver:
        speed = 2 * np.pi * SWING_HZ * SWING_RAD
        about = {"fresh_s": FRESH_S, "true_rad": TRUE_RAD, "within_ms": MOST_MS, "rad_per_s": round(speed, 2)}
        save("soak", {"arms": found, "judge": about, "ramp_s": RAMP_S})


if __name__ == "__main__":
    main()
