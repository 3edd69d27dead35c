"""A policy behind a real socket that thinks for long, and an agent that never waits for it; and what a
decision costs where the world would wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from contracts.policy import POINT, Drawn
from contracts.vector_env import STATE, Go

from ulna.datasets.features import ACTION, Feature
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.server import PolicyServer
from ulna.robot.agent import PolicyAgent
from ulna.robot.asking import Asker
from ulna.robot.charge import Charge
from ulna.robot.robot import Observation
from ulna.robot.rollout import rollout
from ulna.robot.strategies.all import STRATEGIES, strategy_named


class Thinking:
    """Goes one further at every tick, from where it sees the robot; answers while `gate` is open."""

    def __init__(self) -> None:
        self.metadata = Metadata("thinking", POINT, horizon=16, n_action_steps=6, control_hz=20.0)
        self.gate, self.asked = threading.Event(), 0
        self.extensions: list[Mapping[str, Any]] = []
        self.fails = False

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked += 1
        self.extensions.append(request["_rt"])
        assert self.gate.wait(30)
        if self.fails:
            raise ValueError("broken")
        here = request[STATE].reshape(-1, 2)[-1]
        return {"actions": here + np.arange(1, 17, dtype=np.float32)[:, None], "nfe": 2}


@pytest.fixture
def served() -> Iterator[tuple[Thinking, PolicyClient]]:
    thinking = Thinking()
    with PolicyServer(thinking, port=0).background() as server:
        try:
            with PolicyClient(server.url) as client:
                yield thinking, client
        finally:
            thinking.gate.set()


def at(x: float) -> Observation:
    return Observation({STATE: np.full(2, x, np.float32)}, {})


def until(done: Any, agent: PolicyAgent, x: float) -> list[float]:
    """Ticks until `done`, each a little apart; the actions meanwhile."""
    actions: list[float] = []
    deadline = time.monotonic() + 20
    while not done(actions):
        assert time.monotonic() < deadline
        actions.append(float(agent.act(at(x))[0]))
        time.sleep(0.002)
    return actions


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "receding"])
def test_no_tick_waits_for_the_policy(name: str, served: tuple[Thinking, PolicyClient]) -> None:
    """The server answers only when it is let: whoever waited for it would never come back."""
    policy, client = served
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named(name, {"patience_s": 60}))
    agent.reset("go", 1)
    assert [float(agent.act(at(5))[0]) for _ in range(4)] == [5.0] * 4, "it stands where it is"
    assert (agent.starved, agent.ahead()) == (4, None)
    policy.gate.set()
    moving = until(lambda a: a and a[-1] != 5.0, agent, 5)
    assert moving[-1] == 6.0, "it stood still meanwhile, so the chunk begins with its first action"
    ahead = agent.ahead()
    assert ahead is not None
    np.testing.assert_allclose(ahead[:, 0], np.arange(7, 22))
    policy.gate.clear()
    # now the server thinks for ever: what is planned is executed to its end, then repeated
    rest = [float(agent.act(at(0))[0]) for _ in range(40)]
    assert len(set(rest[-4:])) == 1
    assert agent.starved > 4
    policy.gate.set()
    agent.close()


def test_an_answer_of_the_last_episode_is_not_executed(served: tuple[Thinking, PolicyClient]) -> None:
    policy, client = served
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named("async", {"patience_s": 60}))
    agent.reset("go", 1)
    agent.act(at(100))
    agent.reset("go", 2)
    assert agent.act(at(1))[0] == 1.0
    policy.gate.set()
    actions = until(lambda a: a and a[-1] != 1.0, agent, 1)
    assert max(actions) < 20
    agent.close()


def test_after_another_has_acted_it_goes_on_from_there(served: tuple[Thinking, PolicyClient]) -> None:
    policy, client = served
    policy.gate.set()
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named("async", {"patience_s": 60}))
    agent.reset("go", 1)
    until(lambda a: a and a[-1] > 3, agent, 0)
    policy.gate.clear()
    for x in (50.0, 60.0):
        agent.watch(at(x))
        agent.sent(np.full(2, x + 1, np.float32))
    assert agent.ahead() is None
    assert agent.act(at(61))[0] == 61.0, "it stands where it was left, until there is an answer"
    policy.gate.set()
    assert until(lambda a: a and a[-1] != 61.0, agent, 61)[-1] == 62.0
    charged = PolicyAgent(policy, POINT, 20.0, charge=Charge())
    charged.reset("go", 1)
    assert charged.act(at(0))[0] == 1
    charged.watch(at(7))
    charged.sent(np.full(2, 8, np.float32))
    assert charged.act(at(8))[0] == 9, "a new chunk"
    assert "previous" not in policy.extensions[-1]
    agent.close()


def test_the_request_says_what_is_executed_meanwhile(served: tuple[Thinking, PolicyClient]) -> None:
    policy, client = served
    policy.gate.set()
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named("rtc", {"beta": 3}))
    agent.reset("go", 1)
    until(lambda a: policy.asked >= 3, agent, 0)
    first, second = policy.extensions[0], policy.extensions[2]
    assert ("previous" in first, first["delay"]) == (False, 0)
    assert second["previous"].shape[1] == 2
    assert second["delay"] == min(agent.delays[1], len(second["previous"])), "the first is not counted"
    hook = {"part": "RTC", "beta": 3.0, "jacobian": "true"}
    assert first["options"] == second["options"] == {"steering": [hook]}
    agent.close()


def test_whoever_gets_no_answer_gives_up_with_a_sentence(served: tuple[Thinking, PolicyClient]) -> None:
    policy, client = served
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named("async", {"patience_s": 0.05}))
    agent.reset("go", 1)
    with pytest.raises(
        PolicyServerError, match=r"given no action for 0\.05 s: it does not answer; the arm st"
    ):
        until(lambda a: False, agent, 0)
    policy.gate.set()
    agent.close()


def test_what_the_policy_raises_ends_the_episode(served: tuple[Thinking, PolicyClient]) -> None:
    policy, client = served
    policy.fails = True
    policy.gate.set()
    agent = PolicyAgent(client, POINT, 20.0, strategy=strategy_named("async"))
    agent.reset("go", 1)
    with pytest.raises(PolicyServerError, match="the policy failed"):
        until(lambda a: False, agent, 0)
    agent.close()


def test_what_a_forgotten_question_raises_concerns_nobody() -> None:
    policy = Thinking()
    policy.fails = True
    policy.gate.set()
    asker = Asker(policy)
    asker.ask(0, {"_rt": {}})
    asker.forget()
    deadline = time.monotonic() + 20
    while asker.busy:
        assert asker.answer() is None
        assert time.monotonic() < deadline
    asker.ask(1, {"_rt": {}})
    with pytest.raises(ValueError, match="broken"):
        assert not any(asker.answer() for _ in iter(lambda: time.monotonic() < deadline, False))
    asker.close()


def test_a_robot_that_cannot_stand_still_must_wait() -> None:
    others = {**POINT, ACTION: Feature((2,), "float32", ("u", "v"), ("m/s", "m/s"))}
    policy = Thinking()
    policy.metadata = Metadata("x", others, horizon=16, n_action_steps=6)
    with pytest.raises(ValueError, match="does not say by which action it stands still"):
        PolicyAgent(policy, others, strategy=strategy_named("async"))
    policy.gate.set()
    charged = PolicyAgent(policy, others, 20.0, strategy=strategy_named("async"), charge=Charge(100))
    charged.reset("go", 1)
    assert charged.act(at(0))[0] == 1, "the first answer is free"


# ------------------------------------------------------------------ simulated time
def test_what_a_decision_costs() -> None:
    assert [Charge(ms).ticks(9.0, 4, 20.0) for ms in (0, 1, 50, 50.1, 300)] == [0, 1, 1, 2, 6]
    assert Charge(None).ticks(0.12, 4, 20.0) == 3
    assert Charge(10, True).ticks(9.0, 16, 20.0) == 4
    assert [str(Charge.of(t)) for t in ("150", "150 ms", "2.5/nfe", "Measured")] == [
        "150 ms", "150 ms", "2.5 ms a network evaluation", "measured"]  # fmt: skip
    for wrong in ("soon", "3/s", "", "1e999", "-1", "nan"):
        with pytest.raises(ValueError, match="latency"):
            Charge.of(wrong)


@pytest.mark.parametrize("ms", [0, 150])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_charged_answer_comes_when_it_would(name: str, ms: float) -> None:
    policy = Thinking()
    policy.gate.set()
    agent = PolicyAgent(policy, POINT, 20.0, strategy=strategy_named(name), charge=Charge(ms))
    agent.reset("go", 1)
    x, delay, acted = 0.0, ms // 50, []
    for _ in range(30):
        x = float(agent.act(at(x))[0])  # a robot that is where it is sent
        acted.append(x)
    assert acted[: int(delay)] == [0.0] * int(delay)
    assert set(agent.delays) == {delay}
    assert agent.latencies_s
    if name == "receding":
        # six actions of a chunk, then the robot stands while the policy thinks
        assert acted[int(delay) : int(delay) + 6] == [1, 2, 3, 4, 5, 6]
        stood = sum(a == b for a, b in pairwise(acted) if a)
        assert agent.starved == acted.count(0.0) + stood
    else:
        assert agent.starved == delay
        assert acted[int(delay) :] == pytest.approx([t + 1 for t in range(30 - int(delay))])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("charge", [Charge(0), Charge(250), Charge(40, True)])
def test_a_row_that_is_late_lives_the_episode_of_an_agent_of_its_own(name: str, charge: Charge) -> None:
    strategy, seeds = strategy_named(name), [7, 3, 11, 5, 2]
    # 10 Hz: 250 ms are 3 ticks, and 3 evaluations of 40 ms are 2
    many = rollout(Drawn(POINT), Go(3), seeds, traces=5, strategy=strategy, charge=charge)
    starved = 0
    for seed, outcome, trace in zip(seeds, many.outcomes, many.traces, strict=True):
        env = Go(1)
        agent = PolicyAgent(Drawn(POINT), POINT, 10.0, strategy=strategy, charge=charge)
        observation, info = env.reset(seed=[seed])
        agent.reset(str(info["task"][0]), seed)
        over, sent = False, []
        while not over:
            action = np.clip(agent.act(Observation({STATE: observation[STATE][0]}, {})), -1, 1)
            observation, _, terminated, truncated, info = env.step(action[None])
            agent.sent(action.astype(np.float32))
            sent.append(action)
            over = terminated[0] or truncated[0]
        assert (outcome.seed, outcome.ticks, outcome.success) == (seed, len(sent), bool(info["success"][0]))
        np.testing.assert_allclose(trace.action, sent, atol=1e-5)
        starved += agent.starved
    assert many.starved == starved
    with pytest.raises(ValueError, match="measured one at a time"):
        rollout(Drawn(POINT), Go(3), seeds, charge=Charge(None))
