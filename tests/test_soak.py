"""The judge of `benchmarks/soak.py`: an honest driver is acquitted, and one that lies is not."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from fault_benches import BENCHES, CAMERA_FAULTS, COMMANDED, HEALTHY, Bench, Swing, faults_of, running
from soak import FRESH_S, MOST_MS, TRUE_RAD, Judge, soak

from ulna.drivers.sample import Sample

MS = 1_000_000
ON = np.ones(2)


class Court:
    """A judge who has seen two joints for a second, a look each millisecond: one at 1 rad/s, one that stands
    still."""

    def __init__(self) -> None:
        self.judge, self.begin_ns = Judge(), time.monotonic_ns() - 10**9
        self.now_ns, self.seq = self.begin_ns, 0
        for _ in range(1000):
            self.now_ns += MS
            self.judge.see(self.now_ns, self.truth(self.now_ns), ON)

    def truth(self, t_ns: int) -> np.ndarray:
        return np.array([(t_ns - self.begin_ns) * 1e-9, 0.3])

    def hear(self, data: np.ndarray, age_ms: float, way_ms: float = 1.5, valid: Any = True) -> None:
        self.seq += 1
        capture = self.now_ns - round(age_ms * MS)
        sample = Sample(data, capture, capture + round(way_ms * MS), self.seq, np.broadcast_to(valid, 2))
        self.judge.hear(sample, self.now_ns)

    @property
    def verdict(self) -> tuple[int, int, int]:
        return len(self.judge.stale), len(self.judge.wrong), len(self.judge.uninvited)


@pytest.fixture
def court() -> Court:
    return Court()


@pytest.mark.parametrize("age_ms", [0, 12, 80, 240])
def test_what_a_joint_was_is_no_lie(court: Court, age_ms: float) -> None:
    """However old it is, as long as it says so."""
    was = court.truth(court.now_ns - round(age_ms * MS))
    court.hear(was, age_ms)
    court.hear(was + 0.9 * TRUE_RAD, age_ms)
    court.hear(
        was + np.array([0.004, 0.0]), age_ms, way_ms=4
    )  # measured at some time on the way there and back
    assert court.verdict == (0, 0, 0)


def test_an_old_reading_that_says_so_and_calls_itself_valid_is_stale(court: Court) -> None:
    court.hear(court.truth(court.now_ns - 260 * MS), 1e3 * FRESH_S + 10)
    assert court.verdict == (1, 0, 0)


@pytest.mark.parametrize("late_ms", [20, 80, 400])
def test_an_old_reading_stamped_as_new_is_wrong(court: Court, late_ms: int) -> None:
    court.hear(court.truth(court.now_ns - late_ms * MS), 1.0)
    assert court.verdict == (0, 1, 0)
    court.seq -= 1
    court.hear(court.truth(court.now_ns - late_ms * MS), 1.0)
    assert court.verdict == (0, 1, 0), "the same reading, asked for again"


def test_a_long_way_is_no_excuse_for_an_old_reading(court: Court) -> None:
    court.hear(court.truth(court.now_ns - 80 * MS), 40.0, way_ms=40.0)
    assert court.verdict == (0, 1, 0)
    assert MOST_MS < 40


def test_a_value_that_no_joint_had_is_wrong_in_either_joint(court: Court) -> None:
    for off in ([2 * TRUE_RAD + 0.005, 0.0], [0.0, -2 * TRUE_RAD]):
        court.hear(court.truth(court.now_ns) + np.array(off), 0.0)
    assert court.verdict == (0, 2, 0)


def test_what_calls_itself_invalid_may_be_anything(court: Court) -> None:
    court.hear(np.array([9.0, 9.0]), 900.0, valid=False)
    court.hear(court.truth(court.now_ns) + np.array([0.0, 1.0]), 0.0, valid=[True, False])
    assert court.verdict == (0, 0, 0)
    court.hear(court.truth(court.now_ns) + np.array([0.0, 1.0]), 0.0, valid=[False, True])
    assert court.verdict == (0, 1, 0)


def test_torque_comes_on_where_it_was_enabled_and_nowhere_else() -> None:
    judge, t, q = Judge(), time.monotonic_ns(), np.zeros(2)
    judge.see(t, q, np.zeros(2))
    with judge.enabling():
        judge.see(t + MS, q, ON)
    judge.see(t + 2 * MS, q, np.array([1.0, 0.0]))
    assert judge.uninvited == []
    judge.see(t + 3 * MS, q, ON)
    assert judge.uninvited == ["joints [1]"]


# the same, with a driver on its twin


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with running("so101", tmp_path) as bench:
        yield bench


class Liar:
    """A driver that says what it read 80 ms ago, with the times of what it reads now; or that gives back
    torque which was taken."""

    def __init__(self, bench: Bench, reads: bool = False, enables: bool = False) -> None:
        self.arm, self.plant, self.reads, self.enables = bench.device, bench.plant, reads, enables
        self.kept: deque[tuple[int, np.ndarray]] = deque(maxlen=200)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arm, name)

    def read(self) -> Sample:
        sample = self.arm.read()
        now = time.monotonic_ns()
        self.kept.append((now, sample.data))
        old = next((q for t, q in reversed(self.kept) if now - t >= 80 * MS), sample.data)
        return replace(sample, data=old) if self.reads else sample

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        if self.enables and not self.plant.torque.any():  # type: ignore[union-attr]
            self.arm.enable()
        return self.arm.command(target, t_target_ns)


def test_a_soak_finds_readings_that_are_80_ms_old(bench: Bench) -> None:
    honest = soak(bench, {}, 1.0)
    assert honest["torque_uninvited"] == honest["exceptions"] == 0, honest
    lying = soak(replace(bench, device=Liar(bench, reads=True)), {}, 2.0)
    assert lying["wrong_as_valid"] > 0.3 * lying["ticks"] > 10 * honest["wrong_as_valid"], (honest, lying)


def test_a_soak_finds_a_driver_that_enables_by_itself(bench: Bench) -> None:
    power = {"power cycled": {"reset": True}}
    counts = soak(replace(bench, device=Liar(bench, enables=True)), power, 1.5, seed=1)
    assert counts["injected"]["power cycled"] >= 1
    assert counts["torque_uninvited"] >= 1, counts


def test_every_fault_has_a_mend_and_every_arm_is_soaked() -> None:
    faults = [fault for name in BENCHES for fault in faults_of(name).values()]
    assert {name for fault in faults for name in fault} <= {*HEALTHY, "reset"}
    assert {n for n in BENCHES if faults_of(n) is not CAMERA_FAULTS and not n.endswith("-leader")} == set(
        COMMANDED
    )


def test_in_the_soak_some_joint_is_always_quick() -> None:
    swing = Swing(np.zeros(6))
    path = np.array([swing.next() for _ in range(600)])[150:]
    assert np.abs(np.diff(path, axis=0)).max(axis=1).min() * 100 > 0.75  # rad/s
