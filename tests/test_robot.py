"""The robot, its file, the loop, agents, recording, evaluation and deployment: simulated devices, real sockets."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from contracts.agent import check_agent

from ulna.datasets.features import (
    ACTION,
    ENVIRONMENT,
    IMAGES,
    STATE,
    FeatureMismatch,
    depth_scale_m,
    features_to_json,
)
from ulna.datasets.flags import INVALID
from ulna.datasets.store import EpisodeStore
from ulna.datasets.writer import EpisodeWriter
from ulna.drivers.arm import DeviceError
from ulna.drivers.camera import Intrinsics
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.sample import Sample
from ulna.policies.serving.client import PolicyServerError
from ulna.policies.serving.server import PolicyServer
from ulna.robot.agent import ExpertAgent, HoldAgent, PolicyAgent, make_agent
from ulna.robot.config import Rig, load_robot
from ulna.robot.deploy import deploy
from ulna.robot.evaluate import evaluate, save_report
from ulna.robot.keys import Keys
from ulna.robot.loop import run_episode
from ulna.robot.openloop import open_loop
from ulna.robot.record import open_store, record, recorder_for
from ulna.robot.robot import Observation, Robot
from ulna.robot.statistics import bootstrap_mean, wilson


class Follow:
    """A policy without a network: it holds the newest state, so its chunk is right for a robot that rests."""

    def __init__(self, features: Mapping[str, Any], n_obs_steps: int = 2) -> None:
        self.metadata: dict[str, Any] = {
            "recipe": "follow",
            "features": features_to_json(dict(features)),
            "n_obs_steps": n_obs_steps,
            "horizon": 8,
            "n_action_steps": 4,
            "decoder": "slice",
            "checkpoint": "f" * 64,
        }
        self.requests: list[tuple[dict[str, np.ndarray], int | None]] = []
        self.die_after = 10**9

    def infer(
        self, observation: Mapping[str, Any], seed: int | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.requests.append((dict(observation), seed))
        if len(self.requests) > self.die_after:
            raise RuntimeError("died")
        return np.repeat(observation[STATE][-1:], 8, 0), {"nfe": 1}


class Source:
    """A served policy asked without a server."""

    def __init__(self, policy: Follow) -> None:
        self.policy, self.metadata = policy, policy.metadata

    def infer(self, observation: Mapping[str, Any], seed: int | None = None) -> dict[str, Any]:
        actions, info = self.policy.infer(observation, seed)
        return {"actions": actions, **info}


@pytest.mark.parametrize("name", ["sim:so101", "sim:panda"])
def test_features_come_from_the_devices(name: str) -> None:
    with load_robot(name, "lift", ["front"]) as rig:
        robot = rig.robot
        observation = robot.observe("lift it")
        for key, feature in robot.observation_features.items():
            assert observation.values[key].shape == feature.shape
            assert observation.values[key].dtype == feature.dtype
            capture, receive = observation.times_ns[key]
            assert 0 <= capture <= receive <= robot.clock.now_ns()
        assert robot.features[ACTION] == robot.features[STATE]
        assert robot.features[STATE].names[-1] == "gripper"
        assert robot.features[ENVIRONMENT].names[0] == "cube.x"
        with pytest.raises(ValueError, match="joint gripper is not finite; nothing was sent"):
            robot.command(np.array([0.0] * (len(robot.features[ACTION].names) - 1) + [np.inf]))
        with pytest.raises(ValueError, match="has joints"):
            robot.command(np.zeros(3))


class Still:
    """A camera of one picture that never changes, with depth."""

    name, height, width, fps = "c", 24, 32, 30.0

    def __init__(self, distance: int = 0, scale_m: float = 0.001, valid: bool = True) -> None:
        self.sample = Sample(np.zeros((24, 32, 3), np.uint8), 1, 2, 0)
        self.depth = type("Depth", (), {"depth_scale_m": scale_m, "latest": lambda _: self.far})()
        self.far = Sample(np.full((24, 32), distance, np.uint16), 1, 2, 0, valid)
        self.intrinsics = Intrinsics(np.diag([30.0, 30.0, 1.0]), 32, 24)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def latest(self, max_age_s: float | None = None) -> Sample:
        return self.sample

    next = window = health = None


@pytest.mark.parametrize(("scale_m", "unit"), [(0.001, "mm"), (0.0001, "0.1 mm"), (0.002, "2 mm")])
def test_depth_is_recorded_as_it_came_with_its_scale(tmp_path: Path, scale_m: float, unit: str) -> None:
    camera: Any = Still(40_000, float(np.float32(scale_m)), valid=False)
    with load_robot("sim:so101", "reach") as rig:
        robot = Robot("r", rig.robot.arms, {"c": camera}, {}, rig.robot.clock, 20.0)
        robot.close()
        about = {"cameras": {"c": {"url": "http://me:se@cret@10.0.0.1/video?pwd=secret&channel=2"}}}
        with Rig(robot, None, about) as bare:
            record(bare, HoldAgent(), tmp_path / "d", 1, task="x", max_seconds=0.1)
    store = EpisodeStore.open(tmp_path / "d")
    key = "observation.depth.c"
    assert store.features[key].units == (unit,)
    assert depth_scale_m(unit) == pytest.approx(scale_m)
    (episode,) = store.episodes
    assert (episode.read(key) == 40_000).all()
    assert (episode.flags(key) & INVALID).all()
    lens = episode.attrs["cameras"]["c"]
    assert lens["depth_scale_m"] == pytest.approx(scale_m)
    assert lens["intrinsics"]["matrix"] == np.diag([30.0, 30.0, 1.0]).tolist()
    assert (lens["intrinsics"]["width"], lens["intrinsics"]["height"]) == (32, 24)
    # a dataset is passed on, a camera's password is not
    assert episode.attrs["robot_config"] == {
        "cameras": {"c": {"url": "http://***@10.0.0.1/video?pwd=***&channel=***"}}
    }


def test_two_arms_are_one_robot() -> None:
    with load_robot("sim:so101", "reach") as rig:
        arm = rig.robot.arms["arm"]
        both = Robot("two", {"left": arm, "right": arm}, {}, {}, rig.robot.clock, 20.0)
        assert both.features[ACTION].names[:2] == ("left.shoulder_pan", "left.shoulder_lift")
        assert both.features[ACTION].names[6] == "right.shoulder_pan"
        assert both.observe().values[STATE].shape == (12,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "name = 'x'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 20\ncolour = 1",
            "no field .*'colour': there is cameras",
        ),
        ("name = 'x'\ndriver = 'smi'\nmodel = 'so101'\ncontrol_hz = 20", "driver .*'smi'.*did you mean sim"),
        ("name = 'x'\ndriver = 'sim'\nmodel = 'so11'\ncontrol_hz = 20", "'so11': did you mean so101"),
        (
            "name = 'x'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 900",
            "control_hz is 900, it must lie in 1..240",
        ),
        ("name = 'x'\ndriver = 'sim'\nmodel = 'so101'", "lacks control_hz"),
        (
            "name = 3\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 20",
            "name is 3, which is of the wrong type",
        ),
        ("name = ", "is not TOML"),
    ],
)
def test_a_robot_file_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=says):
        load_robot(str(path))


def test_unknown_robots_and_cameras_have_neighbours() -> None:
    with pytest.raises(DeviceError, match="did you mean sim:so101"):
        load_robot("sim:so11")
    with pytest.raises(DeviceError, match="did you mean front"):
        load_robot("sim:so101", cameras=["frnt"])
    with pytest.raises(DeviceError, match="cannot read"):
        load_robot("nowhere.toml")


def test_a_robot_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'\ndriver = 'sim'\nmodel = 'so101'\ncontrol_hz = 40.0\n")
    with load_robot(str(path), "reach") as rig:
        assert (rig.robot.name, rig.robot.period_ns) == ("mine", 25_000_000)
        result = run_episode(rig.robot, HoldAgent(), task="", seed=0, max_ticks=8)
        assert result.ticks == 8
        assert rig.robot.clock.now_ns() == 200_000_000


class Log:
    def __init__(self, fail_at: int = 10**9) -> None:
        self.events: list[str] = []
        self.ticks: list[tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]] = []
        self.fail_at = fail_at

    def start(self, meta: Mapping[str, Any]) -> None:
        self.events.append("start")

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        if len(self.ticks) == self.fail_at:
            raise OSError("disk on fire")
        self.ticks.append((dict(values), dict(times_ns)))

    def end(self, meta: Mapping[str, Any]) -> None:
        self.events.append("end")

    def interrupt(self, reason: str) -> None:
        self.events.append("interrupt")


class Far:
    tag = "far"

    def reset(self, task: str, seed: int) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return observation.values[STATE] + 3.0


def test_what_was_sent_is_what_is_recorded() -> None:
    with load_robot("sim:so101", "reach") as rig:
        log = Log()
        before = rig.robot.observe().values[STATE]
        run_episode(rig.robot, Far(), [log], task="", seed=0, max_ticks=3)
        values, times = log.ticks[0]
        joints = rig.robot.arms["arm"].joints
        assert (values["action.requested"] - before > 2.9).all()
        assert (values[ACTION] - before <= joints.max_velocity * 0.05 + 1e-3).all(), "limited, and said so"
        assert [t[STATE][0] for _, t in log.ticks] == [0, 50_000_000, 100_000_000]
        assert log.events == ["start", "end"]
        assert times[ACTION][0] >= times[STATE][0]


def test_an_error_holds_the_arm_and_discards_the_episode() -> None:
    with load_robot("sim:so101", "reach") as rig:
        first, second = Log(), Log(fail_at=2)
        with pytest.raises(OSError, match="on fire"):
            run_episode(rig.robot, Far(), [first, second], task="", seed=0, max_ticks=9)
        assert first.events == second.events == ["start", "interrupt"]
        rig.robot.clock.sleep_until(rig.robot.clock.now_ns() + 400_000_000)
        rest = rig.robot.observe().values[STATE]
        rig.robot.clock.sleep_until(rig.robot.clock.now_ns() + 400_000_000)
        np.testing.assert_allclose(rig.robot.observe().values[STATE], rest, atol=2e-3)


def test_one_that_fails_to_clean_up_neither_hides_the_error_nor_leaves_the_others_untold() -> None:
    class Stuck(Log):
        def interrupt(self, reason: str) -> None:
            raise OSError("stuck too")

    with load_robot("sim:so101", "reach") as rig:
        stuck, last = Stuck(fail_at=2), Log()
        with pytest.raises(OSError, match="on fire") as caught:
            run_episode(rig.robot, HoldAgent(), [stuck, last], task="", seed=0, max_ticks=9)
        assert last.events == ["start", "interrupt"]
        assert caught.value.__notes__ == ["and then: stuck too"]


def test_every_arm_holds_though_one_cannot() -> None:
    held: list[str] = []
    with load_robot("sim:so101", "reach") as left, load_robot("sim:so101", "reach") as right:

        def broken() -> None:
            raise DeviceError("unplugged")

        for rig, hold in ((left, lambda: held.append("left")), (right, broken)):
            rig.robot.arms["arm"].hold = hold  # type: ignore[method-assign]
        for order in (("left", "right"), ("right", "left")):
            arms = {"left": left.robot.arms["arm"], "right": right.robot.arms["arm"]}
            both = Robot("two", {n: arms[n] for n in order}, {}, {}, left.robot.clock, 20.0)
            with pytest.raises(DeviceError, match="unplugged"):
                both.hold()
    assert held == ["left", "left"]


def test_the_loop_paces_on_a_real_clock() -> None:
    """Absolute deadlines: ten periods take ten periods, however long each tick's work."""
    with load_robot("sim:so101", "reach") as rig:
        robot = Robot("r", rig.robot.arms, {}, {}, MonotonicClock(), 50.0)
        began = time.monotonic()
        result = run_episode(robot, HoldAgent(), task="", seed=0, max_ticks=10)
        assert result.ticks == 10
        assert time.monotonic() - began >= 0.199


