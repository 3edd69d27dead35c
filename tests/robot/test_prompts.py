"""Demonstrations of a dataset that a policy is shown when it acts, and what it makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.features import ACTION, STATE, Feature, FeatureMismatch, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.parts import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.loop import train
from ulna.robot.agent import PolicyAgent
from ulna.robot.prompts import Prompts, prompts_for
from ulna.robot.robot import Observation

POINT = Feature((1,), "float32", ("x",), ("rad",))
FEATURES: Features = {STATE: POINT, ACTION: POINT}
STEP = {"up": 0.1, "down": -0.1, "far up": 0.2}
TICKS = 4


def record(
    folder: Path, tasks: list[str], features: Features = FEATURES, hz: float = 20.0, success: bool = True
) -> Path:
    writer = EpisodeWriter(EpisodeStore.create(folder, features, hz, "toy"))
    for i, task in enumerate(tasks):
        writer.start({"task": task, "seed": i, "agent": "test"})
        x = np.random.default_rng(i).uniform(-0.5, 0.5, 1).astype(np.float32)
        for t in range(TICKS):
            goes = np.float32(x + STEP[task])
            values = {STATE: x, ACTION: goes}
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
            x = goes
        writer.end({"success": success})
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    folder = tmp_path_factory.mktemp("icrt")
    sizes = {
        "encoder.width": 16, "encoder.state.width": 16, "backbone.width": 32, "context.width": 16,
        "context.depth": 2, "context.heads": 2, "context.ffn": 32, "context.chain": TICKS,
        "conditions.Demonstrations.length": TICKS, "horizon": 3,
        "training.steps": 150, "training.batch_size": 16, "training.learning_rate": 5e-3,
        "training.warmup": 5, "training.ema_max": 0.9, "training.checkpoint_every": 1000,
    }  # fmt: skip
    recipe = override(RECIPES["icrt"](FEATURES), sizes)
    train(recipe, record(folder / "data", ["up", "down"] * 6), folder / "icrt", device="cpu")
    return LocalPolicy(folder / "icrt")


def moves(policy: PolicyAgent, task: str, seed: int = 0) -> float:
    """How far it goes in an episode, from where nothing tells which way."""
    policy.reset(task, seed)
    x = np.zeros(1, np.float32)
    for _ in range(TICKS):
        x = policy.act(Observation({STATE: x}, {})).astype(np.float32)
        policy.sent(x)
    return float(x[0])


def test_a_policy_does_what_it_is_shown_through_a_server(shown: LocalPolicy, tmp_path: Path) -> None:
    """The scene tells nothing: by the demonstrations alone it goes up or down, and also where they are not
    those that the words are about."""
    data = record(tmp_path / "d", ["down", "up", "down"])
    with (
        PolicyServer(BatchPolicy(shown), port=0).background() as server,
        PolicyClient(server.url) as client,
    ):
        assert client.metadata.conditions[f"prompt.{STATE}"].shape == (2, TICKS, 1)
        agent = PolicyAgent(client, FEATURES, 20.0, prompts=Prompts(data, client.metadata))
        up, down = moves(agent, "up"), moves(agent, "down")
        assert up > 0.15
        assert down < -0.15
        first, others = (
            PolicyAgent(client, FEATURES, 20.0, prompts=Prompts(data, client.metadata, episodes))
            for episodes in ([1], [2, 0])
        )
        assert agent.shown == f"up to 2 of the task's episodes in {data}"
        assert others.shown == f"episodes 2, 0 of {data}"
        assert moves(first, "down") == pytest.approx(up, abs=1e-5), "what it is shown counts"
        both = moves(others, "up")
        assert both < -0.15
        with pytest.raises(ValueError, match="no demonstration of the task 'far up': record one, or name"):
            moves(agent, "far up")
        with pytest.raises(
            ValueError, match=r"is shown demonstrations .*: name a dataset .*\(--prompt FOLDER"
        ):
            PolicyAgent(client, FEATURES, 20.0)
    told = LocalPolicy(shown._folder)
    told.show(Prompts(data, told.metadata, [2, 0]).of("", 0))
    assert not told.metadata.conditions
    assert moves(PolicyAgent(told, FEATURES, 20.0), "") == pytest.approx(both, abs=1e-5), (
        "the server shows it"
    )


def test_prompts_are_whole_and_of_the_task_and_as_many_as_are_asked_for(
    shown: LocalPolicy, tmp_path: Path
) -> None:
    data = record(tmp_path / "d", ["down", "up", "down", "down"])
    prompts = Prompts(data, shown.metadata)
    seen = [prompts.of("down", seed)["prompt.action"][:, :, 0] for seed in range(8)]
    assert all((np.diff(s) < 0).all() for s in seen), "both are of the task"
    assert len({s.tobytes() for s in seen}) > 1, "which of them is drawn"
    np.testing.assert_array_equal(prompts.of("down", 3)["prompt.action"][:, :, 0], seen[3])
    one = prompts.of("up", 0)
    assert one["prompt.mask"].tolist() == [[True] * TICKS, [False] * TICKS]
    np.testing.assert_allclose(
        one["prompt.action"] - one[f"prompt.{STATE}"], [[[0.1]] * TICKS, [[0]] * TICKS]
    )
    assert not Prompts(data, shown.metadata, most=0).of("nothing at all", 0)["prompt.mask"].any()
    record(tmp_path / "failed", ["down"], success=False)
    with pytest.raises(ValueError, match="no demonstration of the task 'down'"):
        Prompts(tmp_path / "failed", shown.metadata).of("down", 0)


def test_what_cannot_be_shown_is_refused(shown: LocalPolicy, tmp_path: Path) -> None:
    data = record(tmp_path / "d", ["down"] * 3)
    with pytest.raises(ValueError, match=r"3 episodes are to be shown, and the policy reads up to 2"):
        Prompts(data, shown.metadata, [0, 1, 2])
    with pytest.raises(ValueError, match=r"trained on 20 Hz data and .* is of 10 Hz"):
        Prompts(record(tmp_path / "slow", ["up"], hz=10.0), shown.metadata)
    metres = Feature((1,), "float32", ("x",), ("m",))
    with pytest.raises(FeatureMismatch, match="the policy has float32"):
        Prompts(record(tmp_path / "m", ["up"], {STATE: metres, ACTION: metres}), shown.metadata)
    with pytest.raises(ValueError, match="is shown no demonstrations: leave out --prompt"):
        prompts_for(Metadata(features=FEATURES), data)
    assert prompts_for(Metadata(features=FEATURES), "") is None
    with pytest.raises(ValueError, match="name a dataset that has some"):
        prompts_for(shown.metadata, "")
