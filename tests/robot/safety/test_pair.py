"""Two arms of one robot, whose bases are known: whatever each is asked for, they keep off each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pybullet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pybullet_utils.bullet_client import BulletClient

from ulna.drivers.arm import DeviceError, Joints
from ulna.drivers.servos import koch
from ulna.robot.safety.arms import bodies_of, filter_for
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.pair import PASSES_M, RESTS_M, Pair
from ulna.sim.robots import ROBOTS, arms_of

SO101 = ROBOTS["so101"]()
HOME = SO101.home
BOTH = np.tile(HOME, 2)
OUT = np.array([0.0, 0.5, -0.3, 0.6, 0.0, 0.6])  # both arms there would be in each other
KEPT = 0.01  # the default of arm_distance
PAIR = {"model": "so101-pair", "safety": {}}
KINDS = ("jumps", "extremes", "shaking", "walk", "to the middle")


def two(one: Joints) -> Joints:
    both = [np.tile(x, 2) for x in (one.lower, one.upper, one.max_velocity, one.max_effort)]
    return Joints(tuple(f"{a}.{n}" for a in ("left", "right") for n in one.names), one.units * 2, *both)


JOINTS = two(SO101.joints)
SAFETY = Safety.of(PAIR, JOINTS)


def real(driver: str = "so101", **table: Any) -> dict[str, Any]:
    return {"arms": {"left": {"driver": driver}, "right": {"driver": driver}}, "safety": table}


@pytest.fixture(scope="module")
def filter_() -> Filter:
    """Of one test at a time, which resets it."""
    return filter_for(PAIR, JOINTS)[0]


@pytest.fixture(scope="module")
def alone() -> Filter:
    """As if nobody knew where the arms stand."""
    bodies, _ = bodies_of(PAIR, JOINTS, SAFETY)
    for body in bodies.values():
        body.base = None
    return Filter(JOINTS, SAFETY, bodies)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """For its distances alone."""
    bodies, _ = bodies_of(PAIR, JOINTS, SAFETY)
    return Pair(("left", "right"), (bodies["left"], bodies["right"]), (range(6), range(6, 12)), SAFETY)


def apart(pair: Pair, q: np.ndarray) -> float:
    return float(pair.distances(q[:6].tolist(), q[6:].tolist()).min())


def targets(kind: str, seed: int, n: int) -> np.ndarray:
    """`(n, 12)` rad."""
    rng = np.random.default_rng(seed)
    lower, upper = JOINTS.lower, JOINTS.upper
    if kind == "jumps":
        return np.repeat(rng.uniform(lower - 1, upper + 1, (1 + n // 20, 12)), 20, axis=0)[:n]
    if kind == "extremes":
        return np.where(rng.random((n, 12)) < 0.5, lower, upper)
    if kind == "shaking":
        return np.tile(OUT, 2) + rng.uniform(-0.4, 0.4, (n, 12))
    if kind == "walk":
        return BOTH + np.cumsum(rng.normal(0, 0.05, (n, 12)), axis=0)
    wide = np.tile([1.2, 0.6, 0.6, 0.8, 2.0, 0.6], 2)
    return np.repeat(np.tile(OUT, 2) + rng.uniform(-wide, wide, (1 + n // 30, 12)), 30, axis=0)[:n]


@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    hz=st.sampled_from([20.0, 50.0, 100.0, 240.0]),
    stop_at=st.integers(20, 120),
)
@settings(max_examples=30, deadline=None)
def test_the_arms_keep_their_distance_also_when_they_stop(
    filter_: Filter, pair: Pair, kinds: tuple[str, str], seed: int, hz: float, stop_at: int
) -> None:
    filter_.reset(BOTH)
    wanted = np.concatenate([targets(kinds[0], seed, 120)[:, :6], targets(kinds[1], seed + 1, 120)[:, 6:]], 1)
    before = BOTH
    for i, target in enumerate(wanted):
        if i == stop_at:
            filter_.trip("because")
        command = filter_.step(target, 1 / hz).command
        for q in (command, 0.5 * (command + before)):
            assert apart(pair, q) >= KEPT
        # as if either had been late by a tick
        late = np.concatenate([before[:6], command[6:]]), np.concatenate([command[:6], before[6:]])
        assert min(apart(pair, q) for q in late) >= KEPT
        before = command


def in_bullet() -> tuple[Any, list[int], list[list[int]]]:
    """Both arms in a world of their own: it, their bodies, and their joints, in order."""
    p = BulletClient(pybullet.DIRECT)
    bodies, joints = [], []
    for robot in arms_of("so101-pair").values():
        stand, turn = robot.stand, p.getQuaternionFromEuler([0, 0, robot.stand.yaw])
        bodies.append(p.loadURDF(str(robot.urdf), [stand.x, stand.y, 0], turn, useFixedBase=True))
        infos = [p.getJointInfo(bodies[-1], i) for i in range(p.getNumJoints(bodies[-1]))]
        by_name = {info[1].decode(): i for i, info in enumerate(infos)}
        joints.append([by_name[name] for name in robot.joints.names])
    return p, bodies, joints


def touches(world: tuple[Any, list[int], list[list[int]]], q: np.ndarray) -> bool:
    p, bodies, joints = world
    for body, own, positions in zip(bodies, joints, (q[:6], q[6:]), strict=True):
        for joint, x in zip(own, positions, strict=True):
            p.resetJointState(body, joint, x)
    p.performCollisionDetection()
    return any(c[8] < 0 for c in p.getContactPoints(bodies[0], bodies[1]))


def test_pybullet_sees_no_contact_and_sees_many_where_the_bases_are_not_known(
    filter_: Filter, alone: Filter
) -> None:
    world = in_bullet()
    contacts = []
    for one in (filter_, alone):
        contacts.append(0)
        for seed in range(3):
            one.reset(BOTH)
            for target in targets("to the middle", seed, 240):
                contacts[-1] += touches(world, one.step(target, 0.02).command)
    world[0].disconnect()
    assert contacts[0] == 0
    assert contacts[1] > 50


def go(one: Filter, target: np.ndarray, n: int = 400) -> Iterator[Any]:
    for _ in range(n):
        yield one.step(target, 0.01)


def test_arms_that_are_in_each_others_way_hold_and_go_on_when_one_is_asked_away(
    filter_: Filter, pair: Pair
) -> None:
    filter_.reset(BOTH)
    out = np.tile(OUT, 2)
    assert apart(pair, out) < 1e-6
    last = list(go(filter_, out))[-1]
    assert last.reasons == ("other arm",)
    assert (last.velocity == 0).all()
    held = apart(pair, last.command)
    assert KEPT + PASSES_M < held < KEPT + RESTS_M + 0.005, "it goes as near as it may"
    # the left one leaves, and the right one goes where it was asked to go
    back = HOME + np.array([0, -1.1, 0, 0, 0, 0])
    for step in go(filter_, np.concatenate([back, OUT])):
        assert apart(pair, step.command) >= KEPT
        last = step
    assert last.command[6:] == pytest.approx(OUT, abs=1e-6)
    assert last.flags == 0


def test_arms_that_are_asked_to_change_places_do_so_once_one_makes_way(filter_: Filter, pair: Pair) -> None:
    filter_.reset(BOTH)
    side = np.array([0.6, 0, 0, 0, 0, 0])
    here, there = np.tile(OUT + side, 2), np.tile(OUT - side, 2)
    list(go(filter_, here))
    steps = list(go(filter_, there))
    assert min(apart(pair, step.command) for step in steps) >= KEPT
    assert np.abs(steps[-1].command - there).max() > 0.1, "neither can"
    list(go(filter_, np.concatenate([HOME, there[6:]])))
    for target in (BOTH, np.concatenate([there[:6], HOME]), BOTH):
        step = list(go(filter_, target))[-1]
        assert step.command == pytest.approx(target, abs=1e-6)


def test_arms_that_begin_too_near_come_no_nearer_and_count_once_they_are_apart(
    filter_: Filter, alone: Filter, pair: Pair
) -> None:
    alone.reset(BOTH)
    near = BOTH
    for step in go(alone, np.tile(OUT, 2)):  # as two people might have left them
        if apart(pair, step.command) < 0.004:
            break
        near = step.command
    began = apart(pair, near)
    assert began < KEPT
    texts = filter_.reset(near)
    assert any(" of left 0.0" in text and " of right" in text for text in texts)
    for step in go(filter_, np.tile(OUT, 2)):
        assert apart(pair, step.command) >= began - 2e-3
    step = list(go(filter_, BOTH))[-1]
    assert step.command == pytest.approx(BOTH, abs=1e-6)
    step = list(go(filter_, np.tile(OUT, 2)))[-1]
    assert apart(pair, step.command) > KEPT


def test_an_arm_is_not_slowed_by_one_that_is_far_away(filter_: Filter, alone: Filter) -> None:
    filter_.reset(BOTH)
    alone.reset(BOTH)
    for target in targets("walk", 3, 200) * 0.3 + BOTH * 0.7:
        assert (filter_.step(target, 0.01).command == alone.step(target, 0.01).command).all()


def test_real_arms_are_kept_apart_where_their_file_says_where_they_stand(pair: Pair) -> None:
    stands = {arm: robot.stand for arm, robot in arms_of("so101-pair").items()}
    bases = {arm: [1 + s.x, s.y, 0.2, s.yaw] for arm, s in stands.items()}
    one, texts = filter_for(real(bases=bases), JOINTS)
    assert texts == ()
    one.reset(BOTH)
    step = list(go(one, np.tile(OUT, 2)))[-1]
    assert step.reasons == ("other arm",)
    assert apart(pair, step.command) > KEPT


def test_a_pair_of_kochs_of_capsules_is_kept_apart() -> None:
    joints = two(koch.JOINTS)
    bases = {"left": [0.0, 0.0, 0.0, 0.0], "right": [0.4, 0.0, 0.0, np.pi]}
    one, texts = filter_for(real("koch", bases=bases, table=False), joints)
    assert texts == ()
    safety = one.safety
    bodies, _ = bodies_of(real("koch", bases=bases, table=False), joints, safety)
    pair = Pair(("left", "right"), (bodies["left"], bodies["right"]), (range(6), range(6, 12)), safety)
    rng, reasons = np.random.default_rng(0), set[str]()
    one.reset(np.tile([1.5, 0, 0, 0, 0, 0], 2))
    for target in np.repeat(rng.uniform(joints.lower, joints.upper, (20, 12)), 30, axis=0):
        step = one.step(target, 0.02)
        reasons.update(step.reasons)
        assert apart(pair, step.command) >= KEPT
    assert "other arm" in reasons


def test_that_arms_are_not_kept_apart_is_said_once() -> None:
    _, texts = filter_for(real(), JOINTS)
    assert texts == (
        "[safety] does not say where the bases of left and right are: these arms are not kept off each other",
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"left": [0, 0, 0, 0]}, "bases do not say where right is"),
        ({"left": [0, 0, 0, 0], "rihgt": [1, 0, 0, 0]}, "no arm for .*bases: 'rihgt': did you mean right"),
        (
            {"left": [0, 0, 0], "right": [1, 0, 0, 0]},
            r"bases of left is \[0, 0, 0\]: give its \[x, y, z, yaw\]",
        ),
        ({"left": [0, 0, 0, "n"], "right": [1, 0, 0, 0]}, "bases of left"),
        ({"left": [0, 0, 0, 0], "right": [0.02, 0, 0, 0]}, "the bases of left and right are in each other"),
        ({"left": [0, 0, 0, 0], "right": [0, 0, 0, 0]}, "the bases of left and right are in each other"),
    ],
)
def test_bases_that_cannot_be_are_told(table: Any, message: str) -> None:
    for driver, one in (("so101", SO101.joints), ("koch", koch.JOINTS)):
        with pytest.raises(DeviceError, match=message):
            filter_for(real(driver, bases=table), two(one))


def test_a_rest_pose_in_which_the_arms_touch_is_told() -> None:
    bases = {"left": [0.0, 0.0, 0.0, 0.0], "right": [0.3, 0.0, 0.0, np.pi]}
    rest = [0.0, 0.5, -0.3, 0.6, 0.0, 0.6] * 2
    with pytest.raises(DeviceError, match=r"at rest is .* of left .* of right, and arms rest 0.02 m apart: "):
        filter_for(real(bases=bases, rest=rest), JOINTS)


def test_bases_are_for_several_real_arms() -> None:
    with pytest.raises(DeviceError, match="bases are for several arms, and this robot has one"):
        filter_for({"model": "so101", "safety": {"bases": {"arm": [0, 0, 0, 0]}}}, SO101.joints)
    bases = {"left": [0, 0, 0, 0], "right": [1, 0, 0, 0]}
    with pytest.raises(DeviceError, match="stand where its scene has them: leave bases out"):
        filter_for({"model": "so101-pair", "safety": {"bases": bases}}, JOINTS)