def test_agents_keep_their_contract() -> None:
    with load_robot("sim:so101", "lift") as rig:
        observation = rig.robot.observe("lift it")
        source = Source(Follow(rig.robot.features))
        for agent in (HoldAgent(), ExpertAgent(rig.sim, 0.004), PolicyAgent(source, rig.robot.features)):
            check_agent(agent, observation, 6)


def test_a_policy_agent_stacks_history_and_seeds_each_decision() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features, n_obs_steps=3)
        agent = PolicyAgent(Source(policy), rig.robot.features)
        for seed in (1, 1, 2):
            agent.reset("go", seed)
            for t in range(6):
                observation = rig.robot.observe()
                observation.values[STATE][:] = t
                agent.act(observation)
        seen = [r[0][STATE][:, 0].tolist() for r in policy.requests]
        assert seen == [[0, 0, 0], [2, 3, 4]] * 3
        seeds = [r[1] for r in policy.requests]
        assert seeds[:2] == seeds[2:4] != seeds[4:]
        assert len(set(seeds[:2])) == 2
        assert policy.requests[0][0]["task"] == "go"
        assert agent.nfe == [1] * 6


def test_a_policy_for_another_robot_is_refused_with_both_sides() -> None:
    with load_robot("sim:so101", "reach") as one, load_robot("sim:panda", "reach") as other:
        with pytest.raises(FeatureMismatch) as caught:
            PolicyAgent(Source(Follow(other.robot.features)), one.robot.features)
        assert "panda_joint1" in str(caught.value)
        assert "shoulder_pan" in str(caught.value)
        silent = Source(Follow(one.robot.features))
        silent.metadata = {}
        with pytest.raises(ValueError, match="is it an Ulna server"):
            PolicyAgent(silent, one.robot.features)


