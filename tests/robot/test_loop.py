"""Episodes on a robot: what is sent is what is recorded, what an error leaves, and which episodes are
kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.policy import Follow

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, FeatureMismatch, depth_scale_m
from ulna.datasets.flags import INVALID
from ulna.datasets.store import EpisodeStore
from ulna.drivers.camera import Intrinsics
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.sample import Sample
from ulna.robot.agent import ExpertAgent, HoldAgent, PolicyAgent, make_agent
from ulna.robot.config import Rig, load_robot
from ulna.robot.loop import run_episode
from ulna.robot.record import record
from ulna.robot.robot import Observation, Robot


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


def test_a_policy_is_told_what_was_sent_not_what_it_asked_for() -> None:
    class Jump(Follow):
        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            reply = super().infer(request)
            return {**reply, "actions": reply["actions"] + 3.0}

    with load_robot("sim:so101", "reach") as rig:
        policy = Jump(rig.robot.features)
        policy.metadata = replace(policy.metadata, horizon=10, n_past_actions=2, needs_past=True)
        log = Log()
        agent = PolicyAgent(policy, rig.robot.features)
        run_episode(rig.robot, agent, [log], task="", seed=0, max_ticks=8)
        first, second = policy.requests
        assert first.past is None
        np.testing.assert_array_equal(second.past, [log.ticks[2][0][ACTION], log.ticks[3][0][ACTION]])
        assert (log.ticks[3][0]["action.requested"] - second.past[1] > 0.5).any()


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


def test_the_loop_paces_on_a_real_clock() -> None:
    """Absolute deadlines: ten periods take ten periods, however long each tick's work."""
    with load_robot("sim:so101", "reach") as rig:
        robot = Robot("r", rig.robot.arms, {}, {}, MonotonicClock(), 50.0)
        began = time.monotonic()
        result = run_episode(robot, HoldAgent(), task="", seed=0, max_ticks=10)
        assert result.ticks == 10
        assert time.monotonic() - began >= 0.199


class StopsOnce(HoldAgent):
    """As if the program had been stopped for half a second in its fifth tick."""

    def act(self, observation: Observation) -> np.ndarray:
        self.ticks = getattr(self, "ticks", 0) + 1
        time.sleep(0.5 if self.ticks == 5 else 0)
        return super().act(observation)


def test_ticks_that_a_stall_missed_do_not_come_in_a_burst() -> None:
    with load_robot("sim:so101", "reach") as rig:
        robot = Robot("r", rig.robot.arms, {}, {}, MonotonicClock(), 50.0)
        began = time.monotonic()
        run_episode(robot, StopsOnce(), task="", seed=0, max_ticks=10)
        assert time.monotonic() - began >= 0.5 + 9 * 0.02 - 1e-3


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
        config = {"cameras": {"c": {"url": "http://me:se@cret@10.0.0.1/video?pwd=secret&channel=2"}}}
        with Rig(robot, None, config) as bare:
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


def test_a_recording_that_goes_on_says_what_is_not_as_it_was(tmp_path: Path) -> None:
    def again(rig: Rig, **options: Any) -> list[str]:
        says: list[str] = []
        record(rig, make_agent("expert", rig), tmp_path / "a", 1, say=says.append, **options)
        return says

    with load_robot("sim:so101", "reach") as rig:
        assert again(rig) == again(rig) == []
        joints = rig.robot.arms["arm"].joints
        joints.upper[-1] -= 0.25
        rig.config["note"] = "another table"
        (line,) = again(rig)
        assert "limits.gripper was -0.174533 to 1.74533, is -0.174533 to 1.49533" in line
        assert "robot_config.note was not there, is another table" in line
        with pytest.raises(ValueError, match="keeps raw images as they come, not codec jpeg"):
            again(rig, storage={"codec": "jpeg"})
        rig.robot.control_hz = 10.0
        with pytest.raises(ValueError, match="recorded at 20 Hz, the robot runs at 10"):
            again(rig)
    assert len(EpisodeStore.open(tmp_path / "a")) == 3


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
    assert not store.interrupted_folders()
