"""A small network whose weights another makes of what the policy is told (HyperZero)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import Feature, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.hyperzero import HyperZero, HyperZeroNet
from ulna.policies.backbones.small_mlp import GeneratedLayer, SmallMLP
from ulna.policies.conditions.task import Task
from ulna.policies.contexts.context import Context
from ulna.policies.policy import Policy

COMMAND = "observation.command"
SIZES = Sizes(2, 3, token_width=4, pooled_width=12, steps=2, conditions=1)  # told 4, observed 8


def test_each_row_is_what_the_small_network_with_its_weights_gives() -> None:
    torch.manual_seed(0)
    net = HyperZeroNet(HyperZero((7, 5), embedding=6, blocks=1), SIZES, told=4)
    x, s, t, pooled = torch.randn(3, 3, 2), torch.rand(3), torch.rand(3), torch.randn(3, 12)
    out = net(x, s, t, Context(pooled[:, None], pooled))
    alone = SmallMLP((7, 5)).build(dataclasses.replace(SIZES, pooled_width=8), Head())
    for i in range(3):
        row, seen = slice(i, i + 1), pooled[i : i + 1, 4:]
        named = {"enter.weight": net.enter.weight}
        for n, layer in enumerate(net.layers):
            weight, bias = layer(net.embed(pooled[row, :4]))
            named |= {f"layers.{n}.weight": weight[0], f"layers.{n}.bias": bias[0]}
        alone.load_state_dict(named)
        torch.testing.assert_close(out[row], alone(x[row], s[row], t[row], Context(seen[:, None], seen)))
    out[0].sum().backward()
    assert next(net.embed.parameters()).grad is not None
    with pytest.raises(ValueError, match=r"is told nothing.*--conditions Label --conditions\.Label\.key"):
        HyperZero().build(dataclasses.replace(SIZES, pooled_width=8, conditions=0), Head())
    with pytest.raises(ValueError, match="not through the context Stack"):  # a memory as wide as a token
        HyperZero().build(dataclasses.replace(SIZES, pooled_width=16), Head())


def test_weights_begin_as_large_as_an_ordinary_layers() -> None:
    torch.manual_seed(0)
    z = torch.nn.functional.layer_norm(torch.randn(50, 16), (16,))
    with torch.no_grad():
        weight, bias = GeneratedLayer(16, 30, 20)(z)
        ordinary = torch.nn.Linear(30, 20).weight.clone()
    assert float(weight.std() / ordinary.std()) == pytest.approx(1.0, abs=0.05)
    assert not bias.any()
    shared = weight.mean(0).var() / weight.var()
    assert float(shared) == pytest.approx(0.5, abs=0.1), "half of it is the same for all"


def test_a_command_makes_the_weights_and_is_seen_nowhere_else() -> None:
    features: Features = {**FEATURES, COMMAND: Feature((1,), "float32")}
    recipe = small("hyperzero", features)
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in features.items()}
    policy = Policy(recipe, features, stats).eval()
    assert COMMAND not in policy.encoded_keys
    seen = {k: torch.zeros(1, recipe.n_obs_steps, *features[k].shape) for k in policy.observation_keys}
    with torch.no_grad():
        slow, fast = (
            policy.encode({**seen, COMMAND: torch.full((1, recipe.n_obs_steps, 1), v)}) for v in (0.0, 1.0)
        )
    assert isinstance(policy.net, HyperZeroNet)
    told = policy.net.told
    assert torch.equal(slow.pooled[:, told:], fast.pooled[:, told:])
    assert not torch.equal(policy.net.embed(slow.pooled[:, :told]), policy.net.embed(fast.pooled[:, :told]))
    assert isinstance(small("hyperzero").conditions[0], Task), "without a command the task, by its number"
