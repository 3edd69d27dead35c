"""The tank: what is pushed against gets no more energy than it held."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.drivers.arm import DeviceError
from ulna.robot.safety.arms import filter_for
from ulna.robot.safety.stage import Measured, Seen
from ulna.robot.safety.stages.tank import Config, Tank, Tanks, share
from ulna.sim.robots import ROBOTS

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import stiff_wall

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home


@given(p=st.floats(-5, 5), q=st.floats(0, 5), left=st.floats(-1, 3))
def test_the_share_is_the_largest_that_is_paid_for(p: float, q: float, left: float) -> None:
    beta = share(p, q, left)
    cost = beta * p + beta**2 * q
    betas = np.linspace(0, 1, 1001)
    costs = betas * p + betas**2 * q
    assert 0 <= beta <= 1
    if (costs <= left).any():
        assert cost <= left + 1e-6
        assert not (costs[betas > beta + 1e-3] <= left - 1e-6).any()
    else:
        assert cost <= costs.min() + 1e-6, "the least that there is"


@given(
    seed=st.integers(0, 2**32 - 1),
    begin=st.floats(0.1, 2),
    damping=st.sampled_from([0.0, 0.5]),
    push=st.sampled_from([0.01, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_it_never_holds_less_than_its_least(seed: int, begin: float, damping: float, push: float) -> None:
    """Whatever is asked, and wherever the arm then is read to be."""
    rng = np.random.default_rng(seed)
    stiffness = rng.uniform(1, 50, 3)
    tank = Tank(np.arange(3), stiffness, np.full(3, damping), Config(0.0, begin=begin), None)
    sent = x = rng.normal(0, 0.1, 3)
    tank.reset(sent)
    for tick in range(200):
        asked = sent + rng.normal(0, 0.1, 3) * rng.choice([0.1, 1, 10])
        seen = Seen(x, np.full(3, tick * 10**6), sent, np.zeros(3))
        allowed, why = tank.step(asked, seen, 0.001)
        assert allowed is not None
        assert tank.lowest >= 0.05 - 1e-9
        assert tank.energy <= 2.0
        assert (why == "") == (allowed is asked)
        sent = allowed
        x = x + rng.normal(0, push, 3)


def test_against_a_stiff_wall_it_gives_no_more_than_it_held() -> None:
    policy = stiff_wall.Presses(3, bursts=True)
    free, held = stiff_wall.run(None, policy), stiff_wall.run(stiff_wall.tank_of(1.0), policy)
    assert held.lowest >= 0.05 - 1e-9
    # mass and wall got the tank, and of what the damper lost what went back into it: nothing more
    assert held.wall.most <= 0.95
    assert free.wall.most > 2
    assert held.wall.peak < 0.5 * free.wall.peak
    assert held.acted > 0.1


def test_a_tank_that_holds_enough_is_not_felt() -> None:
    policy = stiff_wall.Presses(0, bursts=False)
    free, held = stiff_wall.run(None, policy), stiff_wall.run(stiff_wall.tank_of(1.0), policy)
    assert held.wall.x == free.wall.x
    assert held.acted == 0
    assert held.success
    assert not stiff_wall.run(stiff_wall.tank_of(0.1), policy).success, "one that holds too little is"


TOML = "[tank]\nstiffness = 20.0\ndamping = 0.5\n"


def pushed(text: str) -> tuple[float, set[str], Tank | None]:
    """How far an arm that cannot move is sent, in 3 s of a request that goes ever further."""
    filter_, _ = filter_for({"model": "so101", "safety": {"table": False, **tomllib.loads(text)}}, JOINTS)
    filter_.reset(HOME)
    reasons, sent = set[str](), HOME
    for tick in range(300):
        times = np.full(6, tick * 10_000_000)
        step = filter_.step(HOME + np.array([0.005 * tick, 0, 0, 0, 0, 0]), 0.01, Measured(HOME, times))
        reasons.update(step.reasons)
        sent = step.command
    stages = filter_.stages
    tanks = stages.each[0] if stages is not None else None
    tank = tanks.each[""] if isinstance(tanks, Tanks) else None
    return float(sent[0] - HOME[0]), reasons, tank


def test_behind_the_limits_an_arm_that_is_stuck_is_not_pushed_ever_harder() -> None:
    away, reasons, tank = pushed(TOML)
    assert tank is not None
    assert "tank" in reasons
    assert 0.5 * 20 * away**2 <= 0.95 + 1e-6, "the spring holds what the tank gave"
    assert tank.lowest >= 0.05 - 1e-6, "though it took a way to stop"
    free, reasons, _ = pushed("")
    assert free > 1.2
    assert "tank" not in reasons


def test_a_gripper_and_joints_that_are_not_named_cost_nothing() -> None:
    filter_, _ = filter_for({"model": "so101", "safety": tomllib.loads(TOML)}, JOINTS)
    assert filter_.stages is not None
    (tanks,) = filter_.stages.each
    assert isinstance(tanks, Tanks)
    assert tanks.each[""].columns.tolist() == [0, 1, 2, 3, 4]
    _, reasons, _ = pushed("[tank]\nstiffness = { elbow_flex = 20.0 }\n")
    assert "tank" not in reasons


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tank]", "lacks stiffness"),
        ("[tank]\nstiffness = 0.0", "no joint has a stiffness"),
        ("[tank]\nstiffness = -1.0", "stiffness is -1.0, it must be a number that is not negative"),
        ("[tank]\nstiffness = { elbow = 3 }", "'elbow': did you mean elbow_flex"),
        ('[tank]\nstiffness = { elbow_flex = "3" }', "stiffness of elbow_flex is '3'"),
        (TOML + "begin = 3.0", "begin is 3 J, it must be more than least, 0.05 J, and at most most, 2 J"),
        (TOML + "least = 1.0", "begin is 1 J"),
        (TOML + "efficiency = 1.2", "efficiency is 1.2, it must lie in 0..1"),
        (TOML + "stifness = 1", "'stifness': did you mean stiffness"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(DeviceError, match=sentence) as caught:
        filter_for({"model": "so101", "safety": tomllib.loads(text)}, JOINTS)
    assert "[safety.tank]" in str(caught.value)
    assert "\n" not in str(caught.value)
