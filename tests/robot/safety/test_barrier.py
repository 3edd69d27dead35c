"""The barrier: an arm that goes around what it is told of, never into it, and is left alone elsewhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.drivers.arm import DeviceError, Joints
from ulna.robot.config import load_robot
from ulna.robot.evaluate import evaluate
from ulna.robot.safety.arms import bodies_of, filter_for
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.stage import Seen
from ulna.robot.safety.stages.barrier import BARRIER, Barrier, nearest
from ulna.sim.robots import ROBOTS

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
# the tip goes from left to right, through a ball that is 2 cm from where it would go
LEFT, RIGHT = np.array([0.9, 0.3, 0.2, 0.6, 0.0, 0.6]), np.array([-0.9, 0.3, 0.2, 0.6, 0.0, 0.6])
BALL = "[[obstacles]]\nat = [0.30, 0.02, 0.05]\nradius = 0.03\n"
BOX = "[[obstacles]]\nat = [0.0, 0.3, 0.05]\nsize = [0.05, 0.05, 0.1]\nyaw = 0.4\n"
POLE = "[[obstacles]]\nat = [0.2, -0.2, 0.0]\nto = [0.2, -0.2, 0.3]\nradius = 0.01\n"
FAR = "[[obstacles]]\nat = [0.0, 0.0, 3.0]\nradius = 0.03\n"
MARGIN, TABLE_DISTANCE = 0.02, 0.002


def config_of(text: str, safety: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model": "so101", "safety": {**(safety or {}), "barrier": tomllib.loads(text)}}


def barrier_of(text: str) -> Barrier:
    filter_, _ = filter_for(config_of(text), JOINTS)
    assert filter_.stages is not None
    (stage,) = filter_.stages.each
    assert isinstance(stage, Barrier)
    return stage


def seen_at(q: np.ndarray, v: np.ndarray | None = None) -> Seen:
    return Seen(q, np.zeros(6, np.int64), q, np.zeros(6) if v is None else v)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_nearest_velocity_is_allowed_and_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, inside = rng.normal(size=(8, 4)), rng.normal(size=4)
    least = rows @ inside - rng.uniform(0, 1, 8)
    z = nearest(rows, least)
    assert z is not None
    assert (rows @ z >= least - 1e-9).all()
    # of all that are allowed, each lies on the far side of the plane through z that looks back to zero
    assert z @ (inside - z) >= -1e-9
    for point in inside + rng.normal(size=(50, 4)):
        if (rows @ point >= least).all():
            assert z @ (point - z) >= -1e-9
    assert nearest(np.array([[1.0, 0], [-1.0, 0]]), np.array([1.0, 1.0])) is None


@pytest.fixture(scope="module")
def among() -> Barrier:
    return barrier_of(BALL + BOX + POLE)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["straight", "jumps", "walk"]),
    dt=st.sampled_from([0.005, 0.02, 0.05]),
)
@settings(max_examples=25, deadline=None)
def test_where_the_arm_follows_at_once_it_never_comes_nearer_than_the_margin(
    among: Barrier, seed: int, kind: str, dt: float
) -> None:
    rng, (arm,) = np.random.default_rng(seed), among.arms
    q, v, goal = HOME, np.zeros(6), RIGHT
    among.reset(q, np.ones(6, bool))
    for k in range(100):
        if (kind == "jumps" and k % 10 == 0) or (kind == "straight" and k % 50 == 0):
            goal = rng.uniform(JOINTS.lower, JOINTS.upper)
        if kind == "walk":
            goal = goal + rng.normal(0, 0.1, 6)
        step = np.clip(goal, JOINTS.lower, JOINTS.upper) - q
        over = max(1.0, float((np.abs(step) / (dt * arm.speed)).max()))
        before = arm.h(q)
        allowed, why = among.step(q + step / over, seen_at(q, v), dt)
        assert allowed is not None
        h = arm.h(allowed)
        assert h.min() >= 0
        assert (h >= (1 - 5.0 * dt) * before - 1e-9).all() or why == "", "no faster than alpha lets it"
        v, q = (allowed - q) / dt, allowed


def test_far_from_everything_not_a_bit_changes() -> None:
    plain, _ = filter_for({"model": "so101", "safety": {}}, JOINTS)
    far, _ = filter_for(config_of(FAR), JOINTS)
    rng = np.random.default_rng(0)
    for filter_ in (plain, far):
        filter_.reset(HOME)
    goals = rng.uniform(JOINTS.lower - 1, JOINTS.upper + 1, (20, 6))
    for goal in np.repeat(goals, 15, axis=0):
        a, b = plain.step(goal, 0.01), far.step(goal, 0.01)
        assert (a.command == b.command).all()
        assert a[2:] == b[2:]


@pytest.mark.parametrize("hz", [20.0, 100.0])
def test_behind_the_limits_it_arrives_around_what_stops_the_limits_alone(hz: float) -> None:
    config = config_of(BALL)
    filter_, _ = filter_for(config, JOINTS)
    assert filter_.stages is not None
    clearance = filter_.stages.each[0].arms[0]  # pyright: ignore[reportAttributeAccessIssue]
    bodies = bodies_of(config, JOINTS, filter_.safety)[0]
    alone = Filter(JOINTS, filter_.safety, bodies)
    ends = []
    for each in (filter_, alone):
        each.reset(LEFT)
        steps = [each.step(RIGHT, 1 / hz) for _ in range(round(6 * hz))]
        assert min(clearance.h(step.command).min() for step in steps) > TABLE_DISTANCE - MARGIN - 1e-6
        reasons = {reason for step in steps for reason in step.reasons}
        ends.append((float(np.abs(steps[-1].command - RIGHT).max()), reasons))
    assert ends[0][0] < 1e-3
    assert BARRIER in ends[0][1]
    assert "obstacle" not in ends[0][1], "the limits after it need not act"
    assert ends[1][0] > 0.3
    assert "obstacle" in ends[1][1]


@given(seed=st.integers(0, 2**32 - 1), hz=st.sampled_from([20.0, 100.0]))
@settings(max_examples=8, deadline=None)
def test_behind_the_limits_nothing_is_touched_whatever_is_asked(seed: int, hz: float) -> None:
    filter_, _ = filter_for(config_of(BALL + BOX + POLE), JOINTS)
    assert filter_.stages is not None
    arm = filter_.stages.each[0].arms[0]  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(seed)
    filter_.reset(HOME)
    goals = rng.uniform(JOINTS.lower, JOINTS.upper, (12, 6))
    for goal in np.repeat(goals, 12, axis=0):
        q = filter_.step(goal + rng.normal(0, 0.05, 6), 1 / hz).command
        assert arm.h(q).min() >= TABLE_DISTANCE - MARGIN - 1e-6


def test_what_a_later_stage_makes_worse_it_refuses() -> None:
    barrier = barrier_of(BALL)
    (arm,) = barrier.arms
    q, dt = LEFT, 0.02
    barrier.reset(q, np.ones(6, bool))
    for _ in range(400):
        allowed, why = barrier.step(np.clip(RIGHT, q - 0.03, q + 0.03), seen_at(q), dt)
        assert allowed is not None
        if why and arm.h(q).min() < 0.004:
            break
        q = allowed
    else:
        raise AssertionError("it never came near")
    seen = seen_at(q)
    k = int(np.argmin(arm.h(q)))
    inwards = -arm._clearance.gradients([k])[0]
    assert barrier.breaks(q + 0.05 * inwards / np.linalg.norm(inwards), seen, dt) == BARRIER
    assert barrier.breaks(allowed, seen, dt) == ""
    assert barrier.breaks(q + 0.5 * (allowed - q), seen, dt) == "", "half of the way is no nearer"
    assert barrier.breaks(q, seen, dt) == ""


def test_in_two_arms_each_has_its_own() -> None:
    names = tuple(f"{arm}.{n}" for arm in ("left", "right") for n in JOINTS.names)
    twice = [np.tile(x, 2) for x in (JOINTS.lower, JOINTS.upper, JOINTS.max_velocity, JOINTS.max_effort)]
    joints = Joints(names, JOINTS.units * 2, *twice)
    arms = {"left": {"driver": "so101"}, "right": {"driver": "so101"}}
    table = tomllib.loads(BALL + 'arm = "right"\n')
    filter_, _ = filter_for({"arms": arms, "safety": {"barrier": table}}, joints)
    filter_.reset(np.tile(LEFT, 2))
    command = [filter_.step(np.tile(RIGHT, 2), 0.01) for _ in range(100)][-1].command
    left, right = command[:6], command[6:]
    assert left[0] < 0 < right[0]
    assert left[1:] == pytest.approx(LEFT[1:], abs=1e-6)
    assert np.abs(right[1:] - LEFT[1:]).max() > 0.02
    with pytest.raises(DeviceError, match="obstacle 1 lacks arm"):
        filter_for({"arms": arms, "safety": {"barrier": tomllib.loads(BALL)}}, joints)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("obstacles = []", "there are no obstacles"),
        ("", r"\[safety.barrier\] lacks obstacles"),
        (BALL + "rad = 1", "'rad': did you mean radius"),
        ("alfa = 3\n" + BALL, "'alfa': did you mean alpha"),
        ("alpha = 9\n" + BALL, "shoulder_pan would have to brake faster than it can: at most 6.67"),
        ("[[obstacles]]\nat = [0.3, 0.0]\nradius = 0.1", "at is .* three numbers"),
        ("[[obstacles]]\nat = [0.3, 0.0, 0.0]", "no clear shape"),
        ("[[obstacles]]\nat = [0.3, 0.0, 0.0]\nsize = [0.1, 0.1, -1]", "each side must be more than 0"),
        ("[[obstacles]]\nat = [0.3, 0.0, 0.0]\nto = [0.3, 0.0, 0.0]\nradius = 0.1", "leave `to` out"),
        ("[[obstacles]]\nradius = 0.1", "obstacle 1 lacks at"),
        (
            "[[obstacles]]\nat = [0.25, 0.0, 0.05]\nradius = 0.03",
            "where its episodes begin the arm's gripper",
        ),
        ("[[obstacles]]\nat = [0.2, 0.0, 0.1]\nradius = 0.05", "is in obstacle 1"),
        (BALL + 'arm = "left"', "no arm for .*'left'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DeviceError, match=sentence) as caught:
        filter_for(config_of(text), JOINTS)
    assert "\n" not in str(caught.value)
    assert "[safety.barrier]" in str(caught.value)


def test_it_needs_the_shape_of_the_arm() -> None:
    config = {"arms": {"arm": {"driver": "mine"}}, "safety": {"barrier": tomllib.loads(BALL)}}
    with pytest.raises(DeviceError, match=r"needs the shape of the arm, which is not known"):
        filter_for(config, JOINTS)


class Across:
    """Goes from where it is to `RIGHT`, by way of `LEFT`, and forgets what may be there."""

    tag, flags = "across", 0

    def reset(self, task: str, seed: int) -> None:
        self.ticks = 0

    def act(self, observation: Any) -> np.ndarray:
        self.ticks += 1
        return LEFT if self.ticks < 40 else RIGHT


FILE = 'name = "r"\ndriver = "sim"\nmodel = "so101"\ncontrol_hz = 20.0\n'


@pytest.mark.parametrize("stages", [True, False])
def test_in_physics_a_policy_that_goes_through_an_obstacle_goes_around(tmp_path: Path, stages: bool) -> None:
    path = tmp_path / "r.toml"
    table = "[safety]\n[safety.barrier]\n" + BALL.replace("[obstacles]", "[safety.barrier.obstacles]")
    path.write_text(FILE + (table if stages else "[safety]\n"))
    touched = list[int]()
    with load_robot(str(path), "reach") as rig:
        scene: Any = rig.scene
        p, c = scene.world.bullet, scene.world.client

        def build() -> None:
            ball = p.createCollisionShape(p.GEOM_SPHERE, radius=0.03, physicsClientId=c)
            scene.ball = p.createMultiBody(0, ball, -1, [0.30, 0.02, 0.05], physicsClientId=c)

        def look() -> None:
            arm = next(iter(scene.arms.values())).body
            touched.append(len(p.getContactPoints(arm, scene.ball, physicsClientId=c)))

        scene.after_reset.append(build)
        scene.world.after_step.append(look)
        scene.max_seconds = 7.0
        build()
        report = evaluate(rig, Across(), 1, videos=0)
        q = np.concatenate([arm.read().data for arm in rig.robot.arms.values()])
    if stages:
        assert not any(touched)
        assert np.abs(q[:5] - RIGHT[:5]).max() < 0.05
        assert "barrier" in str(report.safety)
    else:
        assert any(touched)
        assert "barrier" not in str(report.safety)
