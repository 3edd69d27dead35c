"""CAPS: decisions that are asked to be near each other, in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.caps import require_caps
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.train.data import open_data, tensors, window_spec
from ulna.policies.train.loop import train

TEMPORAL, SPATIAL = "training.caps_temporal", "training.caps_spatial"


def learning(
    path: Path, name: str, changes: dict[str, Any], features: Features = FEATURES
) -> tuple[Policy, dict[str, Any]]:
    """A policy of 33 recorded ticks, and a batch."""
    if not path.exists():
        write_store(path, features=features)
    recipe = override(small(name, features), changes)
    data = open_data(path)
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    torch.manual_seed(0)
    policy = Policy(recipe, data.features, stats)
    return policy, tensors(windows.train.batch(np.array([3, 8, 21])), "cpu")


def loss(policy: Policy, batch: dict[str, Any]) -> float:
    torch.manual_seed(1)
    return float(policy.loss(batch).detach())


def test_the_temporal_term_is_how_far_two_decisions_lie_apart(tmp_path: Path) -> None:
    plain, batch = learning(tmp_path / "d", "regression_mlp", {})
    asked, more = learning(tmp_path / "d", "regression_mlp", {TEMPORAL: 0.5})
    assert not [k for k in batch if k.startswith("next.")]
    with torch.no_grad():
        now = asked.sample(Request({k: more[k] for k in asked.observation_keys}, 0)).chunk
        later = asked.sample(Request({k: more[f"next.{k}"] for k in asked.observation_keys}, 0)).chunk
    apart = ((now - later) * asked.codec.affine.scale).square().mean()
    assert apart > 1e-6
    assert loss(asked, more) - loss(plain, batch) == pytest.approx(0.5 * float(apart), rel=1e-3)
    assert loss(asked.eval(), more) == loss(plain.eval(), batch), "what is held out is judged without it"


@pytest.mark.parametrize("name", ["flow", "mip", "rtc_flow", "act"])
def test_decisions_are_compared_under_the_same_noise(tmp_path: Path, name: str) -> None:
    """So that where nothing happened the term is nothing, whatever is drawn; and where something did, it is
    something."""
    policy, batch = learning(tmp_path / "d", name, {TEMPORAL: 1.0})
    for module in policy.modules():  # what a network draws by itself it draws anew
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    still = {**batch, **{f"next.{k}": batch[k] for k in policy.observation_keys}}
    moved, stood = loss(policy, batch), loss(policy, still)
    policy.recipe = override(policy.recipe, {TEMPORAL: 0.0})
    plain = loss(policy, batch)
    assert stood == pytest.approx(plain, rel=1e-5)
    assert moved > plain * (1 + 1e-6)


def test_the_spatial_term_shakes_vectors_by_their_scale(tmp_path: Path) -> None:
    policy, batch = learning(tmp_path / "d", "regression_mlp", {SPATIAL: 1.0})
    plain, _ = learning(tmp_path / "d", "regression_mlp", {})
    far = loss(policy, batch) - loss(plain, batch)
    policy.recipe = override(policy.recipe, {"training.caps_spread": 0.005})
    near = loss(policy, batch) - loss(plain, batch)
    assert far / near == pytest.approx(100, rel=0.2), "ten times as far, for a network that is smooth there"
    policy.loss(batch).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("ebt", {TEMPORAL: 1.0}, "EBT learns otherwise"),
        ("imc", {SPATIAL: 1.0}, "IMC learns otherwise"),
        ("pi05_ki_small", {SPATIAL: 1.0}, "KnowledgeInsulation learns otherwise"),
        ("beso", {SPATIAL: 1.0}, "told Goal"),
        ("regression_mlp", {SPATIAL: -1.0}, "not negative"),
        ("regression_mlp", {TEMPORAL: 1.0, "codec": "Delta", "n_past_actions": 1}, "Delta needs"),
        ("regression_mlp", {TEMPORAL: 1.0, "context": "Recurrent"}, "carries a memory"),
        ("regression_mlp", {TEMPORAL: 1.0, "training.cache_encodings": True}, "cache_encodings"),
    ],
)
def test_what_cannot_be_compared_is_refused(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_caps(override(small(name, FEATURES), changes), FEATURES)


def test_a_batch_without_what_comes_next_is_named(tmp_path: Path) -> None:
    policy, batch = learning(tmp_path / "d", "regression_mlp", {TEMPORAL: 1.0})
    with pytest.raises(ValueError, match=r"no next\.observation"):
        policy.loss({k: v for k, v in batch.items() if not k.startswith("next.")})


FOLLOWING: Features = {
    STATE: Feature((1,), "float32", ("q",), ("rad",)),
    ENVIRONMENT: Feature((1,), "float32", ("target",), ("rad",)),
    ACTION: Feature((1,), "float32", ("q",), ("rad",)),
}


def following(path: Path) -> None:
    """A joint that goes a third of its way to a target that jumps, in a trembling hand."""
    store, rng = EpisodeStore.create(path, FOLLOWING, 20.0), np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for _ in range(4):
            writer.start({"agent": "test"})
            q, target = rng.uniform(-1, 1), 0.0
            for t in range(40):
                target = rng.uniform(-1, 1) if t % 10 == 0 else target
                action = q + (target - q) / 3 + 0.15 * rng.normal()
                values = {STATE: [q], ENVIRONMENT: [target], ACTION: [action]}
                arrays = {k: np.array(v, np.float32) for k, v in values.items()}
                writer.tick(arrays, {k: (t * 50_000_000, t * 50_000_000) for k in values})
                q = action
            writer.end({"success": True})


def run(policy: Policy) -> tuple[float, float, float]:
    """(jerk rms in rad/tick³, ticks until 63 % of a jump of the target, error at the end in rad), means of 64
    joints that go where they are sent."""
    rng = np.random.default_rng(1)
    start, goal = rng.uniform(-0.8, 0.8, (2, 64, 1))
    q, way = start, []
    for t in range(60):
        seen = {STATE: q + 0.002 * rng.normal(size=q.shape), ENVIRONMENT: start if t < 20 else goal}
        observation = {k: torch.tensor(v[:, None], dtype=torch.float32) for k, v in seen.items()}
        with torch.no_grad():
            q = policy.sample(Request(observation, 0)).chunk[:, 0].numpy().astype(np.float64)
        way.append(q[:, 0])
    ways, jump = np.array(way), (goal - start)[:, 0]
    far = np.abs(jump) > 0.3
    risen = (((ways[20:] - ways[19]) / jump)[:, far] > 0.63).argmax(axis=0)
    jerk = np.sqrt(np.mean(np.diff(ways, n=3, axis=0) ** 2))
    return float(jerk), float(risen.mean()), float(np.abs(ways[-10:] - goal[:, 0]).mean())


@pytest.mark.slow
def test_a_policy_learned_so_trembles_less_and_reacts_no_later(tmp_path: Path) -> None:
    """The claim, on a synthetic task: less jerk, it arrives as well, and no more than one control period more
    of lag. What it takes is a network that learned its demonstrations' tremble."""
    following(tmp_path / "d")
    recipe: Recipe = override(
        RECIPES["regression_mlp"](FOLLOWING),
        {
            "backbone.width": 128,
            "n_obs_steps": 1,
            "horizon": 1,
            "n_action_steps": 1,
            "training.steps": 600,
            "training.batch_size": 64,
            "training.warmup": 20,
            "training.learning_rate": 3e-3,
        },
    )
    results = {}
    for name, changes in {"plain": {}, "caps": {SPATIAL: 1.0, "training.caps_spread": 0.1}}.items():
        made = train(override(recipe, changes), tmp_path / "d", tmp_path / name, track=())
        results[name] = run(load_checkpoint(made.checkpoint))
    plain, caps = results["plain"], results["caps"]
    assert caps[0] < 0.95 * plain[0], results
    assert caps[1] <= plain[1] + 1, results
    assert caps[2] < plain[2] + 0.01, results
