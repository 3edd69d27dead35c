"""Attention by what is asked, and commands of a user."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.contexts.context import Conditions
from ulna.policies.contexts.focus import Focus
from ulna.policies.encoders.objects import Objects
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES


def test_what_fits_the_question_is_what_the_policy_is_told() -> None:
    net = Focus().build(4, 3, 1, 1, 1)
    z = torch.eye(4)[None, None, :3]  # three tokens, each of a kind of its own
    with torch.no_grad():
        for layer, scale in ((net.ask, 40.0), (net.answer, 1.0), (net.give, 1.0)):
            layer.weight.copy_(scale * torch.eye(4))  # type: ignore[union-attr, operator]
            layer.bias.zero_()  # type: ignore[union-attr, operator]
        for asked in range(3):
            question = torch.eye(4)[asked][None]
            told = Conditions(question[:, None], torch.ones(1, 1, dtype=torch.bool), question)
            context = net(z, told)
            torch.testing.assert_close(context.pooled, torch.cat([question, question, z[:, 0, 0]], dim=-1))
            assert context.pooled.shape[-1] == net.pooled_width
            assert context.tokens.shape[1] == net.tokens
            torch.testing.assert_close(net.shares(z, told).sum(-1), torch.ones(1, 1))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"--encoder Objects, FeatureMaps.* and a condition"):
        Focus().build(4, 1, 1, 1, 1)


def test_objects_are_read_alike_and_known_by_name() -> None:
    features: Features = {STATE: FEATURES[STATE], ENVIRONMENT: Feature((4,), "float32")}
    net = Objects(width=8).build(features)
    seen = {STATE: torch.zeros(1, 1, 3), ENVIRONMENT: torch.tensor([[[0.1, 0.2, 0.1, 0.2]]])}
    tokens = net(seen)
    assert tokens.shape == (1, 1, 3, 8)
    torch.testing.assert_close(
        tokens[0, 0, 1] - net.names[0], tokens[0, 0, 2] - net.names[1], atol=1e-6, rtol=0
    )
    with pytest.raises(ValueError, match=r"4 elements, which are not objects of 3: set --encoder\.size"):
        Objects(size=3).build(features)


def test_a_command_is_seen_by_film_alone() -> None:
    features: Features = {**FEATURES, "observation.command": Feature((1,), "float32")}
    recipe = override(RECIPES["user_conditioned"](features), {"backbone.width": 16, "backbone.depth": 1})
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in features.items()}
    policy = Policy(recipe, features, stats).eval()
    assert set(policy.encoded_keys) == {STATE, ENVIRONMENT}
    seen = {k: torch.zeros(1, recipe.n_obs_steps, *features[k].shape) for k in policy.observation_keys}
    faster = {**seen, "observation.command": torch.ones(1, recipe.n_obs_steps, 1)}
    own = policy.encode(seen).pooled.shape[-1] - policy.encoder.width * recipe.n_obs_steps  # type: ignore[operator]
    with torch.no_grad():
        slow, fast = policy.encode(seen).pooled, policy.encode(faster).pooled
    assert torch.equal(slow[:, own:], fast[:, own:])
    assert not torch.equal(slow[:, :own], fast[:, :own])
    assert small("user_conditioned").conditions == ()
