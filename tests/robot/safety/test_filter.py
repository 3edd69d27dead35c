"""The filter: whatever is asked, what it returns keeps every limit, and can stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.flags import HELD, LIMITED
from ulna.drivers.arm import Joints
from ulna.robot.safety.arms import bodies_of
from ulna.robot.safety.body import Body
from ulna.robot.safety.filter import Bodies, Filter, Filtered, State
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.part import OVERSHOOT, SAME
from ulna.sim.robots import ROBOTS

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
SAFETY = Safety.of({}, JOINTS)
ROUNDING = 1 + 1e-6
DOWN = np.array(
    [0.3, 0.5, 0.0, -0.5, 0.0, 0.0]
)  # from home the fingertips touch after a little more than this
KINDS = ("jumps", "extremes", "shaking", "still", "walk", "sine", "nonsense")


@pytest.fixture(scope="module")
def body() -> Body:
    """The arm; nothing else moves it than the filter of one test at a time."""
    return bodies_of({"model": "so101"}, JOINTS, SAFETY)[0][""]


@pytest.fixture(scope="module")
def touch() -> Body:
    """The arm where it touches: 1 mm above the table, 4 mm from itself."""
    near = replace(SAFETY, self_distance=0.004, table_distance=0.001)
    return bodies_of({"model": "so101"}, JOINTS, near)[0][""]


def standing(bodies: Bodies | None = None, safety: Safety = SAFETY, joints: Joints = JOINTS) -> Filter:
    filter_ = Filter(joints, safety, bodies)
    filter_.reset(HOME)
    return filter_


def targets(kind: str, seed: int, n: int) -> np.ndarray:
    """`(n, 6)` rad."""
    rng = np.random.default_rng(seed)
    lower, upper = JOINTS.lower, JOINTS.upper
    if kind == "jumps":
        return rng.uniform(lower - 1, upper + 1, (n, 6))
    if kind == "extremes":
        return np.where(np.arange(n)[:, None] % 2 == 0, lower, upper)
    if kind == "shaking":
        return HOME + np.where(np.arange(n)[:, None] % 2 == 0, 0.3, -0.3)
    if kind == "still":
        return np.repeat(rng.uniform(lower, upper, (1 + n // 60, 6)), 60, axis=0)[:n]
    if kind == "walk":
        return HOME + np.cumsum(rng.normal(0, 0.03, (n, 6)), axis=0)
    if kind == "sine":
        phase = rng.uniform(0.05, 0.6, 6) * np.arange(n)[:, None]
        return HOME + 0.6 * np.sin(phase)
    values = rng.choice([np.nan, np.inf, -np.inf, 1e308, -1e308, 0.0, 1e-320], (n, 6))
    return np.where(rng.random((n, 1)) < 0.5, values, rng.uniform(lower, upper, (n, 6)))


def drive(filter_: Filter, wanted: np.ndarray, dt: float) -> list[Filtered]:
    return [filter_.step(target, dt) for target in wanted]


def commands_of(steps: Sequence[Filtered], start: np.ndarray = HOME) -> np.ndarray:
    """`(n + 3, 6)` rad: it stood at `start` before."""
    return np.array([start] * 3 + [step.command for step in steps])


def worst(commands: np.ndarray, dt: float, safety: Safety = SAFETY) -> np.ndarray:
    """`(3,)`: the largest speed, acceleration and jerk of the commands, each in units of its limit."""
    most = []
    for limit in (safety.speed, safety.acceleration, safety.jerk):
        commands = np.diff(commands, axis=0) / dt
        most.append(np.abs(commands / limit).max())
    return np.array(most)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    hz=st.sampled_from([20.0, 30.0, 50.0, 100.0, 240.0, 500.0]),
)
@settings(max_examples=60, deadline=None)
def test_speed_acceleration_jerk_and_the_joints_limits_hold(kind: str, seed: int, hz: float) -> None:
    steps = drive(standing(), targets(kind, seed, 120), 1 / hz)
    commands = commands_of(steps)
    assert np.isfinite(commands).all()
    assert (commands >= JOINTS.lower - 1e-6).all()
    assert (commands <= JOINTS.upper + 1e-6).all()
    assert (worst(commands, 1 / hz) <= ROUNDING).all()


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), hz=st.sampled_from([20.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_nothing_is_touched(body: Body, touch: Body, kind: str, seed: int, hz: float) -> None:
    filter_ = standing({"": body})
    for target in targets(kind, seed, 150):
        command = filter_.step(target, 1 / hz).command.tolist()
        assert not touch.fault(command), touch.touching(command)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    stop_at=st.integers(1, 100),
    known=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_it_can_stop_at_any_time(
    body: Body, touch: Body, kind: str, seed: int, stop_at: int, known: bool
) -> None:
    filter_, dt = standing({"": body} if known else None), 0.01
    steps = drive(filter_, targets(kind, seed, stop_at), dt)
    filter_.trip("because")
    while filter_.state is not State.STOP:
        steps.append(filter_.step(HOME, dt))
        assert len(steps) < stop_at + 120, "it does not stop"
    assert "because" in steps[-1].reasons
    assert steps[-1].flags == LIMITED | HELD
    commands = commands_of(steps)
    assert (worst(commands, dt) <= ROUNDING).all()
    assert not known or not any(touch.fault(c) for c in commands.tolist())
    assert (commands >= JOINTS.lower - 1e-6).all()
    assert (commands <= JOINTS.upper + 1e-6).all()
    assert (filter_.step(HOME, dt).command == commands[-1]).all(), "a stop lasts until it is reset"


@given(goal=st.lists(st.floats(0, 1), min_size=6, max_size=6), hz=st.sampled_from([20.0, 100.0, 500.0]))
@settings(max_examples=15, deadline=None)
def test_a_target_that_stands_still_is_reached_on_a_straight_line(goal: list[float], hz: float) -> None:
    target = JOINTS.lower + np.array(goal) * (JOINTS.upper - JOINTS.lower)
    steps = drive(standing(), np.tile(target, (round(4 * hz), 1)), 1 / hz)
    assert steps[-1].command == pytest.approx(target, abs=1e-6)
    assert steps[-1].flags == 0
    assert (steps[-1].velocity == 0).all()
    way, commands = (target - HOME)[:5], commands_of(steps)[:, :5] - HOME[:5]
    along = commands @ way / max(way @ way, 1e-12)
    assert np.abs(commands - along[:, None] * way).max() < 1e-8
    assert (np.diff(along) >= -1e-9).all(), "it never goes back"
    assert along.max() <= 1 + 1e-9, "nor too far"


@given(
    seed=st.integers(0, 2**32 - 1),
    shares=st.lists(st.floats(-1, 1), min_size=5, max_size=80),
    hz=st.sampled_from([20.0, 100.0]),
)
@settings(max_examples=40, deadline=None)
def test_targets_on_a_line_keep_it_on_the_line(seed: int, shares: list[float], hz: float) -> None:
    way = np.random.default_rng(seed).uniform(-0.4, 0.4, 6)
    steps = drive(standing(), HOME + np.array(shares)[:, None] * way, 1 / hz)
    commands = commands_of(steps)[:, :5] - HOME[:5]
    along = commands @ way[:5] / (way[:5] @ way[:5])
    assert np.abs(commands - along[:, None] * way[:5]).max() < 1e-6


def test_what_keeps_the_limits_is_followed_as_it_is() -> None:
    filter_, dt = standing(), 0.01
    time = np.arange(400) * dt
    way = np.array([0.3, 0.2, -0.3, 0.2, 0.25, 0.4])
    wanted = HOME + (1 - np.cos(2 * np.pi * 0.4 * time))[:, None] * way
    steps = drive(filter_, wanted, dt)
    off = np.abs(np.array([s.command for s in steps]) - wanted)
    assert off.max() < SAME["rad"]
    assert not any(step.flags for step in steps)


def test_a_trembling_request_shakes_nothing() -> None:
    rng = np.random.default_rng(0)
    wanted = HOME + rng.normal(0, 0.002, (300, 6))
    commands = commands_of(drive(standing(), wanted, 0.01))
    assert np.abs(np.diff(commands[3:], 2, axis=0)).std() < np.abs(np.diff(wanted, 2, axis=0)).std() / 4


def test_a_sudden_end_is_overshot_by_little() -> None:
    filter_, dt = standing(), 0.01
    ramp = HOME + np.minimum(np.arange(200) * dt, 1.0)[:, None] * np.array([1.0, 0, 0, 0, 0, 0])
    commands = commands_of(drive(filter_, ramp, dt))
    assert HOME[0] + 1.0 < commands[:, 0].max() < HOME[0] + 1.0 + 1.3 * OVERSHOOT["rad"]


def test_a_gripper_waits_for_no_arm_nor_an_arm_for_it() -> None:
    wide, far = HOME.copy(), HOME.copy()
    wide[5], far[0] = 1.5, 1.5
    both = np.where(np.arange(6) == 5, wide, far)
    runs = {}
    for name, target in (("gripper", wide), ("arm", far), ("both", both)):
        runs[name] = np.array([s.command for s in drive(standing(), np.tile(target, (60, 1)), 0.01)])
    assert (runs["both"][:, 5] == runs["gripper"][:, 5]).all()
    assert (runs["both"][:, :5] == runs["arm"][:, :5]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_it_hold_and_it_goes_on_after_that(value: float) -> None:
    filter_, dt = standing(), 0.01
    far = HOME + 0.4
    steps = drive(filter_, np.tile(far, (20, 1)), dt)
    bad = far.copy()
    bad[2] = value
    for _ in range(40):
        steps.append(filter_.step(bad, dt))
        assert steps[-1].reasons == ("not finite",)
        assert steps[-1].flags == LIMITED | HELD
        assert filter_.state is State.HOLD
    assert (steps[-1].velocity == 0).all()
    steps += drive(filter_, np.tile(far, (150, 1)), dt)
    assert steps[-1].command == pytest.approx(far, abs=1e-6)
    assert filter_.state is State.RUN
    assert (worst(commands_of(steps), dt) <= ROUNDING).all()


def test_nobody_asking_makes_it_hold() -> None:
    filter_ = standing()
    drive(filter_, np.tile(HOME + 0.5, (20, 1)), 0.01)
    step = filter_.step(None, 0.01)
    assert (step.flags, step.reasons, step.state) == (LIMITED | HELD, ("no target",), State.HOLD)


@pytest.mark.parametrize("dt", [0.0, -1.0, float("nan"), float("inf"), 1e9, 1e-12])
def test_a_wrong_period_moves_no_further_than_a_tick(dt: float) -> None:
    filter_ = standing()
    drive(filter_, np.tile(HOME + 0.8, (30, 1)), 0.01)
    before = filter_.step(HOME + 0.8, 0.01).command
    after = filter_.step(HOME + 0.8, dt).command
    assert (np.abs(after - before) <= SAFETY.speed * 0.1 + 1e-9).all()
    assert np.isfinite(after).all()


def test_periods_that_change() -> None:
    rng = np.random.default_rng(3)
    filter_, wanted = standing(), targets("jumps", 3, 300)
    previous, velocity = HOME, np.zeros(6)
    for target in wanted:
        dt = float(rng.uniform(0.002, 0.05))
        step = filter_.step(target, dt)
        assert (np.abs(step.command - previous) <= SAFETY.speed * dt * ROUNDING).all()
        assert (np.abs(step.velocity - velocity) <= SAFETY.acceleration * dt * ROUNDING).all()
        previous, velocity = step.command, step.velocity


def test_a_target_in_the_table_stops_above_it(body: Body, touch: Body) -> None:
    filter_, dt = standing({"": body}), 0.01
    down = HOME + 1.4 * DOWN
    assert body.fault(down.tolist()) == "table"
    steps = drive(filter_, np.tile(down, (300, 1)), dt)
    assert steps[-1].reasons == ("table",)
    assert steps[-1].flags == LIMITED | HELD
    assert (np.abs(steps[-1].velocity) < 1e-6).all()
    assert not touch.fault(steps[-1].command.tolist())
    way = (down - HOME)[:5]
    along = (steps[-1].command - HOME)[:5] @ way / (way @ way)
    assert 0.1 < along < 1
    assert (steps[-1].command - HOME)[:5] == pytest.approx(along * way, abs=1e-6), "it did not turn aside"
    further = HOME + min(1.0, along + 0.05) * (down - HOME)
    assert body.fault(further.tolist()) == "table", "it went as far as it could"
    steps = drive(filter_, np.tile(HOME, (200, 1)), dt)
    assert steps[-1].command == pytest.approx(HOME, abs=1e-6), "and goes back up"


def test_the_arm_does_not_run_into_itself(body: Body, touch: Body) -> None:
    folded = np.array([0.0, -1.74, 1.69, 1.65, 0.0, 0.0])
    assert body.fault(folded.tolist()) == "self-collision"
    steps = drive(standing({"": body}), np.tile(folded, (300, 1)), 0.01)
    assert steps[-1].reasons == ("self-collision",)
    assert not any(touch.fault(s.command.tolist()) for s in steps)


def test_the_tip_stays_in_its_box() -> None:
    box = np.array([[0.1, -0.1, 0.02], [0.3, 0.1, 0.3]])
    safety = replace(SAFETY, workspace={"": box})
    boxed = bodies_of({"model": "so101"}, JOINTS, safety)[0][""]
    filter_ = standing({"": boxed}, safety)
    steps = drive(filter_, targets("still", 1, 600), 0.01)
    assert any("workspace" in step.reasons for step in steps)
    for step in steps:
        tip = boxed.tip(step.command.tolist())
        assert (tip > box[0] - 0.001).all()
        assert (tip < box[1] + 0.001).all()


def test_an_arm_that_begins_in_the_table_comes_out_and_goes_no_deeper(body: Body, touch: Body) -> None:
    filter_ = Filter(JOINTS, SAFETY, {"": body})
    low = HOME + 1.2 * DOWN
    assert touch.fault(low.tolist()) == "table"
    assert filter_.reset(low)
    deeper = drive(filter_, np.tile(HOME + 1.5 * DOWN, (100, 1)), 0.01)
    assert deeper[-1].command == pytest.approx(low, abs=2e-3)
    up = drive(filter_, np.tile(HOME, (200, 1)), 0.01)
    assert up[-1].command == pytest.approx(HOME, abs=1e-6)
    again = drive(filter_, np.tile(low, (200, 1)), 0.01)
    assert not touch.fault(again[-1].command.tolist()), "once it is out, the table counts"
    body.begin(HOME.tolist())


def test_a_tip_that_begins_outside_its_box_comes_in_and_goes_no_further_out() -> None:
    low, box = HOME + 0.7 * DOWN, np.array([[0.05, -0.3, 0.07], [0.4, 0.3, 0.4]])
    safety = replace(SAFETY, table={}, workspace={"": box})
    boxed = bodies_of({"model": "so101"}, JOINTS, safety)[0][""]
    filter_ = Filter(JOINTS, safety, {"": boxed})
    assert filter_.reset(low) == ("the tip 0.035 m outside the workspace",)
    begin = boxed.tip(low.tolist())
    deeper = drive(filter_, np.tile(HOME + 1.4 * DOWN, (100, 1)), 0.01)
    assert deeper[-1].reasons == ("workspace",)
    assert min(boxed.tip(s.command.tolist())[2] for s in deeper) > begin[2] - 0.001
    up = drive(filter_, np.tile(HOME, (200, 1)), 0.01)
    assert up[-1].command == pytest.approx(HOME, abs=1e-6)
    again = drive(filter_, np.tile(low, (200, 1)), 0.01)
    assert boxed.tip(again[-1].command.tolist())[2] > 0.069, "once it is in, the box counts"


def test_a_joint_that_stands_outside_its_limits_comes_back_in() -> None:
    filter_ = Filter(JOINTS, SAFETY, None)
    outside = HOME.copy()
    outside[1] = JOINTS.lower[1] - 0.1
    filter_.reset(outside)
    steps = drive(filter_, np.tile(HOME, (300, 1)), 0.01)
    commands = commands_of(steps, outside)
    assert commands[:, 1].min() >= outside[1] - 1e-6
    assert steps[-1].command == pytest.approx(HOME, abs=1e-6)
    assert (worst(commands, 0.01) <= ROUNDING).all()


def test_two_arms_do_not_wait_for_each_other() -> None:
    names = tuple(f"{arm}.{joint}" for arm in ("left", "right") for joint in JOINTS.names)
    both = [np.tile(x, 2) for x in (JOINTS.lower, JOINTS.upper, JOINTS.max_velocity, JOINTS.max_effort)]
    joints = Joints(names, JOINTS.units * 2, *both)
    filter_ = Filter(joints, Safety.of({}, joints), None)
    filter_.reset(np.tile(HOME, 2))
    target = np.concatenate([HOME + 0.1, HOME + 1.0])
    alone = standing()
    for _ in range(60):
        step = filter_.step(target, 0.01)
        assert (step.command[:6] == alone.step(HOME + 0.1, 0.01).command).all()


def test_the_reasons_are_told_apart() -> None:
    filter_ = standing()
    steps = drive(filter_, np.tile(HOME + np.array([1.5, 0, 0, 0, 0, 0]), (100, 1)), 0.01)
    assert steps[3].reasons == ("acceleration",)
    assert steps[50].reasons == ("speed",)
    outside = HOME.copy()
    outside[0] = JOINTS.upper[0] + 0.5
    steps = drive(filter_, np.tile(outside, (300, 1)), 0.01)
    assert steps[-1].reasons == ("position",)
    assert steps[-1].flags == LIMITED


def test_what_cannot_be_a_target_is_refused() -> None:
    filter_ = Filter(JOINTS, SAFETY, None)
    with pytest.raises(ValueError, match="reset it first"):
        filter_.step(HOME, 0.01)
    with pytest.raises(ValueError, match="shoulder_pan"):
        filter_.reset(np.full(6, np.nan))
    filter_.reset(HOME)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        filter_.step(np.zeros(5), 0.01)
