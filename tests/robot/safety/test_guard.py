"""The stages `guard` and `smoothing`, in the filter of an arm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.flags import HELD, LIMITED
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import DeviceError
from ulna.policies.learn.support import learn_support
from ulna.robot.safety.arms import filter_for
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.stage import Measured, Seen
from ulna.robot.safety.stages.guard import UNSUPPORTED
from ulna.robot.safety.stages.smoothing import SMOOTHING, smoothing_of
from ulna.sim.robots import ROBOTS

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
CONTROL_HZ, RATE_HZ = 20.0, 100.0
ARM = Feature((len(JOINTS),), "float32", JOINTS.names, JOINTS.units)
FEATURES: Features = {STATE: ARM, ENVIRONMENT: Feature((1,), "float32", ("cube.x",), ("m",)), ACTION: ARM}
TURN, LIFT = np.eye(len(JOINTS))[0], np.eye(len(JOINTS))[2]


def ways(n: int, phase: float = 0.0) -> np.ndarray:
    """Poses `(n + 1, A)` of a demonstration: the base turns by 0.6 rad, and only then the elbow lifts."""
    done = (np.arange(n + 1) + phase)[:, None] / n
    return HOME + 0.6 * np.minimum(2 * done, 1) * TURN - 0.4 * np.clip(2 * done - 1, 0, 1) * LIFT


def filtered(table: dict[str, object], rest: list[float] | None = None) -> Filter:
    safety = {"table": False, "self_collision": False, **({} if rest is None else {"rest": rest}), **table}
    return filter_for({"model": "so101", "safety": safety}, JOINTS)[0]


def follow(
    filter_: Filter,
    targets: np.ndarray,
    start: np.ndarray = HOME,
    note: Callable[[np.ndarray, np.ndarray], object] = lambda q, target: None,
) -> tuple[np.ndarray, list[str]]:
    """(where it was sent last, why it acted, by tick) when asked for each of `targets` `(n, A)`, a control
    period each, with the filter at its own rate."""
    filter_.reset(start)
    reasons, before, sent = [], start, start
    for target in targets:
        note(sent, target)
        for i in range(steps := round(RATE_HZ / CONTROL_HZ)):
            asked = before + (i + 1) / steps * (target - before)
            step = filter_.step(asked, 1 / RATE_HZ)
            sent = step.command
            if UNSUPPORTED in step.reasons:
                assert step.flags & LIMITED
                reasons.append(UNSUPPORTED if not step.flags & HELD else "held")
        before = target
    return sent, reasons


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of demonstrations that went through the same filter, without a guard."""
    folder = tmp_path_factory.mktemp("guard")
    store, rng = EpisodeStore.create(folder / "d", FEATURES, CONTROL_HZ), np.random.default_rng(0)
    free = filtered({})
    with EpisodeWriter(store) as writer:
        for _ in range(20):
            writer.start({"agent": "test"})
            way, pairs = ways(40, rng.uniform(-1, 1)), []
            follow(free, way[1:], way[0], lambda q, target, pairs=pairs: pairs.append((q, target)))
            for t, (q, target) in enumerate(pairs):
                q, target = q + 0.002 * rng.normal(size=len(q)), target + 0.002 * rng.normal(size=len(q))
                arrays = {STATE: q, ACTION: target, ENVIRONMENT: rng.normal(size=1)}
                times = {k: (t * 50_000_000, t * 50_000_000) for k in arrays}
                writer.tick({k: v.astype(np.float32) for k, v in arrays.items()}, times)
            writer.end({"success": True})
    learn_support(folder / "d", folder / "guard", [STATE])
    learn_support(folder / "d", folder / "sees")
    return folder / "guard"


def test_what_was_demonstrated_passes(guard: Path) -> None:
    target = ways(40)
    sent, reasons = follow(filtered({"guard": {"checkpoint": str(guard)}}), target[1:])
    assert len(reasons) <= 0.2 * 200, "a twentieth of what was done is outside, and what is changed lags"
    assert reasons.count("held") <= 0.05 * 200
    assert np.abs(sent - target[-1]).max() < 0.05


def test_a_shortcut_is_held_and_goes_on_when_it_is_asked_otherwise(guard: Path) -> None:
    """Both joints at once, from the same first pose to the same last one."""
    shortcut = np.linspace(HOME, ways(40)[-1], 30)
    filter_ = filtered({"guard": {"checkpoint": str(guard), "reach": 0.01}})
    sent, reasons = follow(filter_, shortcut[1:])
    assert reasons.count("held") > 50
    assert np.abs(sent - HOME).max() < 0.15, "it stays where it began"
    free, _ = follow(filtered({}), shortcut[1:])
    assert np.abs(free - ways(40)[-1]).max() < 0.05, "and without the guard it does not"
    back = np.linspace(sent, HOME, 10)
    sent, _ = follow(filter_, back, sent)
    assert np.abs(sent - HOME).max() < 0.02


