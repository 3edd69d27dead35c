"""A person takes the robot from a policy and gives it back: without a jump, with flags, and the policy goes
on from what it saw meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.agent import check_agent
from contracts.policy import Follow
from contracts.teleoperation_page import client as page
from contracts.twin import ask, twin
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.store import EpisodeStore
from ulna.drivers.sample import Sample
from ulna.drivers.teleoperator import Hand
from ulna.policies.serving.server import PolicyServer
from ulna.robot.agent import PolicyAgent
from ulna.robot.cli import main
from ulna.robot.config import Rig, load_robot
from ulna.robot.deploy import Stalls, deploy
from ulna.robot.keys import Keys
from ulna.robot.loop import run_episode
from ulna.robot.onlooker import onlooker_for
from ulna.robot.people import SYNC_SPEED, LeaderAgent, TeleoperatorAgent, agent_for
from ulna.robot.record import open_store, recorder_for
from ulna.robot.takeover import FIRST_STEP, Person, Takeover

UP = np.array([0.0, 0.0, 1.0])


class Leader:
    """The joints of an arm as a test sets them; it is read only."""

    def __init__(self, like: Any, q: np.ndarray) -> None:
        self.joints, self.q, self.valid = like.joints, np.array(q), True

    def read(self) -> Sample:
        return Sample(self.q.copy(), 0, 0, 0, np.full(len(self.q), self.valid))


class Told:
    """A hand that does what the test says."""

    def __init__(self) -> None:
        self.name, self.says = "told", Hand(False)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def read(self) -> Hand:
        return self.says


class Wave(Follow):
    """A policy that moves every joint to and fro, wherever the arm is."""

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = super().infer(request)
        turn = 0.3 * np.sin(0.4 * (4 * len(self.requests) + np.arange(8)))[:, None]
        return {**reply, "actions": (request[STATE][-1:] * 0 + turn).astype(np.float32)}


class Ticks:
    """A subscriber that keeps what was sent and its flags, and does `at` tick i what the test says."""

    def __init__(self, at: Mapping[int, Callable[[], Any]]) -> None:
        self.at, self.sent, self.flags, self.states = dict(at), list[np.ndarray](), list[int](), list[Any]()

    def start(self, meta: Mapping[str, Any]) -> None: ...

    def tick(self, values: Any, times_ns: Any, flags: Mapping[str, int]) -> None:
        self.sent.append(values[ACTION].astype(float))
        self.states.append(values[STATE])
        self.flags.append(flags.get(ACTION, 0))
        self.at.get(len(self.sent), lambda: None)()

    def end(self, meta: Mapping[str, Any]) -> None: ...

    def interrupt(self, reason: str) -> None: ...

    @property
    def steps(self) -> np.ndarray:
        """`(T,)`: by how much the joint that moved most was sent elsewhere than in the tick before."""
        sent = np.array([self.states[0], *self.sent])
        return np.abs(np.diff(sent, axis=0)).max(1)


@pytest.fixture(scope="module")
def scene() -> Iterator[Rig]:
    with load_robot("sim:so101", "reach") as rig:
        yield rig


@pytest.fixture
def rig(scene: Rig) -> Rig:
    assert scene.sim is not None
    scene.sim.reset(0)
    return scene


def by_leader(rig: Rig, away: float, policy: Follow | None = None) -> tuple[Takeover, Leader]:
    """away: of every joint of the leader from the follower's, rad."""
    ((name, follower),) = rig.robot.arms.items()
    leader = Leader(follower, follower.read().data + away)
    agent = PolicyAgent(policy or Wave(rig.robot.features), rig.robot.features)
    return Takeover(agent, LeaderAgent({name: leader}, rig.robot), 20.0), leader  # type: ignore[dict-item]


def test_a_leader_far_away_takes_over_without_a_jump_and_gives_back_without_one(rig: Rig) -> None:
    agent, leader = by_leader(rig, 0.9)

    def push() -> None:
        leader.q += 0.04

    turns = {10: agent.toggle, 30: agent.toggle}
    log = Ticks(turns | dict.fromkeys(range(15, 28), push))
    run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=45)
    flags = np.array(log.flags)
    assert flags.tolist() == [0] * 10 + [INTERVENTION] * 20 + [0] * 15
    assert log.steps[10] <= FIRST_STEP + 1e-6
    assert log.steps[30] <= FIRST_STEP + 1e-6
    assert log.steps[11:14].max() < 1e-6, "the arm rests while the hand does"
    assert agent.taken == 1
    before, after = (abs(log.sent[i][0] - q) for i, q in ((14, leader.q[0] - 13 * 0.04), (29, leader.q[0])))
    assert after == pytest.approx(max(0, before - 0.5 * 13 * 0.04), abs=1e-3), "by half of the moves"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.floats(-1.5, 1.5))
