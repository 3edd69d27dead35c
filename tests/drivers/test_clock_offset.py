"""The estimator that maps a device's clock to the robot's: bounds that always hold, and how near it comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.drivers.clock_offset import ClockOffset

MS = 1_000_000
SECOND = 1_000_000_000


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(-10 * MS, 20 * SECOND)), min_size=1),
    st.floats(0.0, 0.1),
)
def test_never_after_the_arrival_and_never_back(messages: list[tuple[int, int]], latency_s: float) -> None:
    offset, now, before = ClockOffset(latency_s), 0, None
    for device_ns, pause_ns in messages:
        now += max(pause_ns, 0)
        captured = offset.capture_ns(device_ns, now)
        assert captured <= now
        assert before is None or captured >= before
        before = captured


@settings(max_examples=50, deadline=None)
@given(
    st.integers(-(10**15), 10**15),
    st.floats(-1e-4, 1e-4),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.005]),
)
def test_finds_the_clock_within_the_least_delay(
    start: int, drift: float, seed: int, latency_s: float
) -> None:
    rng = np.random.default_rng(seed)
    offset = ClockOffset(latency_s)
    for i, late in enumerate(rng.exponential(3 * MS, 3000)):
        true = i * 10 * MS
        late = round(late) + round(latency_s * SECOND) + (40 * MS if rng.random() < 0.05 else 0)
        captured = offset.capture_ns(start + round(true * (1 + drift)), true + late)
        if i > 300:  # some message of three seconds came nearly at once
            assert abs(captured - true) < 1.5 * MS
    assert offset.steps == 0


def run(offset: ClockOffset, true_ns: range, shift_ns: int, late_ns: int = MS) -> list[int]:
    """The error of each capture time, ns, for a clock that is `shift_ns` ahead."""
    return [offset.capture_ns(t + shift_ns, t + late_ns) - t for t in true_ns]


@pytest.mark.parametrize("step_s", [-3600.0, -5.0, -0.3, 0.3, 5.0, 3600.0])
def test_a_step_is_noticed_at_once(step_s: float) -> None:
    offset = ClockOffset(latency_s=0.001)
    assert max(map(abs, run(offset, range(0, 5 * SECOND, 2 * MS), 0))) < MS
    after = run(offset, range(5 * SECOND, 6 * SECOND, 2 * MS), round(step_s * SECOND))
    assert max(map(abs, after)) < 2 * MS
    assert offset.steps == 1


def test_a_step_back_that_a_gap_hides_is_noticed_after_a_second() -> None:
    offset = ClockOffset()
    run(offset, range(0, 5 * SECOND, 2 * MS), 0)
    after = run(offset, range(10 * SECOND, 13 * SECOND, 2 * MS), -3 * SECOND)
    assert after[0] < -2.9 * SECOND, "it may as well be three seconds late: then old is the safe answer"
    assert abs(after[-1]) < 2 * MS
    assert offset.steps == 1


def test_a_queue_that_drains_keeps_its_old_times() -> None:
    offset = ClockOffset()
    run(offset, range(0, 5 * SECOND, 10 * MS), 0)
    for i in range(300):  # three seconds of messages come within 0.3 s
        true = 5 * SECOND + i * 10 * MS
        captured = offset.capture_ns(true, 8 * SECOND + i * MS)
        assert abs(captured - true) < 3 * MS
    assert offset.steps == 0


@given(st.lists(st.integers(0, 80), min_size=8, max_size=12), st.integers(-20, 20).filter(bool))
def test_an_offset_is_known_when_messages_have_told_it_for_a_while(late_ms: list[int], step_s: int) -> None:
    """In order, and now and then late; those after a step may be, too."""
    offset, t, device, receive, evidence_s = ClockOffset(), 0, 10**12, 0, []
    for i in range(10 * len(late_ms)):
        if i == 10:
            device += step_s * SECOND
        t, device = t + 10 * MS, device + 10 * MS
        receive = max(receive, t + (late_ms[i // 10] * MS if i % 10 < 2 else 0))
        captured = offset.capture_ns(device, receive)
        evidence_s.append(offset.evidence_s())
        if evidence_s[-1] >= 0.2:
            assert abs(captured - t) < 1 * MS
    assert evidence_s[10] == 0.0
    assert evidence_s[-1] > 0.2
