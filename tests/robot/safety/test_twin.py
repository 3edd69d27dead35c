"""What a servo arm did, behind its real driver, when a policy asked for all kinds of things."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from contracts.falls import speeds
from contracts.servo_arm import HOME, Bench, bench, running

from ulna.drivers.clock import MonotonicClock
from ulna.robot.loop import CATCHES_UP
from ulna.robot.robot import Robot
from ulna.robot.safety.arms import bodies_of, filter_for
from ulna.robot.safety.limits import Safety

HZ, SECONDS = 50.0, 3.0
WINDOW_S = 0.1  # over which the speed is measured: the bus is written every 10 ms, a busy machine later


class Watch:
    """Where the joints of a twin were, `t` s and `q` (N, 6) rad, about 200 times a second."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.rows = bench, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.t = np.array([t for t, _ in self.rows])
        self.q = np.array([q for _, q in self.rows])

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.rows.append((time.monotonic(), self.bench.plant.position.copy()))

    def speeds(self) -> np.ndarray:
        """`(M, 6)` rad/s, over WINDOW_S each."""
        return speeds(self.t, self.q, WINDOW_S)


def hostile(seed: int, n: int) -> np.ndarray:
    """`(n, 6)`: what is there first, then jumps, shaking, extremes, and into the table."""
    rng = np.random.default_rng(seed)
    targets = np.tile(HOME, (n, 1))
    quarter = n // 4
    targets[5:quarter] += rng.uniform(-2, 2, (quarter - 5, 6))
    targets[quarter : 2 * quarter] += np.where(np.arange(quarter)[:, None] % 2, 0.3, -0.3)
    targets[2 * quarter : 3 * quarter] = HOME + np.array([0.6, 1.0, 0.0, -1.0, 1.0, 1.0])
    targets[3 * quarter :] *= 1e6
    return targets


def drive(robot: Robot, targets: np.ndarray) -> None:
    """As `run_episode` paces them: ticks that are late by more than a little are not made up for."""
    due = robot.clock.now_ns()
    for target in targets:
        robot.command(target)
        due += robot.period_ns
        if (behind := robot.clock.now_ns() - due) > CATCHES_UP * robot.period_ns:
            due += behind
        robot.clock.sleep_until(due)


@pytest.mark.realtime
def test_what_the_twin_did_keeps_the_limits(tmp_path: Path) -> None:
    targets = hostile(0, round(HZ * SECONDS))
    with bench("so101", tmp_path) as b, running(b.arm()) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), HZ)
        config = {"arms": {"arm": {"driver": "so101"}}}
        robot.filter, _ = filter_for(config, robot.joints)
        with Watch(b) as watch:
            drive(robot, targets)
        safety = Safety.of(config, robot.joints)
        assert (np.abs(watch.speeds()) <= 1.25 * safety.speed).all()
        assert (watch.q >= robot.joints.lower - 0.01).all()
        assert (watch.q <= robot.joints.upper + 0.01).all()
        body = bodies_of(config, robot.joints, replace(safety, table_distance=0.0, self_distance=0.0))[0][""]
        assert not {text for q in watch.q[::4] for text in body.touching(q.tolist())}
        assert robot.tally.limited > 0.9 * len(targets)


@pytest.mark.realtime
def test_without_the_filter_it_does_not(tmp_path: Path) -> None:
    with bench("so101", tmp_path) as b, running(b.arm(max_first_step=4.0)) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), HZ)
        with Watch(b) as watch:
            drive(robot, hostile(0, round(HZ * SECONDS)))
        assert np.abs(watch.speeds()).max() > 3.0
