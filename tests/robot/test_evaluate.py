"""How good a policy is: evaluated in a scene, deployed through a server, or asked about recorded episodes;
and the intervals."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from contracts.data import FEATURES, frame
from contracts.policy import Follow

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.serving.client import PolicyServerError
from ulna.policies.serving.server import PolicyServer
from ulna.robot.agent import ExpertAgent, HoldAgent, PolicyAgent
from ulna.robot.cli import main
from ulna.robot.config import Rig, load_robot
from ulna.robot.deploy import deploy
from ulna.robot.evaluate import evaluate, save_report
from ulna.robot.keys import Keys
from ulna.robot.openloop import open_loop
from ulna.robot.record import open_store, recorder_for
from ulna.robot.report.evaluation import ClosedLoop, OpenLoop
from ulna.robot.robot import Observation
from ulna.robot.statistics import bootstrap_mean, wilson


def test_evaluation_reports_films_and_changes_nothing_by_filming(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        film = tmp_path / "film"
        report = evaluate(rig, ExpertAgent(rig.sim), 3, seed=1000, video_dir=film, videos=2)
        plain = evaluate(rig, ExpertAgent(rig.sim), 3, seed=1000)
        nothing = evaluate(rig, HoldAgent(), 2, seed=1000)
    assert report.successes == 3
    assert [o.ticks for o in report.outcomes] == [o.ticks for o in plain.outcomes]
    assert nothing.successes == 0
    assert nothing.wilson_95[0] == 0.0
    assert [o.seed for o in report.outcomes] == [1000, 1001, 1002]
    assert [Path(v).name for v in report.videos] == ["seed-1000.mp4", "seed-1001.mp4"]
    container: Any = av.open(report.videos[0])
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert sum(1 for _ in container.decode(stream)) == report.outcomes[0].ticks
    container.close()
    assert [o.seed for o in report.filmed] == [t.seed for t in report.traces] == [1000, 1001]
    path = save_report(tmp_path / "checkpoint", "reach", report)
    assert json.loads(path.read_text()) == report.to_json()
    assert ClosedLoop.from_json(json.loads(path.read_text())) == report


class ExpertOnEvenSeeds(ExpertAgent):
    def reset(self, task: str, seed: int) -> None:
        super().reset(task, seed)
        self._still = seed % 2 == 1

    def act(self, observation: Observation) -> np.ndarray:
        action = super().act(observation)
        return observation.values[STATE].astype(np.float64) if self._still else action


def test_failures_are_filmed_first(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        report = evaluate(rig, ExpertOnEvenSeeds(rig.sim), 4, 1000, video_dir=tmp_path, videos=3)
    assert [o.success for o in report.outcomes] == [True, False, True, False]
    assert [Path(v).name for v in report.videos] == ["seed-1001.mp4", "seed-1003.mp4", "seed-1000.mp4"]
    assert report.filmed == [report.outcomes[i] for i in (1, 3, 0)]


class FailsOnce(Follow):
    """Its third decision raises, or gives no number."""

    def __init__(self, rig: Rig, how: str) -> None:
        super().__init__(rig.robot.features)
        self.how = how

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = super().infer(request)
        if len(self.requests) != 3:
            return reply
        if self.how == "raises":
            raise RuntimeError("it fell over")
        return {**reply, "actions": reply["actions"] * np.nan}


@pytest.mark.parametrize(("how", "words"), [("raises", "it fell over"), ("nan", "is not finite")])
def test_an_episode_that_the_policy_breaks_off_has_failed_and_the_next_one_begins(
    how: str, words: str
) -> None:
    with load_robot("sim:so101", "reach") as rig:
        agent = PolicyAgent(FailsOnce(rig, how), rig.robot.features)
        report = evaluate(rig, agent, 3, videos=0)
    broken, *others = report.outcomes
    assert (broken.success, broken.ticks) == (False, 8)
    assert words in (broken.reason or "")
    assert [o.reason for o in others] == [None, None]
    assert report.episodes == 3
    assert ClosedLoop.from_json(report.to_json()) == report
    assert "reason" not in report.to_json()["outcomes"][1]


def test_a_policy_that_fails_every_time_measures_nothing() -> None:
    with load_robot("sim:so101", "reach") as rig:
        for episodes in (2, 30):
            policy = Follow(rig.robot.features)
            policy.die_after = 0
            with pytest.raises(RuntimeError, match="died"):
                evaluate(rig, PolicyAgent(policy, rig.robot.features), episodes, videos=0)
            assert len(policy.requests) == min(episodes, 5)


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


def test_a_server_that_takes_too_long_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    gate = threading.Event()

    class Slow(Follow):
        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            gate.wait(20)
            return super().infer(request)

    with (
        load_robot("sim:so101", "reach") as rig,
        PolicyServer(Slow(rig.robot.features), port=0).background() as server,
    ):
        words = ["deploy", "--robot", "sim:so101", "--task", "reach", "--server", server.url]
        assert main([*words, "--timeout", "0"]) == 1
        assert main([*words, "--timeout", "0.3"]) == 1
        gate.set()
        err = capfd.readouterr().err
    assert "--timeout must lie in 0..3600 s, not 0" in err
    assert "did not answer within 0.3 s" in err
    assert "Traceback" not in err


def test_people_watch_over_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no scene judges: s and f say how it went, r has it done again, q quits; things are put back in
    between."""
    typed, file = os.openpty()
    pressed = iter([b"s", b"r", b"f", b"q"])

    class Watched(Follow):
        def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
            os.write(typed, next(pressed))
            return super().infer(request)

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
    result = open_loop(Follow(FEATURES), store.path, [1, 2], every=3)
    assert OpenLoop.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.n_ticks == 2 * 13
    # following the present state lags by 1, 2, … steps less one than holding the command before it
    expected = np.array([[0.1, 0.2, 0.0]]) * np.arange(8)[:, None]
    np.testing.assert_allclose(result.per_joint_and_step["policy"], expected, atol=1e-5)
    np.testing.assert_allclose(
        result.per_joint_and_step["hold"], expected + np.array([[0.1, 0.2, 0]]), atol=1e-5
    )
    np.testing.assert_allclose(result.per_joint_and_step["extrapolate"], 0, atol=1e-5)
    assert result.comparisons["hold"].better
    assert not result.comparisons["extrapolate"].better
    low, high = result.comparisons["hold"].bootstrap_95
    assert low <= result.comparisons["hold"].difference <= high < 0
    # the same by joint and by step: one step behind instead of two on the ramps, equal where nothing moves
    np.testing.assert_allclose(
        [[m, lo, hi] for m, lo, hi in result.per_joint_difference["hold"]],
        [[-0.1] * 3, [-0.2] * 3, [0.0] * 3],
        atol=1e-5,
    )
    for step, (lo, hi) in zip(result.per_step["hold"], result.per_step_95["hold"], strict=True):
        assert lo - 1e-6 <= step <= hi + 1e-6
    trace = result.trace
    assert trace.episode == 1
    assert np.shape(trace.recorded) == (40, 3)
    starts = [c.at for c in trace.chunks]
    assert starts[0] == 3
    assert (np.diff(starts) >= 8).all()
    for chunk in trace.chunks:  # it stays where it is, and does not go on beyond the episode's end
        assert len(chunk.actions) == min(8, 40 - chunk.at)
        np.testing.assert_allclose(chunk.actions, [trace.recorded[chunk.at]] * len(chunk.actions), atol=1e-4)