def test_larger_images_are_resized_and_smaller_ones_refused() -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        features = rig.robot.features
        small = {**features, IMAGES + "front": type(features[STATE])((48, 64, 3), "uint8")}
        policy = Follow(small)
        PolicyAgent(Source(policy), features).act(rig.robot.observe())
        assert policy.requests[0][0][IMAGES + "front"].shape == (2, 48, 64, 3)
        large = {**features, IMAGES + "front": type(features[STATE])((480, 640, 3), "uint8")}
        with pytest.raises(FeatureMismatch, match=r"480, 640"):
            PolicyAgent(Source(Follow(large)), features)


def test_recording_is_repeatable_continues_and_refuses_another_robot(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        agent = make_agent("expert", rig, 0.003)
        result = record(rig, agent, tmp_path / "a", 2)
        assert (result.episodes, result.successes) == (2, 2)
        record(rig, agent, tmp_path / "b", 1)
        record(rig, agent, tmp_path / "b", 1)  # goes on after seed 0
    one, two = EpisodeStore.open(tmp_path / "a"), EpisodeStore.open(tmp_path / "b")
    assert [e.attrs["seed"] for e in two.episodes] == [0, 1]
    for x, y in zip(one.episodes, two.episodes, strict=True):
        assert x.task == y.task
        for key in (STATE, ENVIRONMENT, ACTION, "action.requested"):
            np.testing.assert_array_equal(x.read(key), y.read(key))
    with load_robot("sim:panda", "reach") as rig, pytest.raises(FeatureMismatch, match="panda_joint1"):
        record(rig, make_agent("expert", rig), tmp_path / "a", 1)
    assert len(EpisodeStore.open(tmp_path / "a")) == 2


def test_failed_episodes_are_kept_and_marked_or_thrown_away(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        assert rig.sim is not None
        rig.sim.max_seconds = 0.3
        result = record(rig, make_agent("hold", rig), tmp_path / "a", 2)
        assert (result.episodes, result.successes) == (2, 0)
        with pytest.raises(RuntimeError, match="does not solve the task"):
            record(rig, make_agent("hold", rig), tmp_path / "b", 1, only_successes=True)
    assert [e.attrs["success"] for e in EpisodeStore.open(tmp_path / "a").episodes] == [False, False]
    assert len(EpisodeStore.open(tmp_path / "b")) == 0


def test_interrupting_a_recording_keeps_what_is_finished(tmp_path: Path) -> None:
    class Interrupted(ExpertAgent):
        episodes = 0

        def reset(self, task: str, seed: int) -> None:
            super().reset(task, seed)
            self.episodes += 1

        def act(self, observation: Observation) -> np.ndarray:
            if self.episodes == 3:
                raise KeyboardInterrupt
            return super().act(observation)

    with load_robot("sim:so101", "reach") as rig, pytest.raises(KeyboardInterrupt):
        record(rig, Interrupted(rig.sim), tmp_path / "a", 5)
    store = EpisodeStore.open(tmp_path / "a")
    assert len(store) == 2
    assert not store.interrupted()


def test_evaluation_reports_films_and_changes_nothing_by_filming(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        film = tmp_path / "film"
        report = evaluate(rig, ExpertAgent(rig.sim), 3, seed=1000, video_dir=film, videos=2)
        plain = evaluate(rig, ExpertAgent(rig.sim), 3, seed=1000)
        nothing = evaluate(rig, HoldAgent(), 2, seed=1000)
    json.dumps(report)
    assert report["successes"] == 3
    assert [o["ticks"] for o in report["outcomes"]] == [o["ticks"] for o in plain["outcomes"]]
    assert nothing["successes"] == 0
    assert nothing["wilson_95"][0] == 0.0
    assert [o["seed"] for o in report["outcomes"]] == [1000, 1001, 1002]
    assert [Path(v).name for v in report["videos"]] == ["seed-1000.mp4", "seed-1001.mp4"]
    container: Any = av.open(report["videos"][0])
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert sum(1 for _ in container.decode(stream)) == report["outcomes"][0]["ticks"]
    container.close()
    path = save_report(tmp_path / "checkpoint", "reach", report)
    assert json.loads(path.read_text()) == report


def test_deploying_through_a_server_and_its_death() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features)
        with PolicyServer(policy, port=0).background() as server:
            result = deploy(rig, server.url, 2, seed=5, max_seconds=0.5)
            assert [(e["seed"], e["ticks"], e["success"]) for e in result["episodes"]] == [
                (5, 10, False),
                (6, 10, False),
            ]
            assert result["checkpoint"] == "f" * 64
            json.dumps(result)
            policy.die_after = len(policy.requests) + 1
            with pytest.raises(PolicyServerError, match="the policy failed"):
                deploy(rig, server.url, 1, seed=7)
        with pytest.raises(PolicyServerError, match="ulna serve"):
            deploy(rig, server.url, 1)


def test_people_watch_over_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no scene judges: s and f say how it went, r has it done again, q quits; things are put back in between."""
    typed, file = os.openpty()
    pressed = iter([b"s", b"r", b"f", b"q"])

    class Watched(Follow):
        def infer(
            self, observation: Mapping[str, Any], seed: int | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            os.write(typed, next(pressed))
            return super().infer(observation, seed)

    class Prompts:
        def flush(self) -> None: ...

        def write(self, text: str) -> None:
            if "put everything" in text:
                prompts.append(os.write(typed, b"\n"))

    prompts: list[int] = []
    try:
        with (
            Keys(file) as keys,
            load_robot("sim:so101", "reach") as rig,
            PolicyServer(Watched(rig.robot.features), port=0).background() as server,
        ):
            monkeypatch.setattr(sys, "stderr", Prompts())
            bare = Rig(rig.robot, None, rig.config)
            with recorder_for(bare, open_store(bare, tmp_path / "d", "x")) as recorder:
                result = deploy(bare, server.url, 9, 5, "x", 2.0, recorder, keys=keys)
    finally:
        os.close(typed)
        os.close(file)
    assert [(e["seed"], e["success"]) for e in result["episodes"]] == [(5, True), (6, False)]
    assert len(prompts) == 3
    assert result["dropped"] == {}
    json.dumps(result)
    stored = EpisodeStore.open(tmp_path / "d").episodes
    assert [(e.attrs["seed"], e.attrs["success"], e.task) for e in stored] == [
        (5, True, "x"),
        (6, False, "x"),
    ]


def test_a_server_that_stops_mid_episode_stops_the_episode() -> None:
    with load_robot("sim:so101", "reach", realtime=True) as rig:
        policy = Follow(rig.robot.features)
        running = PolicyServer(policy, port=0).background()
        server = running.__enter__()
        stopper = threading.Timer(0.6, running.__exit__, (None, None, None))
        stopper.start()
        with pytest.raises(PolicyServerError, match="stopped or died"):
            deploy(rig, server.url, 1, max_seconds=30)
        stopper.join()
        assert len(policy.requests) >= 2


def test_open_loop_errors_are_those_of_the_recorded_commands(tmp_path: Path) -> None:
    from contracts.data import FEATURES, frame

    store = EpisodeStore.create(tmp_path / "d", FEATURES, 10.0)
    writer = EpisodeWriter(store)
    rng = np.random.default_rng(0)
    for _ in range(3):
        writer.start({"task": ""})
        for t in range(40):
            values = frame(rng, FEATURES, t)
            values[ACTION] = np.array([0.1 * t, 0.2 * t, 0.0], np.float32)  # a ramp
            values[STATE] = values[ACTION]
            writer.tick(values, dict.fromkeys(values, (t, t)))
        writer.end({})
    result = open_loop(Source(Follow(FEATURES)), store.path, [1, 2], every=3)
    json.dumps(result)
    assert result["frames"] == 2 * 13
    # following the present state lags by 1, 2, … steps less one than holding the command before it
    expected = np.array([[0.1, 0.2, 0.0]]) * np.arange(8)[:, None]
    np.testing.assert_allclose(result["per_joint_and_step"]["policy"], expected, atol=1e-5)
    np.testing.assert_allclose(
        result["per_joint_and_step"]["hold"], expected + np.array([[0.1, 0.2, 0]]), atol=1e-5
    )
    np.testing.assert_allclose(result["per_joint_and_step"]["extrapolate"], 0, atol=1e-5)
    assert result["comparisons"]["hold"]["better"]
    assert not result["comparisons"]["extrapolate"]["better"]
    low, high = result["comparisons"]["hold"]["bootstrap_95"]
    assert low <= result["comparisons"]["hold"]["difference"] <= high < 0
    # the same by joint and by step: one step behind instead of two on the ramps, equal where nothing moves
    np.testing.assert_allclose(
        [[m, lo, hi] for m, lo, hi in result["per_joint_difference"]["hold"]],
        [[-0.1] * 3, [-0.2] * 3, [0.0] * 3],
        atol=1e-5,
    )
    for step, (lo, hi) in zip(result["per_step"]["hold"], result["per_step_95"]["hold"], strict=True):
        assert lo - 1e-6 <= step <= hi + 1e-6
    trace = result["trace"]
    assert trace["episode"] == 1
    assert np.shape(trace["recorded"]) == (40, 3)
    starts = [c["at"] for c in trace["chunks"]]
    assert starts[0] == 3
    assert (np.diff(starts) >= 8).all()
    for chunk in trace["chunks"]:  # it stays where it is, and does not go on beyond the episode's end
        assert len(chunk["actions"]) == min(8, 40 - chunk["at"])
        np.testing.assert_allclose(
            chunk["actions"], [trace["recorded"][chunk["at"]]] * len(chunk["actions"]), atol=1e-4
        )


def test_intervals_have_their_known_values() -> None:
    # Wilson 1927 as tabulated: 45 of 50, and the edges
    assert wilson(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    groups = [rng.normal(1.0, 1.0, 5) for _ in range(200)]
    mean, low, high = bootstrap_mean(groups)
    assert mean == pytest.approx(np.concatenate(groups).mean())
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.2)
    same = [np.full(5, rng.normal()) for _ in range(200)]  # five copies are no five observations
    _, low, high = bootstrap_mean(same)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)


def test_a_rig_closes_what_it_opened() -> None:
    rig = load_robot("sim:so101", "reach", ["front"])
    with rig:
        rig.robot.observe()
    assert isinstance(rig, Rig)
    assert rig.sim is not None
    assert rig.sim.world.client < 0


@pytest.mark.parametrize("failure", [DeviceError("gone"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_whatever_fails_to_close_keeps_no_arm_and_no_camera_open(failure: BaseException) -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        closed: list[str] = []

        class Device:
            """Closes, and fails at it; what else is asked of it, the real one does."""

            def __init__(self, name: str, real: Any) -> None:
                self.name, self.real = name, real

            def __getattr__(self, what: str) -> Any:
                return getattr(self.real, what)

            def close(self) -> None:
                closed.append(self.name)
                raise failure

        real = rig.robot
        arm: Any = Device("arm", real.arms["arm"])
        camera: Any = Device("camera", real.cameras["front"])
        robot = Robot("r", {"arm": arm}, {"front": camera}, {}, real.clock, 20.0)
        with pytest.raises(type(failure)):
            robot.close()
        assert closed == ["arm", "camera"], "arms first"


def test_a_policy_is_told_what_was_sent_not_what_it_asked_for() -> None:
    class Jump(Follow):
        def infer(
            self, observation: Mapping[str, Any], seed: int | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            actions, info = super().infer(observation, seed)
            return actions + 3.0, info

    with load_robot("sim:so101", "reach") as rig:
        policy = Jump(rig.robot.features)
        policy.metadata |= {"n_past_actions": 2, "n_action_steps": 4}
        log = Log()
        agent = PolicyAgent(Source(policy), rig.robot.features)
        run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=8)
        first, second = policy.requests[0][0], policy.requests[1][0]
        assert "action.past" not in first
        np.testing.assert_array_equal(
            second["action.past"], [log.ticks[2][0][ACTION], log.ticks[3][0][ACTION]]
        )
        assert (log.ticks[3][0]["action.requested"] - second["action.past"][1] > 0.5).any()


def test_a_policy_of_another_rate_is_refused() -> None:
    with load_robot("sim:so101", "reach") as rig:
        policy = Follow(rig.robot.features)
        policy.metadata["control_hz"] = 5.0
        with pytest.raises(ValueError, match="5 Hz data and the robot runs at 20 Hz"):
            PolicyAgent(Source(policy), rig.robot.features, rig.robot.control_hz)
