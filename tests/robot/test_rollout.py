"""Many episodes at once are the episodes that run one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from contracts.policy import POINT, Drawn
from contracts.recipes import small
from contracts.vector_env import STATE, Go

from ulna.datasets.features import ACTION, ENVIRONMENT, REWARD, Feature, FeatureMismatch
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.datasets.uvd import Decompose
from ulna.policies.request import Request
from ulna.policies.serving.batch import Answers, BatchPolicy
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.train.loop import train
from ulna.robot.agent import PolicyAgent
from ulna.robot.config import load_robot
from ulna.robot.evaluate import evaluate, evaluate_at_once
from ulna.robot.robot import Observation
from ulna.robot.rollout import Rollout, env_features, rollout
from ulna.robot.study.demonstrations import record_demonstrations
from ulna.sim.planar.demonstrations import demonstrations
from ulna.sim.planar.fork import Fork
from ulna.sim.planar.maze import Maze
from ulna.sim.planar.stages import Stages
from ulna.sim.planar.words import Words
from ulna.sim.vector import vector_env


@pytest.mark.parametrize(
    ("decoder", "past", "counts"),
    [
        ("slice", 0, False),
        ("slice", 2, True),
        ("slice", 0, True),
        ("ensemble", 0, False),
        ("ensemble", 1, False),
    ],
)
def test_a_row_lives_the_episode_of_an_agent_of_its_own(decoder: str, past: int, counts: bool) -> None:
    policy, seeds = Drawn(POINT, decoder, past, counts), [7, 3, 11, 5, 2]
    many = rollout(policy, Go(3), seeds, traces=5)
    for seed, outcome, trace in zip(seeds, many.outcomes, many.traces, strict=True):
        env, agent = Go(1), PolicyAgent(Drawn(POINT, decoder, past, counts), POINT)
        observation, info = env.reset(seed=[seed])
        agent.reset(str(info["task"][0]), seed)
        over, sent, states = False, [], []
        while not over:
            states.append(observation[STATE][0])
            action = np.clip(agent.act(Observation({STATE: observation[STATE][0]}, {})), -1, 1)
            observation, _, terminated, truncated, info = env.step(action[None])
            agent.sent(action.astype(np.float32))
            sent.append(action)
            over = terminated[0] or truncated[0]
        assert (outcome.seed, outcome.ticks, outcome.success) == (seed, len(sent), bool(info["success"][0]))
        np.testing.assert_allclose(trace.action, sent, atol=1e-5)
        np.testing.assert_allclose(trace.state, states, atol=1e-5)


def test_rows_that_are_done_are_not_asked_and_the_next_seeds_take_their_place() -> None:
    policy, progress = Drawn(POINT), []
    result = rollout(policy, Go(4), range(10), progress=lambda *p: progress.append(p))
    assert [o.seed for o in result.outcomes] == list(range(10))
    assert result.decisions == sum(policy.asked)
    assert result.inferences == len(policy.asked)
    assert (max(policy.asked), result.nfe_per_decision) == (4, 3.0)
    assert result.decisions == sum(-(-o.ticks // 4) for o in result.outcomes), "a chunk every fourth tick"
    assert [p[0] for p in progress] == list(range(1, 11))
    assert progress[-1] == (10, result.successes, 10)
    assert {i["side"] for i in result.infos} == {-1, 1}
    assert result.infos[0]["task"] == "go to the origin"
    fewer = rollout(Drawn(POINT), Go(8), range(3))
    assert fewer.outcomes == result.outcomes[:3]
    assert isinstance(fewer, Rollout)
    low, high = fewer.wilson_95
    assert low <= fewer.success_rate <= high


class ToGoal(Drawn):
    """Goes straight to the goal that it is told."""

    def __init__(self, features: Mapping[str, Feature]) -> None:
        super().__init__(features)
        self.metadata = replace(self.metadata, conditions={f"goal.{STATE}": features[STATE]})

    def decide(self, requests: Sequence[Request]) -> Answers:
        goals = np.stack([r.observation[f"goal.{STATE}"] for r in requests])
        return Answers(np.repeat(goals[:, None], 6, axis=1), np.zeros(len(goals), int))


def test_a_policy_is_told_the_goal_that_the_environment_shows() -> None:
    policy = ToGoal(env_features(Maze(1)))
    # straight on leads to the goals that share a corridor with the start, and not round the U
    far = rollout(policy, Maze(6), range(500, 512))
    near = rollout(policy, Maze(6, goals="any"), range(500, 512))
    assert far.successes == 0 < near.successes
    with pytest.raises(ValueError, match=r"goal\.observation\.state \(2,\), which the environment does not"):
        rollout(ToGoal(env_features(Go(1))), Go(1), [1])
    with pytest.raises(ValueError, match=r"shows as \(8,\) in observation\.goal"):
        rollout(ToGoal(env_features(Words(1))), Words(2, goal=True), [1, 2])


def test_demonstrations_are_recorded_with_their_rewards(tmp_path: Path) -> None:
    env = Fork(1, dense=True)
    demos = demonstrations(partial(Fork, dense=True), range(3), 0.005)
    store = record_demonstrations(demos, tmp_path / "data", env_features(env), env.control_hz, "sim:fork")
    for demo, episode in zip(demos, store.episodes, strict=True):
        np.testing.assert_array_equal(episode.read(REWARD)[:, 0], demo.reward)
        assert episode.attrs["success"] is demo.success
    windows = Windows(store, WindowSpec(1, 4, keys=(STATE,), next_after=2), [0])
    batch = windows.batch(np.arange(2))
    np.testing.assert_allclose(batch["reward"], [demos[0].reward[0:2], demos[0].reward[1:3]])


def test_what_does_not_fit_is_refused() -> None:
    other = {k: replace(f, names=("u", "v")) for k, f in POINT.items()}
    with pytest.raises(FeatureMismatch, match="the environment"):
        rollout(Drawn(other), Go(2), [1])
    fast = Drawn(POINT)
    fast.metadata = replace(fast.metadata, control_hz=50.0)
    with pytest.raises(ValueError, match="50 Hz"):
        rollout(fast, Go(2), [1])
    with pytest.raises(ValueError, match="at least one"):
        rollout(Drawn(POINT), Go(2), [])
    with pytest.raises(ValueError, match="one at least"):
        vector_env("reach", num_envs=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_pybullet_episodes_are_those_of_the_robot(processes: int, tmp_path: Path) -> None:
    """Bit for bit, physics and limits and success and all: with rows that are used again, and in other
    processes."""
    with load_robot("sim:so101", "reach") as rig:
        policy = Drawn(rig.robot.features)
        agent = PolicyAgent(policy, rig.robot.features)
        alone = evaluate(rig, agent, 3, seed=1000, video_dir=tmp_path, videos=1)
    env = vector_env("reach", "so101", num_envs=2, processes=processes)
    try:
        many = rollout(Drawn(env_features(env)), env, range(1000, 1003), traces=3)
    finally:
        env.close()
    assert many.outcomes == alone.outcomes
    assert alone.traces[0] in many.traces


def test_a_failing_process_says_why() -> None:
    env = vector_env("reach", num_envs=2, processes=2)
    try:
        env.reset(seed=0)
        with pytest.raises(RuntimeError, match="not finite"):
            env.step(np.full((2, 6), np.nan))
    finally:
        env.close()


def test_a_checkpoint_draws_for_a_row_what_it_draws_alone(tmp_path: Path) -> None:
    with load_robot("sim:so101", "reach") as rig:
        features = rig.robot.features
        store = EpisodeStore.create(tmp_path / "data", features, 20.0, "sim:so101")
        rng = np.random.default_rng(0)
        with EpisodeWriter(store) as writer:
            writer.start({"task": "reach"})
            for t in range(20):
                values = {k: rng.normal(size=f.shape).astype(np.float32) for k, f in features.items()}
                writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
            writer.end({"success": True})
        train(small("flow", features), tmp_path / "data", tmp_path / "flow", track=())
        policy = LocalPolicy(tmp_path / "flow")
        vectors = {k: f for k, f in policy.metadata.features.items() if k != ACTION}
        requests = [
            Request({k: rng.normal(size=(2, *f.shape)).astype(np.float32) for k, f in vectors.items()}, seed)
            for seed in (5, 6, 7, 5)
        ]
        answers = BatchPolicy(policy).decide(requests)
        assert answers.nfe.tolist() == [policy.sampling_steps] * 4
        for request, chunk in zip(requests, answers.chunks, strict=True):
            np.testing.assert_allclose(chunk, policy.infer(request.to_wire())["actions"], atol=1e-5)

        lacks = Request({}, 1).to_wire()
        many = BatchPolicy(policy).infer_many([requests[0].to_wire(), lacks, requests[1].to_wire()])
        for request, reply in zip(requests[:2], (many[0], many[2]), strict=True):
            assert isinstance(reply, dict)
            alone = policy.infer(request.to_wire())
            np.testing.assert_allclose(reply["actions"], alone["actions"], atol=1e-5)
            assert {k: v for k, v in reply.items() if k != "actions"} == {
                k: v for k, v in alone.items() if k != "actions"
            }
        assert "lacks observation" in str(many[1])

        one = evaluate(rig, PolicyAgent(policy, features), 3)
        many = evaluate_at_once(rig, policy, 3, batch=2, video_dir=tmp_path / "film", videos=1)
        assert many.outcomes == one.outcomes
        assert (many.decisions, many.nfe_per_decision) == (one.decisions, one.nfe_per_decision)
        assert (many.batch, len(many.videos), len(many.traces)) == (2, 1, 1)
        assert set(one.to_json()) - {"latency_ms"} <= set(many.to_json())


class ToPlace(ToGoal):
    """Goes to the place next to the goal that it is told, and first to one close by that is not done."""

    def decide(self, requests: Sequence[Request]) -> Answers:
        chunks = []
        for observation in (r.observation for r in requests):
            places, done = np.split(observation[ENVIRONMENT][-1], [8])
            places = places.reshape(4, 2)
            close = (np.linalg.norm(places - observation[STATE][-1], axis=1) < 0.2) & (done == 0)
            goal = np.linalg.norm(places - observation[f"goal.{STATE}"], axis=1).argmin()
            chunks.append(np.repeat(places[None, close.argmax() if close.any() else goal], 6, axis=0))
        return Answers(np.stack(chunks), np.zeros(len(chunks), int))


def test_a_policy_of_subgoals_follows_the_demonstration_that_the_environment_shows() -> None:
    features = env_features(Stages(1))
    policy, visited = ToPlace(features), {}
    for rule in ("uvd", "end"):
        how = Decompose(rule, least=4)
        policy.metadata = replace(policy.metadata, features=features, n_action_steps=1, subgoals=how)
        infos = rollout(policy, Stages(8, shown=True), range(300, 308)).infos
        visited[rule] = [info["visited"] for info in infos]
    assert visited["end"] == [0] * 8, "straight to the end, past what comes first"
    assert visited["uvd"].count(3) == 5, "a place that lies ever nearer to the end is not found"
    assert Metadata.from_json(policy.metadata.to_json()) == policy.metadata
    PolicyAgent(policy, features, goal={f"demonstration.{STATE}": np.zeros((5, 2), np.float32)})
    with pytest.raises(ValueError, match=r"must be told goal\.observation\.state"):
        PolicyAgent(policy, features)