def test_episodes_that_are_too_short_for_a_chunk_are_refused(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "d", FEATURES, 10.0)
    writer = EpisodeWriter(store)
    rng = np.random.default_rng(0)
    writer.start({"task": ""})
    for t in range(6):
        values = frame(rng, FEATURES, t)
        writer.tick(values, dict.fromkeys(values, (t, t)))
    writer.end({})
    with pytest.raises(ValueError, match="none goes on for the 8 ticks that the policy predicts"):
        open_loop(Follow(FEATURES), store.path, [0], every=1)


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


def test_intervals_are_those_of_the_formulas() -> None:
    """What older reports hold was computed so; intervals of old and new reports may be compared."""
    for successes, trials in ((0, 1), (1, 2), (25, 30), (45, 50), (200, 200)):
        p, n, z = successes / trials, trials, 1.959963984540054
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-12)
    rng = np.random.default_rng(1)
    for count in (1, 2, 40):
        groups = [rng.normal(size=rng.integers(1, 9)).astype(np.float32) for _ in range(count)]
        sums, sizes = np.array([g.sum() for g in groups]), np.array([g.size for g in groups])
        picks = np.random.default_rng(0).integers(0, count, (2000, count))
        low, high = np.quantile(sums[picks].sum(1) / sizes[picks].sum(1), [0.025, 0.975])
        assert bootstrap_mean(groups) == pytest.approx((sums.sum() / sizes.sum(), low, high), abs=1e-6)