@example([6, 1, 7, 1], 0.0)  # there after one tick
def test_whenever_hands_change_the_first_step_is_small(scene: Rig, turns: list[int], away: float) -> None:
    assert scene.sim is not None
    scene.sim.reset(1)
    agent, _ = by_leader(scene, away)
    ticks = np.cumsum(turns).tolist()
    log = Ticks(dict.fromkeys(ticks, agent.toggle))
    run_episode(scene.robot, agent, [log], task="", seed=0, max_ticks=ticks[-1] + 5)
    changes = np.flatnonzero(np.diff([0, *log.flags]))
    assert len(changes) == len(turns)
    for i in changes:
        for k, step in enumerate(log.steps[i : i + 3]):
            most = min((k + 1) * FIRST_STEP, SYNC_SPEED / 20)
            assert step <= most + 1e-6, "the first steps grow slowly"
            if step < most - 1e-6:
                break  # the arm is where its new owner wants it, and moves as they do
    assert log.steps[changes].max() <= FIRST_STEP + 1e-6


def test_a_leader_that_cannot_be_read_moves_nothing_and_is_clutched_anew(rig: Rig) -> None:
    agent, leader = by_leader(rig, 0.2)
    leader.valid = False

    def back() -> None:
        leader.valid = True
        leader.q += 0.7  # it went elsewhere meanwhile

    log = Ticks({5: agent.toggle, 12: back})
    run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=20)
    assert log.steps[6:].max() < 1e-6


def test_the_policy_sees_what_happens_meanwhile_and_starts_from_there(rig: Rig) -> None:
    policy = Wave(rig.robot.features)
    agent, leader = by_leader(rig, 0.0, policy)

    def push() -> None:
        leader.q += 0.05

    log = Ticks({6: agent.toggle, 20: agent.toggle} | dict.fromkeys(range(8, 18), push))
    run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=24)
    asked = [r.observation[STATE] for r in policy.requests]
    assert len(asked) == 3, "at ticks 0 and 4, and anew when it was given the arm back"
    np.testing.assert_array_equal(asked[2], [log.states[19], log.states[20]])


def test_a_closed_switch_takes_over_and_a_button_gives_back(rig: Rig) -> None:
    device = Told()
    device.says = Hand(True)  # it is held as the episode begins: that asks for nothing
    person = TeleoperatorAgent(device, rig.robot, "so101")
    agent = Takeover(PolicyAgent(Follow(rig.robot.features), rig.robot.features), person, 20.0)

    def says(hand: Hand) -> Callable[[], None]:
        return lambda: setattr(device, "says", hand)

    turns = {4: says(Hand(False)), 8: says(Hand(True, 0.1 * UP)), 16: says(Hand(False)), 20: agent.toggle}
    log = Ticks(turns)
    run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=26)
    flags = np.array(log.flags)
    assert np.flatnonzero(flags).tolist() == list(range(8, 20)), "also while it is let go of in between"
    assert log.steps[[8, 20]].max() <= FIRST_STEP + 1e-6
    tips = [person.chain.forward(q).position[2] for q in log.sent]
    assert tips[16] - tips[8] > 0.02, "it moves the tip"
    assert np.ptp(log.sent[17:20], axis=0).max() < 1e-6
    check_agent(agent, rig.robot.observe(), 6)


def test_keys_take_over_and_judge_and_whole_attempts_are_stored(tmp_path: Path) -> None:
    """As `ulna deploy --takeover` does: t takes the arm, t gives it back, s says how it went."""
    typed, file = os.openpty()
    pressed = iter([b"t", b"", b"s"])

    class Watched(Wave):
        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            os.write(typed, next(pressed, b""))
            return super().infer(request)

    try:
        with (
            Keys(file) as keys,
            load_robot("sim:so101", "reach") as rig,
            PolicyServer(Watched(rig.robot.features), port=0).background() as server,
        ):
            ((name, follower),) = rig.robot.arms.items()

            class Impatient(Leader):
                reads = 0

                def read(self) -> Sample:
                    self.reads += 1
                    if self.reads == 5:
                        os.write(typed, b"t")
                    return super().read()

            leader = Impatient(follower, follower.read().data + 0.5)
            person = LeaderAgent({name: leader}, rig.robot)  # type: ignore[dict-item]
            bare = Rig(rig.robot, None, rig.config)
            with recorder_for(bare, open_store(bare, tmp_path / "d", "x")) as recorder:
                result = deploy(
                    bare, server.url, 1, 5, "x", 3.0, recorder, keys=keys, person=person, meta={"a": 1}
                )
    finally:
        os.close(typed)
        os.close(file)
    assert result["takeovers"] == 1
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    flags = episode.flags(ACTION)
    assert (flags == INTERVENTION).sum() >= 5
    assert episode.attrs["success"] is True
    assert episode.attrs["a"] == 1
    assert episode.attrs["agent"] == "policy follow ffffffff with human leader"
    sent = np.concatenate([episode.read(STATE)[:1], episode.read(ACTION)])
    changes = np.flatnonzero(np.diff([0, *(flags & INTERVENTION)]))
    assert np.abs(np.diff(sent, axis=0))[changes].max() <= FIRST_STEP + 1e-6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--takeover", "leeder"], "did you mean leader"),
        (["--takeover", "leader"], "has no button to take over with"),
        (["--takeover", "gamepad", "--phone"], "the agent is gamepad"),
        (["--director", "Retri"], "did you mean Retry"),
        (["--Retry.attempts", "3"], "belongs to no director"),
    ],
)
def test_what_cannot_be_is_said_before_a_server_is_asked(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda file: False)
    assert main(["deploy", "--server", "ws://127.0.0.1:9", *words]) in (1, 2)
    assert says in capsys.readouterr().err