def test_what_is_asked_near_what_was_done_is_turned_into_it(guard: Path) -> None:
    way = ways(40)[:15] + np.arange(15)[:, None] * 0.012 * -LIFT  # drifts off into the lift too soon
    sent, reasons = follow(filtered({"guard": {"checkpoint": str(guard), "reach": 0.2}}), way[1:])
    assert UNSUPPORTED in reasons
    free, _ = follow(filtered({}), way[1:])
    assert abs((sent - HOME) @ LIFT) < abs((free - HOME) @ LIFT)
    assert (sent - HOME) @ TURN > 0.15, "it goes on where the data go"


def test_ways_home_and_to_rest_are_free_and_so_is_what_is_slow(guard: Path) -> None:
    """So that it can be put down from wherever it was held."""
    rest = HOME + 0.5 * LIFT
    filter_ = filtered({"guard": {"checkpoint": str(guard), "reach": 0.0}}, rest.tolist())
    lost = HOME + 0.5 * TURN + 0.5 * LIFT
    for pose in (HOME, rest):
        sent, reasons = follow(filter_, np.linspace(lost, pose, 20)[1:], lost)
        assert not reasons
        assert np.abs(sent - pose).max() < 0.03
    sent, reasons = follow(filter_, np.linspace(lost, lost + 0.3 * TURN, 40)[1:], lost)
    assert not reasons
    assert (sent - lost) @ TURN > 0.25
    sent, reasons = follow(filter_, np.linspace(lost, lost + 0.3 * TURN, 8)[1:], lost)
    assert "held" in reasons


def test_wrong_tables_are_named(guard: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"\[safety\.guard\].*not a complete Ulna checkpoint of a guard"):
        filtered({"guard": {"checkpoint": str(tmp_path)}})
    with pytest.raises(
        DeviceError, match=r"sees observation\.environment_state, and the filter knows the joints"
    ):
        filtered({"guard": {"checkpoint": str(guard.parent / "sees")}})
    with pytest.raises(DeviceError, match=r"\[safety\.guard\] lacks checkpoint"):
        filtered({"guard": {}})
    with pytest.raises(DeviceError, match="gain"):
        filtered({"smoothing": {"gain": -1}})


def asked_of(
    stage: object, asked: np.ndarray, q: np.ndarray, command: np.ndarray, tick: int
) -> tuple[np.ndarray, str]:
    seen = Seen(q, np.full(len(q), 1 + tick * 10_000_000), command, np.zeros(len(q)))
    allowed, why = stage.step(asked, seen, 0.01)  # type: ignore[attr-defined]
    return allowed, why


@given(seed=st.integers(0, 2**32 - 1), gain=st.floats(0, 4), floor=st.floats(0.05, 2))
@settings(max_examples=25, deadline=None)
def test_a_request_is_no_faster_than_the_arm_allows(seed: int, gain: float, floor: float) -> None:
    rng, n = np.random.default_rng(seed), len(JOINTS)
    stage = smoothing_of({"gain": gain, "floor": floor}, JOINTS, Safety.of({}, JOINTS), {}, "")
    q, last = HOME.copy(), HOME.copy()
    stage.reset(q, np.ones(n, bool))
    fastest = 0.0  # that any joint was measured to go, so far
    for tick in range(60):
        asked = last + rng.normal(0, 0.05, n) * (rng.random() < 0.5)
        allowed, why = asked_of(stage, asked, q, last, tick)
        change = np.abs(allowed - last).max()
        assert change <= (gain * fastest + floor) * 0.01 + 1e-9
        assert (why == "") == (allowed is asked)
        ahead = (asked - last) * (allowed - last)
        assert (ahead >= 0).all(), "on its way, never back"
        last = allowed
        moved = rng.uniform(-0.02, 0.02, n)
        q, fastest = q + moved, max(fastest, np.abs(moved).max() / 0.01)


def test_an_arm_that_follows_is_asked_faster_and_one_that_does_not_is_not() -> None:
    goal, ways_ = HOME + 1.0 * TURN, {}
    for follows, gain in ((0.1, 2.0), (0.0, 2.0), (0.1, 20.0)):
        filter_, q, command, angles = filtered({"smoothing": {"gain": gain, "floor": 0.3}}), HOME, HOME, [0.0]
        filter_.reset(HOME)
        for tick in range(150):
            step = filter_.step(goal, 0.01, Measured(q, np.full(len(q), 1 + tick * 10_000_000)))
            command = step.command
            q = q + follows * (command - q)  # of an arm that lags by a tenth of a second, or stands
            angles.append(float((command - HOME) @ TURN))
            assert tick > 10 or SMOOTHING in step.reasons
        ways_[follows, gain] = np.array(angles)
    following, standing, quick = ways_[0.1, 2.0], ways_[0.0, 2.0], ways_[0.1, 20.0]
    assert np.diff(standing).max() <= 0.3 * 0.01 * 1.5, "the floor, with what the limits overshoot"
    assert following[-1] == pytest.approx(1.0, abs=0.02)
    assert np.diff(following).max() > 3 * np.diff(standing).max()
    assert following[15] < 0.8 * quick[15], "and it starts gently"
