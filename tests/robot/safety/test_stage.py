"""Stages of the filter: what they are given, and that they cannot make an arm break a limit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.datasets.flags import HELD, LIMITED
from ulna.robot.safety.filter import Filter, State
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.stage import Measured, Seen, Stage
from ulna.sim.robots import ROBOTS

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
SAFETY = Safety.of({}, JOINTS)
DT = 0.01


class Notes:
    """Leaves every request as it is, and remembers all of them."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []
        self.seen: list[Seen] = []
        self.resets: list[np.ndarray] = []

    def reset(self, q: np.ndarray, moved: np.ndarray) -> None:
        self.resets.append(q)

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        self.asked.append(asked)
        self.seen.append(seen)
        return asked, ""


class Instead(Notes):
    """Wants something else, which may be far off, or no number."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.rng = rng

    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        super().step(asked, seen, dt_s)
        wants = self.rng.uniform(-20, 20, len(asked))
        return np.where(self.rng.random() < 0.1, np.nan, wants), "whim"


class Refuses(Notes):
    def step(self, asked: np.ndarray, seen: Seen, dt_s: float) -> tuple[np.ndarray | None, str]:
        return None, "no"


class Picky(Notes):
    """Lets nothing pass that a later stage changed."""

    def breaks(self, asked: np.ndarray, seen: Seen, dt_s: float) -> str:
        return "" if asked is self.asked[-1] else "picky"


def standing(*stages: Stage) -> Filter:
    filter_ = Filter(JOINTS, SAFETY, None, stages)
    filter_.reset(HOME)
    return filter_


def walk(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    jumps = rng.uniform(JOINTS.lower - 1, JOINTS.upper + 1, (n, 6))
    steps = HOME + np.cumsum(rng.normal(0, 0.01, (n, 6)), axis=0)
    return np.where(rng.random((n, 1)) < 0.1, jumps, steps)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_stage_that_changes_nothing_changes_not_a_bit(seed: int) -> None:
    notes = Notes()
    plain, staged = standing(), standing(notes)
    for target in walk(seed, 60):
        a, b = plain.step(target, DT), staged.step(target, DT)
        assert (a.command == b.command).all()
        assert a[2:] == b[2:]
    assert len(notes.asked) == 60


def test_a_stage_knows_what_is_sent_and_what_was_measured() -> None:
    notes = Notes()
    filter_ = standing(notes)
    assert (notes.resets[0] == HOME).all()
    q, times = HOME + 0.01, np.arange(6) * 1000
    first = filter_.step(HOME + 0.1, DT, Measured(q, times))
    filter_.step(HOME + 0.1, DT)
    one, two = notes.seen
    assert (one.q == q).all()
    assert (one.times_ns == times).all()
    assert (one.command == HOME).all()
    assert not one.velocity.any()
    assert (two.command == first.command).all()
    assert (two.velocity == first.velocity).all()
    assert (two.q == two.command).all(), "nobody measured: it is where it was sent"


def test_a_stage_is_asked_for_no_more_than_the_arm_could_do() -> None:
    notes = Notes()
    filter_ = standing(notes)
    filter_.step(np.array([50.0, 0.1, -0.2, 0.3, 0.0, 1.0]), DT)
    ahead, whole = notes.asked[0] - HOME, JOINTS.upper[0] - HOME[0]
    assert 0 < ahead[0] < 0.3, "1.5 rad/s, and 10 rad/s² to stop"
    away = np.array([whole, *np.array([0.1, -0.2, 0.3, 0.0]) - HOME[1:5]])
    np.testing.assert_allclose(ahead[:5], away * ahead[0] / whole, err_msg="on the same line")


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_no_stage_makes_an_arm_break_a_limit(seed: int) -> None:
    filter_ = standing(Instead(np.random.default_rng(seed)))
    commands = [HOME] * 3
    for target in walk(seed, 80):
        step = filter_.step(target, DT)
        assert "whim" in step.reasons
        assert step.flags & LIMITED
        commands.append(step.command)
    differences = np.array(commands)
    assert (differences >= JOINTS.lower - 1e-6).all()
    assert (differences <= JOINTS.upper + 1e-6).all()
    for limit in (SAFETY.speed, SAFETY.acceleration, SAFETY.jerk):
        differences = np.diff(differences, axis=0) / DT
        assert (np.abs(differences) <= limit * (1 + 1e-6)).all()


def test_where_a_stage_lets_nothing_pass_the_arm_brakes_and_goes_on_later() -> None:
    filter_ = standing(refuses := Refuses())
    step = filter_.step(HOME + 0.2, DT)
    assert step.reasons == ("no",)
    assert step.flags == LIMITED | HELD
    assert step.state is State.HOLD
    assert (step.command == HOME).all()
    refuses.step = lambda asked, seen, dt_s: (asked, "")
    assert filter_.step(HOME + 0.2, DT).state is State.RUN


def test_what_a_later_stage_breaks_is_not_done() -> None:
    rng = np.random.default_rng(0)
    assert standing(Picky(), Instead(rng)).step(HOME, DT).reasons == ("whim", "picky")
    assert standing(Instead(rng), Picky()).step(HOME, DT).reasons[0] == "whim"
    assert "picky" not in standing(Instead(rng), Picky()).step(HOME, DT).reasons