@pytest.mark.realtime
def test_a_stall_is_said_once_while_it_lasts() -> None:
    said: list[str] = []
    log = Stalls(0.05, said.append)
    log.start({})
    log.tick({}, {}, {})
    log.tick({}, {}, {})
    assert said == []
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.02)
    log.tick({}, {}, {})
    log.tick({}, {}, {})
    log.end({})
    assert len(said) == 1
    assert "the arm holds" in said[0]


class Calls(Follow):
    """A policy that rests, and calls somebody at its decision `at`."""

    def __init__(self, features: Any, at: int, somebody: Callable[[], None]) -> None:
        super().__init__(features)
        self.at, self.somebody = at, threading.Thread(target=somebody, daemon=True)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = super().infer(request)
        if len(self.requests) == self.at:
            self.somebody.start()
        return reply


@pytest.mark.realtime
def test_a_page_takes_over_drives_and_gives_back(tmp_path: Path) -> None:
    """The page begins the episode; its button says what it will do."""
    rig = load_robot("sim:so101", "reach", realtime=True)
    with contextlib.ExitStack() as stack:
        person = stack.enter_context(agent_for("browser", "sim:so101", rig))
        assert isinstance(person, TeleoperatorAgent)
        onlooker = stack.enter_context(onlooker_for(person, rig))
        stack.enter_context(rig)
        labels: list[str] = []

        def operate() -> None:
            with page(person.teleoperator) as client:  # type: ignore[arg-type]

                def wait_for(button: str, label: str | None = None) -> None:
                    state = client.next_message(
                        lambda m: button in m.get("buttons", {}) and label in (None, m["buttons"][button])
                    )
                    labels.append(state["buttons"][button])

                def press(button: str) -> None:
                    client.say({"kind": "event", "event": button})

                wait_for("finish", "Begin")
                press("finish")
                wait_for("take over", "Take over")
                press("take over")
                wait_for("take over", "Give back")
                for _ in range(12):
                    client.hand(True, linear=[0, 0, 1])
                    time.sleep(0.05)
                client.hand(False)
                press("take over")
                wait_for("take over", "Take over")
                press("success")

        bare = Rig(rig.robot, None, rig.config)
        with PolicyServer(Follow(rig.robot.features), port=0).background() as server:
            operator = threading.Thread(target=operate, daemon=True)
            operator.start()
            with recorder_for(bare, open_store(bare, tmp_path / "d", "x")) as recorder:
                result = deploy(bare, server.url, 1, 5, "x", 30.0, recorder, person=person, onlooker=onlooker)
            operator.join(20)
    assert labels == ["Begin", "Take over", "Give back", "Take over"]
    assert result["takeovers"] == 1
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    by_person = episode.flags(ACTION) == INTERVENTION
    tips = [person.chain.forward(q.astype(float)).position[2] for q in episode.read(ACTION)[by_person]]
    assert max(tips) - tips[0] > 0.01
    assert episode.attrs["success"] is True


@pytest.mark.realtime
def test_the_scripted_hand_takes_a_twin_over_without_a_jump(tmp_path: Path) -> None:
    """The whole path: the policy's server, the leader's and the follower's drivers, bytes on two ptys. The
    leader stands elsewhere than the follower; the hand lifts the cube that the policy never would."""
    typed, file = os.openpty()

    def operator() -> None:
        ask(info, "move", {"device": "leader", "joints": {"shoulder_pan": 0.4}})
        os.write(typed, b"t")

    try:
        with twin("so101", "--scene", "lift", "--leader") as info, Keys(file) as keys:
            rig = load_robot(info["toml"])
            policy = Calls(rig.robot.features, 10, operator)
            with (
                PolicyServer(policy, port=0).background() as server,
                agent_for("leader", info["toml"], rig) as person,
                rig,
                recorder_for(rig, open_store(rig, tmp_path / "d")) as recorder,
            ):
                assert isinstance(person, Person)
                os.write(typed, b"\n")
                result = deploy(rig, server.url, 1, 3, None, 25.0, recorder, keys=keys, person=person)
    finally:
        os.close(typed)
        os.close(file)
    assert result["takeovers"] == 1
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    flags, sent = episode.flags(ACTION), episode.read(ACTION)
    (change,) = np.flatnonzero(np.diff(flags & INTERVENTION))
    assert np.abs(sent[change + 1] - sent[change]).max() <= FIRST_STEP + 1e-6
    assert episode.attrs["success"] is True
