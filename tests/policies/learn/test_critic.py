"""Critics as checkpoints of their own kind, and candidates ranked by them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE
from torch import Tensor

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, FeatureMismatch
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import load_checkpoint, save_checkpoint
from ulna.policies.codec import RELATIVE
from ulna.policies.hashed import CheckpointError
from ulna.policies.hooks import best_of_n
from ulna.policies.hooks.all import hook_named, hooks_from_request
from ulna.policies.hooks.best_of_n import BestOfN
from ulna.policies.learn.critic import Critic, CriticSpec, load_critic, save_critic
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.train.record import TrainingRecord

SPEC = CriticSpec(chunk=4, width=16, depth=1, n_obs_steps=1)
RNG = np.random.default_rng(0)
STATS = {k: vector_stats(RNG.normal(size=(50, 3 if k != ENVIRONMENT else 2))) for k in FEATURES}
STATS[RELATIVE] = vector_stats(RNG.normal(size=(50, 4, 3)))


def policy(**changes: object) -> Policy:
    torch.manual_seed(0)
    small = {"backbone": "ResidualMLP", "backbone.width": 16, "backbone.depth": 1, "sampling_steps": 2}
    sizes = {"horizon": 8, "n_action_steps": 4, "codec": "Absolute"}
    return Policy(override(RECIPES["flow"](FEATURES), {**small, **sizes, **changes}), FEATURES, STATS).eval()


def critic(spec: CriticSpec = SPEC, **features: Feature) -> Critic:
    torch.manual_seed(1)
    critic = Critic(spec, {**FEATURES, **features}, STATS)
    for p in critic.parameters():
        torch.nn.init.normal_(p, std=0.3)  # it begins at zero everywhere
    return critic


def observation(batch: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    return {k: torch.randn(batch, 2, *FEATURES[k].shape, generator=g) for k in (STATE, ENVIRONMENT)}


@pytest.mark.parametrize("codec", ["Absolute", "Relative"])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, codec: str) -> None:
    saved = critic(replace(SPEC, codec=codec))  # type: ignore[arg-type]
    content_hash = save_critic(tmp_path / "critic", saved, TrainingRecord())
    loaded = load_critic(tmp_path / "critic")
    action = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(3))
    assert loaded.spec == saved.spec
    assert loaded.content_hash == content_hash == saved.content_hash
    assert torch.equal(loaded.q(observation(), action), saved.q(observation(), action))
    assert torch.equal(loaded.v(observation()), saved.v(observation()))
    assert loaded.q(observation(), action).shape == (2, 3)
    # the actions beyond the chunk are not judged, those within are
    assert torch.equal(loaded.score(observation(), action[:, :4]), loaded.score(observation(), action))
    assert not torch.equal(loaded.score(observation(), action.flip(1)), loaded.score(observation(), action))


def test_a_policy_is_no_critic_and_the_reverse(tmp_path: Path) -> None:
    save_critic(tmp_path / "critic", critic(), TrainingRecord())
    save_checkpoint(tmp_path / "policy", policy(), TrainingRecord())
    with pytest.raises(CheckpointError, match=r"critic holds a critic, and a policy is needed here$"):
        load_checkpoint(tmp_path / "critic")
    with pytest.raises(CheckpointError, match=r"policy holds a policy, and a critic is needed here$"):
        load_critic(tmp_path / "policy")
    save_critic(tmp_path / "policy/critic", critic(), TrainingRecord())
    with pytest.raises(CheckpointError, match=r"here; one lies in .*policy/critic$"):
        load_critic(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="no critic's folder"):
        load_critic(tmp_path / "nowhere")


def test_a_critic_that_was_changed_is_refused(tmp_path: Path) -> None:
    save_critic(tmp_path, critic(), TrainingRecord())
    values = json.loads((tmp_path / "critic.json").read_text())
    (tmp_path / "critic.json").write_text(json.dumps({**values, "discount": 0.5}))
    with pytest.raises(CheckpointError, match="not as it was saved"):
        load_critic(tmp_path)


def test_images_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=f"holds? none beside the images {CAMERA}"):
        Critic(SPEC, {k: f for k, f in WITH_IMAGE.items() if k in (CAMERA, ACTION)}, STATS)


class Toward(Critic):
    """The known best chunk is the one whose first action is nearest to the state now."""

    def score(self, observation: Mapping[str, Tensor], action_BHA: Tensor) -> Tensor:
        return -(action_BHA[:, 0] - observation[STATE][:, -1]).norm(dim=-1)


@pytest.mark.parametrize("past", [0, 2])
def test_the_best_of_the_candidates_is_the_known_best(monkeypatch: pytest.MonkeyPatch, past: int) -> None:
    toward = Toward(SPEC, FEATURES, STATS)
    monkeypatch.setattr(best_of_n, "load_critic", lambda folder, device: toward)
    best_of_n._loaded.cache_clear()
    p = policy(n_past_actions=past)
    request = Request(observation(), seed=[5, 6, 7])
    sampled = p.sample(request, [BestOfN("a critic", 8)])
    best_of_n._loaded.cache_clear()
    distance = (sampled.candidates[:, :, past] - request.observation[STATE][:, None, -1]).norm(dim=-1)
    assert sampled.candidates.shape == (3, 8, 8, 3)
    assert torch.equal(sampled.chunk, sampled.candidates[torch.arange(3), distance.argmin(1)])
    assert (distance.argmin(1) != 0).any(), "the base sampler's own were not all the best"
    torch.testing.assert_close(p.sample(request).chunk, sampled.candidates[:, 0])  # the base sampler's own
    assert sampled.nfe.tolist() == [16] * 3


def test_one_candidate_is_the_base_sampler(tmp_path: Path) -> None:
    save_critic(tmp_path, critic(), TrainingRecord())
    request, p = Request(observation(), seed=3), policy()
    assert torch.equal(p.sample(request, [BestOfN(str(tmp_path), 1)]).chunk, p.sample(request).chunk)


def test_the_draw_goes_from_the_best_to_any(tmp_path: Path) -> None:
    """At temperature inf every candidate is as likely; rows with seeds of their own are what they are
    alone."""
    save_critic(tmp_path, critic(), TrainingRecord())
    p, seen = policy(), {k: v[:1].expand(400, *v.shape[1:]) for k, v in observation().items()}
    request = Request(seen, seed=list(range(400)))
    shares = {}
    for temperature in (0.0, math.inf):
        sampled = p.sample(request, [BestOfN(str(tmp_path), 4, temperature)])
        each = sampled.candidates.flatten(0, 1)
        value = (
            load_critic(tmp_path)
            .score({k: v.repeat_interleave(4, 0) for k, v in seen.items()}, each)
            .reshape(400, 4)
        )
        best = sampled.candidates[torch.arange(400), value.argmax(1)]
        shares[temperature] = float((sampled.chunk == best).flatten(1).all(1).float().mean())
        alone = p.sample(
            Request({k: v[7:8] for k, v in seen.items()}, seed=[7]), [BestOfN(str(tmp_path), 4, temperature)]
        )
        torch.testing.assert_close(alone.chunk[0], sampled.chunk[7])
    assert shares[0.0] == 1.0
    assert 0.17 < shares[math.inf] < 0.33


def test_a_critic_of_another_robot_or_chunk_is_refused_with_both_sides(tmp_path: Path) -> None:
    hook, request = BestOfN(str(tmp_path), 2), Request(observation(), seed=0)
    other = Feature((3,), "float32", ("a", "b", "c"), ("rad", "rad", "rad"))
    save_critic(tmp_path, critic(replace(SPEC, codec="Absolute"), **{ACTION: other}), TrainingRecord())
    with pytest.raises(FeatureMismatch, match=r"action: the policy has .*grip.*; the critic has .*a, b, c"):
        policy().sample(request, [hook])
    save_critic(tmp_path, critic(), TrainingRecord())  # read again, for its content is another
    policy().sample(request, [hook])
    with pytest.raises(FeatureMismatch, match=r"policy's has 3 actions from now on, the critic judges 4"):
        policy(horizon=4, n_past_actions=1, n_action_steps=3).sample(request, [hook])
    save_critic(tmp_path, critic(replace(SPEC, n_obs_steps=3)), TrainingRecord())
    with pytest.raises(FeatureMismatch, match=r"policy has 2 observations, the critic needs 3"):
        policy().sample(request, [hook])


def test_best_of_n_by_name_and_not_by_a_strangers_request() -> None:
    assert hook_named("BestOfN", {"critic": "here", "candidates": "4"}) == BestOfN("here", 4)
    with pytest.raises(ValueError, match=r"name its folder with --BestOfN\.critic"):
        policy().sample(Request(observation(), seed=0), [BestOfN()])
    with pytest.raises(ValueError, match="names files"):
        hooks_from_request([{"part": "BestOfN", "critic": "/etc"}])
