"""Retrieval: the nearest ticks of a store are read, those alone, and what they were told with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT, STATE
from ulna.datasets.stats import vector_stats
from ulna.policies.codec import RELATIVE
from ulna.policies.contexts.context import Conditions
from ulna.policies.contexts.retrieval import Retrieval
from ulna.policies.parts import override
from ulna.policies.policy import Policy

WIDTH, N = 8, 12


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_nearest_are_read_by_what_is_found_and_no_others() -> None:
    net: Any = Retrieval(nearest=3, heads=2).build(WIDTH, 1, 2, 1, 2 * N).eval()
    z = torch.randn(2, 2, 1, WIDTH)
    tokens = torch.randn(2, 2 * N, WIDTH, requires_grad=True)
    there = torch.ones(2, N, dtype=torch.bool)
    there[1, 2:] = False

    def read(tokens: torch.Tensor) -> torch.Tensor:
        context = net(z, Conditions(tokens, there.repeat_interleave(2, 1), torch.zeros(2, WIDTH)))
        assert context.tokens.shape[1:] == (net.tokens, net.token_width)
        assert context.pooled.shape[1] == net.pooled_width
        torch.testing.assert_close(context.pooled[:, -WIDTH:], context.tokens[:, 0])
        return context.pooled[:, -WIDTH:]

    first = read(tokens)
    first.sum().backward()
    assert tokens.grad is not None
    keys, values = tokens.grad[:, 0::2], tokens.grad[:, 1::2]
    assert not keys.any(), "how it is found is not learned"
    far = np.linalg.norm(tokens[:, 0::2].detach().numpy() - z[:, -1].numpy(), axis=-1)
    for row, count in ((0, 3), (1, 2)):
        near = set(np.argsort(np.where(there[row].numpy(), far[row], np.inf))[:count].tolist())
        assert set(values[row].any(-1).nonzero().flatten().tolist()) == near
    empty = net(z, Conditions(tokens, torch.zeros(2, 2 * N, dtype=torch.bool), torch.zeros(2, WIDTH)))
    torch.testing.assert_close(empty.pooled, net(z).pooled)  # nothing in the store is no store
    assert (empty.pooled[:, -WIDTH:] - first).abs().max() > 1e-3


def test_a_store_tells_ticks_with_the_commands_that_followed() -> None:
    """A tick that looks as it does now is found by what the encoder makes of it, and at a demonstration's end
    its last command stands for those that never came."""
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in FEATURES.items()}
    recipe = override(small("retrieval"), {"conditions.Store.episodes": 1, "conditions.Store.ahead": 2})
    p = Policy(recipe, FEATURES, stats).eval()
    shown = {f"prompt.{k}": torch.randn(1, 1, 5, *f.shape) for k, f in FEATURES.items()}
    shown["prompt.mask"] = torch.tensor([[[True] * 4 + [False]]])
    now = {k: shown[f"prompt.{k}"][:, 0, 1:3] for k in (STATE, ENVIRONMENT)}

    def tokens(prompt: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            given, mask = p.conditions[0](p._told(p._seen(now), {**now, **prompt}))
        assert mask.tolist() == [[True] * 8 + [False] * 2]
        return given[0].unflatten(0, (5, 2))

    told = tokens(shown)
    z = p.encodings(now).detach()
    torch.testing.assert_close(told[1:3, 0], z[0])
    context: Any = p.context_net
    mask = shown["prompt.mask"].flatten(1).repeat_interleave(2, 1)
    store = Conditions(told.flatten(0, 1)[None], mask, z[:, 0])
    assert context.near(z[:, -1], store)[0][0, 0] == 2, "itself, the newest observation's"
    for tick, changed in ((0, [0]), (3, [2, 3]), (1, [0, 1])):
        other = {**shown, "prompt.action": shown["prompt.action"].clone()}
        other["prompt.action"][0, 0, tick] += 1
        differs = (tokens(other)[:4, 1] - told[:4, 1]).abs().amax(1) > 1e-6
        assert differs.nonzero().flatten().tolist() == changed
        torch.testing.assert_close(tokens(other)[:, 0], told[:, 0])


def test_a_tick_is_found_by_the_command_before_it_where_the_policy_sees_that() -> None:
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(20, *f.shape))) for k, f in FEATURES.items()}
    stats[RELATIVE] = vector_stats(rng.normal(size=(20, 16, 3)))
    recipe = override(small("retrieval"), {"codec": "Delta", "n_past_actions": 1})
    p = Policy(recipe, FEATURES, stats).eval()
    shown = {f"prompt.{k}": torch.randn(1, 1, 5, *f.shape) for k, f in FEATURES.items()}
    shown["prompt.mask"] = torch.ones(1, 1, 5, dtype=torch.bool)
    now = {k: shown[f"prompt.{k}"][:, 0, 1:3] for k in (STATE, ENVIRONMENT)}
    now["action.past"] = shown["prompt.action"][:, 0, 1:2]
    with torch.no_grad():
        tokens, _ = p.conditions[0](p._told(p._seen(now), {**now, **shown}))
        torch.testing.assert_close(tokens[0, 2 * 2], p.encodings(now)[0, -1])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="reads one store"):
        Retrieval().build(WIDTH, 1, 1, 2, 4)
    with pytest.raises(ValueError, match="at least 1 tick, not 0"):
        Retrieval(nearest=0).build(WIDTH, 1, 1, 1, 4)
    stats = {k: vector_stats(np.ones((3, *f.shape))) for k, f in FEATURES.items()}
    recipe = override(small("retrieval"), {"conditions.Store.ahead": 0})
    with pytest.raises(ValueError, match="told with 1 command at least"):
        Policy(recipe, FEATURES, stats)
