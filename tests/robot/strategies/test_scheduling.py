"""Chunks by absolute tick: whatever the delays, every tick has exactly one action, and it is the one that
was meant for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.drivers.arm import DeviceError
from ulna.policies.request import Request
from ulna.policies.serving.metadata import Metadata
from ulna.robot.session import Session
from ulna.robot.strategies.all import STRATEGIES, description, name_of, strategy_named, usual_strategy
from ulna.robot.strategies.ensemble import Ensemble
from ulna.robot.strategies.overlap import Overlap
from ulna.robot.strategies.receding import Receding
from ulna.robot.strategies.rti import RTI
from ulna.robot.strategies.slicing import Slicing
from ulna.robot.strategies.strategy import Strategy

FEATURES = {k: Feature((1,), "float32", ("x",), ("m",)) for k in (STATE, ACTION)}
ASYNCHRONOUS = [name for name in STRATEGIES if name != "receding"]


def session(strategy: Strategy, horizon: int = 16, n_action_steps: int = 8) -> Session:
    return Session(Metadata("x", FEATURES, 1, horizon, n_action_steps=n_action_steps), strategy=strategy)


@dataclass
class Line:
    """How the questions of an episode fare: ticks until the answer, actions in it, what it wants executed;
    an answer that never comes is asked for again after `dropped` ticks."""

    delays: list[int]
    lengths: list[int]
    executes: list[int | None]


@dataclass
class Answer:
    """asked, there: actions consumed by then; tick: at which it was there."""

    asked: int
    there: int
    tick: int
    length: int
    execute: int | None


def lives(of: Session, line: Line, ticks: int) -> tuple[list[float], list[Answer]]:
    """(the action of each tick, the answers). The action that a chunk has for the u-th action that is
    consumed is u + 0.5, so that whoever takes the wrong one is seen; the robot stands at 0 at first."""
    actions: list[float] = []
    answers: list[Answer] = []
    due: tuple[int, Answer] | None = None
    k = 0

    def chunk(answer: Answer) -> np.ndarray:
        return np.arange(answer.asked, answer.asked + answer.length, dtype=np.float64)[:, None] + 0.5

    for t in range(ticks):
        used = of.tick - of.starved
        if due is not None and due[1].tick == t:
            asked, answer = due
            # others' answers: of questions that nobody asks any more
            of.answer(chunk(answer) + 1000, asked=asked - 1)
            of.answer(chunk(answer), execute=answer.execute, asked=asked)
            of.answer(chunk(answer) + 1000, asked=asked)
            answer.there = used
            answers.append(answer)
            due = None
        of.observe({STATE: np.zeros(1, np.float32)})
        request = of.ask()
        if request is not None:
            assert due is None, "one question at a time"
            assert of.asked == t
            delay = line.delays[k % len(line.delays)]
            length, execute = line.lengths[k % len(line.lengths)], line.executes[k % len(line.executes)]
            k += 1
            answer = Answer(used, used, t + delay, length, execute)
            if delay:
                due = t, answer
            else:
                of.answer(chunk(answer), execute=execute)
                answers.append(answer)
        action = of.next()
        assert action.shape == (1,)
        actions.append(float(action[0]))
    assert of.tick == ticks
    return actions, answers


lines = st.builds(
    Line,
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.lists(st.none() | st.integers(1, 15), min_size=1, max_size=3),
)


@pytest.mark.parametrize("name", STRATEGIES)
@given(line=lines, ticks=st.integers(1, 40))
def test_every_tick_has_the_next_action_or_the_last_one(name: str, line: Line, ticks: int) -> None:
    """No action is left out and none comes twice: not one is that of another tick, whatever is late."""
    of = session(strategy_named(name))
    actions, answers = lives(of, line, ticks)
    used = 0
    for t, action in enumerate(actions):
        there = [a for a in answers if a.tick <= t]
        if name == "ensemble":
            covered = any(used < a.asked + min(a.length, a.execute or a.length) for a in there)
        elif name == "receding":
            covered = bool(there) and used - there[-1].asked < min(there[-1].execute or 8, there[-1].length)
        else:  # the last answer that was of use, whatever it wants executed
            useful = [a for a in there if a.there < a.asked + a.length]
            covered = bool(useful) and used < useful[-1].asked + useful[-1].length
        used += covered
        assert action == pytest.approx(used - 0.5 if used else 0.0), f"tick {t}"
    assert of.starved == ticks - used


@pytest.mark.parametrize("name", ["async", "rtc", "rtc-trained", "overlap", "ensemble", "rti"])
@given(delay=st.integers(0, 6), n=st.integers(12, 20), execute=st.none() | st.integers(1, 30))
def test_chunks_that_last_twice_the_delay_never_run_out(
    name: str, delay: int, n: int, execute: int | None
) -> None:
    of = session(strategy_named(name), n)
    if name == "ensemble" and execute is not None:
        execute = max(execute, 2 * delay)  # what is not to be executed is not there
    actions, answers = lives(of, Line([delay], [n], [execute]), 60)
    assert of.starved == delay, "before the first answer"
    assert actions[delay:] == pytest.approx([t + 0.5 for t in range(60 - delay)])
    # asked again when as much was used as is wanted, or when the chunk would else run out
    if name in ("async", "rtc", "rtc-trained"):
        wanted = min(8 if execute is None else execute, n)
        gaps = np.diff([a.asked for a in answers])
        assert set(gaps[1:]) <= {max(delay, min(wanted, n - delay))}
        assert of.delays.forecast == delay
    assert of.too_late == 0


def test_without_delay_a_chunk_is_used_as_far_as_the_policy_wants() -> None:
    for strategy in (Receding(), Slicing(), STRATEGIES["rtc"]()):
        of = session(strategy)
        lives(of, Line([0], [16], [3, None, 99, 1]), 40)
        assert of.switches[:5] == [0, 3, 11, 27, 28]


def test_while_the_policy_thinks_nothing_is_announced_that_is_not_executed() -> None:
    of = session(Receding(), 16, 8)
    announced = []
    for _ in range(2):
        ask(of)
        of.answer(np.arange(16.0)[:, None], execute=3)
        for _ in range(3):
            of.next()
            announced.append([] if (ahead := of.ahead()) is None else ahead[:, 0].tolist())
    assert announced == [[1, 2], [2], []] * 2


@pytest.mark.parametrize("strategy", [Receding(), Slicing()])
def test_what_an_arm_executed_meanwhile_is_left_out(strategy: Strategy) -> None:
    of = session(strategy, 16, 8)
    ask(of)
    of.answer(np.arange(16.0)[:, None], execute=6)
    assert of.next() == [0]
    of.skip(3)
    assert of.next() == [4]
    of.skip(99)  # no more than what was announced
    if strategy.waits:
        ask(of)
        of.answer(np.arange(100.0, 116.0)[:, None])
    assert of.next() == [100 if strategy.waits else 15]
    assert of.starved == int(not strategy.waits), "the last one, again"
    assert of.tick == (7 if strategy.waits else 17)


def test_answers_that_are_all_over_are_counted_and_asked_for_again() -> None:
    of = session(Slicing(), 16, 2)
    actions, answers = lives(of, Line([0, 5, 5, 1], [16, 4, 3, 16], [None]), 20)
    assert of.too_late == 2
    assert [a.asked for a in answers] == [0, 2, 7, 12, 14, 19][: len(answers)]
    assert actions == [t + 0.5 for t in range(20)], "the old chunk went on"


def test_the_forecast_is_the_most_of_the_last_ten_without_the_first() -> None:
    of = session(RTI())
    assert of.delays.forecast == 0
    forecasts = []
    for delay in [50, 3, 1, 7, *[2] * 10, 4]:
        of.delays.add(delay)
        forecasts.append(of.delays.forecast)
    assert forecasts == [50, 3, 3, 7, *[7] * 9, 2, 4]
    of.reset("go", 1)
    assert of.delays.forecast == 4, "what is known of the line outlives the episode"


def ask(of: Session) -> Request:
    of.observe({STATE: np.full(1, 7.0, np.float32)})
    request = of.ask()
    assert request is not None
    return request


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_request_says_what_is_executed_meanwhile(name: str) -> None:
    strategy = strategy_named(name)
    of = session(strategy, 10, 4)
    first = ask(of)
    foretells = name in ("rtc", "rtc-trained")
    assert (first.previous, first.delay) == (None, 0 if foretells else None)
    of.answer(np.arange(10.0)[:, None])
    while True:
        of.next()
        of.observe({STATE: np.zeros(1, np.float32)})
        if (second := of.ask()) is not None:
            break
    np.testing.assert_array_equal(second.previous[:, 0], np.arange(of.tick, 10))
    parts = [hook["part"] for hook in second.options.get("steering", [])]
    assert parts == {"rtc": ["RTC"], "rtc-trained": ["Prefix"], "rti": ["RTI"]}.get(name, [])
    assert second.options == Request.from_wire(second.to_wire()).options
    if name == "receding":
        assert of.ahead() is None, "what is left of a chunk is not executed"
    else:
        np.testing.assert_array_equal(of.ahead(), np.arange(of.tick, 10)[:, None])
    of.reset("again", 2)
    assert of.ahead() is None
    assert ask(of).previous is None
    assert of.next() == [7.0], "it stands where it is until the first answer"


@given(
    merge=st.sampled_from(["weighted_average", "latest_only", "average", "conservative"]),
    delay=st.integers(0, 5),
)
def test_overlap_merges_as_lerobot_does(merge: str, delay: int) -> None:
    of, new = session(Overlap(merge=merge), 10), {"a": 0.5, "w": 0.7, "l": 1.0, "c": 0.3}[merge[0]]  # type: ignore[arg-type]
    ask(of)
    of.answer(np.zeros((10, 1)))
    for t in range(1, 6 + delay):
        assert of.next() == [0.0]
        of.observe({STATE: np.zeros(1)})
        assert (of.ask() is not None) == (t == 5), "half of the chunk is left"
    of.answer(np.ones((10, 1)), asked=5)
    shared = 10 - 5 - delay
    ahead = of.ahead()
    assert ahead is not None
    np.testing.assert_allclose(ahead, [[new]] * shared + [[1.0]] * (10 - delay - shared))


@given(st.integers(1, 6), st.floats(-1, 1), st.integers(1, 15), st.integers(0, 10_000))
def test_the_ensemble_weighs_the_oldest_most(horizon: int, decay: float, ticks: int, seed: int) -> None:
    chunks = np.random.default_rng(seed).normal(size=(ticks, horizon, 1))
    of = session(Ensemble(decay=decay), horizon, 1)
    for t in range(ticks):
        ask(of)
        of.answer(chunks[t])
        predictions = [chunks[s][t - s] for s in range(max(0, t - horizon + 1), t + 1)]  # oldest first
        weights = np.exp(-decay * np.arange(len(predictions)))
        np.testing.assert_allclose(of.next(), np.average(predictions, axis=0, weights=weights))
        assert (0 if (ahead := of.ahead()) is None else len(ahead)) == horizon - 1


def test_the_ensemble_leaves_out_what_is_not_to_be_executed() -> None:
    of = session(Ensemble(decay=0.0), 3, 1)
    got = []
    for chunk, execute in (([0.0, 10.0, 20.0], 1), ([1.0, 2.0], 5), ([4.0], None)):
        ask(of)
        of.answer(np.array(chunk)[:, None], execute=execute)
        got.append(float(of.next()[0]))
    assert got == [0, 1, 3], "the last of 2 and 4, not of 20"


def steps(strategy: Slicing, late: int) -> np.ndarray:
    """What is sent of two chunks that are 1 apart, from a stand at 0: chunk after chunk is 1, 0, 1, …"""
    of, sent = session(strategy), list[float]()
    of.reset("", 0)
    due: tuple[int, int] | None = None
    for tick in range(60):
        of.observe({STATE: np.zeros(1, np.float32)})
        if of.ask() is not None:
            due = tick + (late if tick else 0), of.decisions
        if due is not None and tick >= due[0]:
            of.answer(np.full((16, 1), 1.0 - due[1] % 2, np.float32))
            due = None
        sent.append(float(of.next()[0]))
    return np.array(sent)


@given(blend=st.integers(1, 6), late=st.integers(0, 8))
def test_a_new_chunk_is_faded_in(blend: int, late: int) -> None:
    """Never past either chunk, wholly the new one after `blend` ticks, and the smoother the longer."""
    at_once, faded = steps(Slicing(), late), steps(Slicing(blend=blend), late)
    assert (steps(RTI(every=8, blend=blend), late) == faded).all()
    assert faded.min() >= 0
    assert faded.max() <= 1
    jumps = np.flatnonzero(np.diff(at_once, prepend=0.0))
    assert len(jumps) > 3
    for jump in jumps:
        way = np.abs(faded[jump : jump + blend] - at_once[jump])
        assert (np.diff(way) < 0).all()
    for tick in set(range(60)) - {j + k for j in jumps for k in range(blend)}:
        assert faded[tick] == pytest.approx(at_once[tick], abs=1e-6)
    jerk = [np.abs(np.diff(path, n=3)).max() for path in (at_once, faded)]
    assert jerk[1] < jerk[0] * {1: 0.76, 2: 0.4}.get(blend, 0.2)


def test_what_a_policy_usually_is_run_by() -> None:
    assert usual_strategy(Metadata(decoder="slice")) == Receding()
    assert usual_strategy(Metadata(decoder="ensemble")) == Ensemble(wait=True)
    with pytest.raises(ValueError, match="slice and ensemble"):
        usual_strategy(Metadata(decoder="bogus"))
    with pytest.raises(ValueError, match="at least 1"):
        Receding().plan(Metadata(n_action_steps=0))


@pytest.mark.parametrize("name", STRATEGIES)
def test_to_execute_nothing_is_refused(name: str) -> None:
    of = session(strategy_named(name))
    ask(of)
    with pytest.raises(ValueError, match="wants 0 actions"):
        of.answer(np.ones((3, 1)), execute=0)


def test_strategies_by_name() -> None:
    made = strategy_named("rtc", {"beta": "2.5", "jacobian": "identity", "patience_s": 1})
    fields = {"beta": 2.5, "jacobian": "identity", "patience_s": 1.0, "blend": 0}
    assert description(made) == {"name": "rtc"} | fields
    assert strategy_named("ensemble", {"decay": "none", "wait": "true"}) == Ensemble(wait=True)
    assert [name_of(strategy_named(n)) for n in STRATEGIES] == list(STRATEGIES)
    with pytest.raises(DeviceError, match="no strategy 'rct': did you mean"):
        strategy_named("rct")
    with pytest.raises(DeviceError, match="no field of the strategy rtc: 'gamma'"):
        strategy_named("rtc", {"gamma": 1})
    for field, value, says in [
        ("beta", "lots", "beta is a number, not 'lots'"),
        ("beta", "nan", "is a number"),
        ("jacobian", "none", "one of true, identity"),
        ("patience_s", "-1", "must be positive"),
    ]:
        with pytest.raises(ValueError, match=says):
            strategy_named("rtc", {field: value})
    with pytest.raises(ValueError, match=r"whole number, not '2\.5'"):
        strategy_named("rti", {"steps": "2.5"})
    with pytest.raises(ValueError, match="at least 1"):
        strategy_named("rti", {"every": 0})
    with pytest.raises(ValueError, match="share of the chunk"):
        strategy_named("overlap", {"threshold": 1.5})
