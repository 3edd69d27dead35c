"""Directors above a policy, in the episode loop: they end an episode, have it begun again, instruct,
replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.agent import check_agent
from contracts.policy import Follow

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.flags import DIRECTED, INTERVENTION
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import DeviceError
from ulna.drivers.sample import Sample
from ulna.policies.encoders.vector import MLP, Encoder
from ulna.policies.learn.steps import learn_progress
from ulna.policies.learn.support import learn_support
from ulna.policies.progress import ProgressSpec
from ulna.policies.serving.client import PolicyServerError
from ulna.policies.serving.server import PolicyServer
from ulna.policies.serving.validations import read_validations
from ulna.robot.agent import PolicyAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.directors.all import DIRECTORS, directors_named
from ulna.robot.directors.backup import Backup
from ulna.robot.directors.directed import Directed
from ulna.robot.evaluate import evaluate, save_report
from ulna.robot.gate import NotValidated
from ulna.robot.loop import run_episode
from ulna.robot.people import LeaderAgent
from ulna.robot.takeover import Takeover


class Push(Follow):
    """A policy that turns the first joint on and on."""

    sign = 1

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = super().infer(request)
        ramp = np.zeros((8, 6), np.float32)
        ramp[:, 0] = self.sign * 0.03 * np.arange(1, 9)
        return {**reply, "actions": reply["actions"] + ramp}


class Log:
    def __init__(self) -> None:
        self.states, self.sent, self.flags = list[np.ndarray](), list[np.ndarray](), list[int]()

    def start(self, meta: Mapping[str, Any]) -> None:
        self.meta = meta

    def tick(self, values: Any, times_ns: Any, flags: Mapping[str, int]) -> None:
        self.states.append(values[STATE].astype(float))
        self.sent.append(values[ACTION].astype(float))
        self.flags.append(flags.get(ACTION, 0))

    def end(self, meta: Mapping[str, Any]) -> None: ...

    def interrupt(self, reason: str) -> None: ...


@pytest.fixture(scope="module")
def scene() -> Iterator[Rig]:
    with load_robot("sim:so101", "reach") as rig:
        yield rig


@pytest.fixture
def rig(scene: Rig) -> Rig:
    assert scene.sim is not None
    scene.sim.reset(0)
    return scene


def directed(rig: Rig, names: list[str], policy: Follow, said: list[str], **fields: str) -> Directed:
    agent = PolicyAgent(policy, rig.robot.features, rig.robot.control_hz)
    return Directed(
        agent, directors_named(names, {k.replace("_", "."): v for k, v in fields.items()}), rig, said.append
    )


def test_a_failed_attempt_goes_home_slowly_and_begins_again(rig: Rig) -> None:
    policy, said, log = Push(rig.robot.features), list[str](), Log()
    rig.robot.observe()
    begin = rig.robot.observe().values[STATE].astype(float)
    fields = {"Retry_attempts": "2", "Retry_seconds": "1"}
    with directed(rig, ["Retry"], policy, said, **fields) as agent:
        result = run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=200)
    assert result.success is False
    assert [s.split(":")[0] for s in said] == ["attempt 1 of 2 failed", "attempt 2 of 2 failed"]
    way = np.flatnonzero(log.flags)
    assert set(np.array(log.flags)[way]) == {DIRECTED}
    assert log.sent[way[-2]] == pytest.approx(begin, abs=0.02), "the last one is the tick of the end"
    steps = np.abs(np.diff(log.sent, axis=0)).max(1)
    assert steps[way[0] - 1 : way[-2]].max() < 1.7 / rig.robot.control_hz, "no faster than an arm goes home"
    assert result.ticks == 20 + (len(way) - 1) + 20 + 1
    seeds = [r.seed for r in policy.requests]
    assert len(set(seeds)) == len(seeds), "each attempt draws anew"
    assert log.meta["agent"] == "policy follow ffffffff directed by Retry"


def test_what_is_done_ends_the_episode_once_it_has_held(rig: Rig) -> None:
    done = iter([False] * 5 + [True] * 3 + [False] + [True] * 50)
    said: list[str] = []
    agent = directed(rig, ["Done"], Follow(rig.robot.features), said, Done_hold="0.5")
    with agent:
        agent.directors[0]._is_done = lambda observation: next(done)  # type: ignore[attr-defined]
        result = run_episode(rig.robot, agent, task="", seed=0, max_ticks=200)
    assert (result.ticks, result.success) == (5 + 3 + 1 + 11, True)


def test_steps_tell_the_policy_one_thing_after_another(rig: Rig) -> None:
    policy, said = Follow(rig.robot.features), list[str]()
    fields = {"Steps_tasks": "open the box; put the cube in", "Steps_seconds": "0.5"}
    with directed(rig, ["Steps"], policy, said, **fields) as agent:
        result = run_episode(rig.robot, agent, task="", seed=0, max_ticks=200)
    assert said[:2] == ["step 1 of 2: open the box", "step 2 of 2: put the cube in"]
    assert [r.task for r in policy.requests] == ["open the box"] * 3 + ["put the cube in"] * 3
    assert result.success is None
    assert result.ticks == 1 + 10 + 1 + 10 + 1


def test_words_that_change_while_it_runs_are_told(rig: Rig, tmp_path: Path) -> None:
    words, said = tmp_path / "words.txt", list[str]()
    words.write_text("of yesterday\n")
    ticks = {4: "push left\n", 8: "push left\npush left\n", 12: "push left\npush right\n\n"}

    class Listens(Log):
        def tick(self, values: Any, times_ns: Any, flags: Mapping[str, int]) -> None:
            super().tick(values, times_ns, flags)
            if (text := ticks.get(len(self.sent))) is not None:
                words.write_text(text)

    policy = Follow(rig.robot.features)
    with directed(rig, ["Spoken"], policy, said, Spoken_file=str(words)) as agent:
        run_episode(rig.robot, agent, [Listens()], task="wait", seed=0, max_ticks=20)
    assert said == ["told: push left", "told: push right"]
    assert list(dict.fromkeys(r.task for r in policy.requests)) == ["wait", "push left", "push right"]


@pytest.mark.parametrize("how", ["fails", "still", "after"])
def test_a_backup_takes_over_and_the_next_episode_begins_with_the_first(rig: Rig, how: str) -> None:
    class Dead(Follow):
        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            if how == "fails" and len(self.requests) == 2:
                raise ConnectionError("the server is gone")
            return super().infer(request)

    first, second, said = Dead(rig.robot.features), Follow(rig.robot.features), list[str]()
    with PolicyServer(second, port=0).background() as server:
        fields = {"Backup_server": server.url}
        fields |= {"still": {"Backup_still": "0.4"}, "after": {"Backup_after": "0.4"}}.get(how, {})
        with directed(rig, ["Backup"], first, said, **fields) as agent:
            run_episode(rig.robot, agent, task="", seed=0, max_ticks=20)
            assert [s.split(": ")[1] for s in said] == [
                {
                    "fails": "the server is gone",
                    "still": "the arm has stood still for 0.4 s",
                    "after": "not done after 0.4 s",
                }[how]
            ]
            assert len(first.requests) == 2
            assert len(second.requests) >= 2
            first.requests.clear()
            run_episode(rig.robot, agent, task="", seed=1, max_ticks=4)
            assert len(first.requests) == 1


def test_a_policy_that_fails_without_a_director_to_mend_it_fails_as_before(rig: Rig) -> None:
    policy = Follow(rig.robot.features)
    policy.die_after = 1
    with directed(rig, ["Retry"], policy, []) as agent, pytest.raises(RuntimeError, match="died"):
        run_episode(rig.robot, agent, task="", seed=0, max_ticks=20)


def test_a_person_stands_above_directors(rig: Rig) -> None:
    """Who has the arm is neither sent home nor stopped; the attempt's time begins anew when it is given
    back."""
    ((name, follower),) = rig.robot.arms.items()

    class Leader:
        joints = follower.joints

        def read(self) -> Sample:
            q = follower.read().data
            return Sample(q, 0, 0, 0, np.ones(len(q), bool))

    said, log = list[str](), Log()
    fields = {"Retry_seconds": "1", "Retry_attempts": "1"}
    with directed(rig, ["Retry"], Push(rig.robot.features), said, **fields) as below:
        agent = Takeover(below, LeaderAgent({name: Leader()}, rig.robot), 20.0)  # type: ignore[dict-item]
        turns: dict[int, Callable[[], None]] = {10: agent.toggle, 50: agent.toggle}
        ticks = iter(range(1, 1000))

        def stop() -> bool:
            turns.get(next(ticks), lambda: None)()
            return False

        result = run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=200, stop=stop)
    assert (np.array(log.flags) & INTERVENTION != 0).sum() == 40
    assert result.ticks == 10 + 40 + 20 + 1
    assert result.success is False


def test_directed_agents_are_evaluated_and_that_validates_no_policy(rig: Rig, tmp_path: Path) -> None:
    policy = Push(rig.robot.features)
    with directed(rig, ["Retry"], policy, [], Retry_seconds="0.3", Retry_attempts="2") as agent:
        report = evaluate(rig, agent, 2, videos=0)
        assert report.checkpoint == "f" * 64
        assert report.decisions == len(policy.requests)
        assert {o.ticks for o in report.outcomes} != {round(rig.sim.max_seconds * 20)}  # type: ignore[union-attr]
        check_agent(agent, rig.robot.observe(), 6)
    assert report.directors == [{"name": "Retry", "attempts": 2, "seconds": 0.3, "verifier": "scene"}]
    for name, each in (("alone", None), ("directed", report.directors)):
        save_report(tmp_path, name, replace(report, directors=each, agent="policy x"))
    save_report(tmp_path, "older", replace(report, directors=None))
    assert len(read_validations(tmp_path, "f" * 64)) == 1


def test_a_backup_passes_the_gate_and_no_other_takes_its_place(rig: Rig) -> None:
    policy = Push(rig.robot.features)
    with PolicyServer(policy, port=0).background() as server:
        (backup,) = directors_named(["Backup"], {"Backup.server": server.url})
        assert isinstance(backup, Backup)
        with pytest.raises(NotValidated, match="checkpoint ffffffff has no validation"):
            backup.admit({"name": "my"}, "my.toml")
        assert backup.admit({"name": "my"}, "my.toml", "a try")["unvalidated"] == "a try"
        policy.metadata = replace(policy.metadata, checkpoint="a" * 64)
        with pytest.raises(PolicyServerError, match="this run is of ffffffff"):
            backup.open(rig)


@pytest.mark.parametrize(
    ("names", "fields", "words"),
    [
        (["Retri"], {}, "did you mean Retry"),
        (["Retry"], {"Retry.attempts": "many"}, "attempts is 'many', it must be of type int"),
        (["Retry"], {"Retry.attempts": "0"}, "must lie in 1..100"),
        (["Retry"], {"Retry.times": "3"}, "did you mean"),
        (["Retry"], {"Done.hold": "3"}, "belongs to no director"),
        (["ulna.robot.loop:run_episode"], {}, "is no director"),
    ],
)
def test_directors_that_cannot_be_are_named(names: list[str], fields: dict[str, str], words: str) -> None:
    with pytest.raises((ValueError, DeviceError), match=words):
        directors_named(names, fields)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("Retry", {}, "no scene knows when sim:so101 is done"),
        ("Done", {"Done.verifier": "nowhere"}, "there is no verifier 'nowhere'"),
        ("Steps", {}, "needs instructions"),
        ("Steps", {"Steps.tasks": "a; b"}, "must know when a step is over"),
        ("Steps", {"Steps.tasks": "a; b", "Steps.verifiers": "x"}, "2 tasks and 1 verifiers"),
        ("Spoken", {}, "from a file: --Spoken.file words.txt"),
        ("Backup", {}, "needs another policy"),
        ("Supported", {}, "needs a guard"),
        ("Progress", {}, "needs a critic"),
    ],
)
def test_what_a_director_lacks_is_said_before_anything_moves(
    rig: Rig, name: str, fields: dict[str, str], words: str
) -> None:
    bare = Rig(rig.robot, None, rig.config)
    policy = PolicyAgent(Follow(rig.robot.features), rig.robot.features)
    agent = Directed(policy, directors_named([name], fields), bare)
    with pytest.raises((ValueError, DeviceError), match=words), agent:
        pass


def test_every_director_is_listed() -> None:
    assert list(DIRECTORS) == ["Retry", "Done", "Steps", "Spoken", "Backup", "Supported", "Progress"]


def test_what_the_data_never_did_ends_the_episode(rig: Rig, tmp_path: Path) -> None:
    """The same policy turns the first joint the way that its data did, and the other way."""
    features = {k: rig.robot.features[k] for k in (STATE, ACTION)}
    store, rng = EpisodeStore.create(tmp_path / "d", features, rig.robot.control_hz), np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for _ in range(6):
            log = Log()
            agent = PolicyAgent(Push(rig.robot.features), rig.robot.features, rig.robot.control_hz)
            assert rig.sim is not None
            rig.sim.reset(0)
            run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=30)
            writer.start({"agent": "test"})
            for t, (state, sent) in enumerate(zip(log.states, log.sent, strict=True)):
                values = {STATE: state, ACTION: sent}
                noisy = {k: (v + 0.002 * rng.normal(size=6)).astype(np.float32) for k, v in values.items()}
                writer.tick(noisy, {k: (t * 50_000_000, t * 50_000_000) for k in noisy})
            writer.end({"success": True})
    learn_support(tmp_path / "d", tmp_path / "guard")
    fields = {"Supported_guard": str(tmp_path / "guard"), "Supported_ticks": "5"}
    for sign, ended in ((1, False), (-1, True)):
        said: list[str] = []
        assert rig.sim is not None
        rig.sim.reset(0)
        policy = Push(rig.robot.features)
        policy.sign = sign
        with directed(rig, ["Supported"], policy, said, **fields) as agent:
            log = Log()
            run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=30)
        assert agent.ended == ended, said
        assert (len(log.sent) < 15) == ended


def turns(path: Path, rig: Rig) -> None:
    """Recordings of the first joint as it turns this way or that: two steps by its angle."""
    features = {k: rig.robot.features[k] for k in (STATE, ACTION)}
    store, rng = EpisodeStore.create(path, features, rig.robot.control_hz), np.random.default_rng(0)
    begin = rig.robot.observe().values[STATE]
    with EpisodeWriter(store) as writer:
        for i in range(12):
            joint = np.cumsum(rng.uniform(0.01, 0.04, 60)) * (1 if i % 4 else -1)
            writer.start({"task": "turn", "agent": "test"})
            for t, angle in enumerate(joint):
                q = begin + np.array([angle, *np.zeros(5)]) + 0.01 * rng.normal(size=6)
                q = q.astype(np.float32)
                writer.tick({STATE: q, ACTION: q}, dict.fromkeys(features, (t * 50_000_000, t * 50_000_000)))
            at = {w: (np.flatnonzero(joint > a)[:1] * 50_000_000).tolist() for w, a in TURNS.items()}
            writer.end({"steps": [{"words": words, "changes_ns": at[words]} for words in TURNS]})


TURNS = {"turn a little": 0.2, "turn far": 0.5}  # rad


def test_an_episode_is_directed_by_its_progress(rig: Rig, tmp_path: Path) -> None:
    """What turns is done once both steps are, twice in a row; what turns the other way stalls, begins again
    and fails."""
    turns(tmp_path / "d", rig)
    spec = ProgressSpec(Encoder(MLP(32, 1)), frames=2, clip_s=0.3, width=32, depth=1)
    learn_progress(tmp_path / "d", tmp_path / "p", spec, [STATE], steps=80, batch=8)
    fields = {"Progress_critic": str(tmp_path / "p"), "Progress_stall": "1.5", "Progress_attempts": "2"}
    for sign, success in ((1, True), (-1, False)):
        assert rig.sim is not None
        rig.sim.reset(0)
        policy, said = Push(rig.robot.features), list[str]()
        policy.sign = sign
        with directed(rig, ["Progress"], policy, said, **fields, Progress_instruct="true") as agent:
            result = run_episode(rig.robot, agent, task="turn", seed=0, max_ticks=300)
        assert result.success is success, said
        ends = [s for s in said if "attempt" in s or "2 of 2" in s]
        if success:
            assert ends[0].startswith("2 of 2 steps are done, by")
            assert list(dict.fromkeys(r.task for r in policy.requests)) == list(TURNS)
        else:
            assert [s.split(" stalls")[0] for s in ends] == ["attempt 1 of 2", "attempt 2 of 2"]
            assert {r.task for r in policy.requests} == {"turn a little"}
    with (
        directed(rig, ["Progress"], Push(rig.robot.features), [], **fields) as agent,
        pytest.raises(ValueError, match="knows no plan of 'dance'"),
    ):
        run_episode(rig.robot, agent, task="dance", seed=0, max_ticks=5)
