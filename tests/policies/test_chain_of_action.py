"""Chains of action: the words that a chunk is, that they are found again, and that the network minds them."""

from __future__ import annotations

import itertools

import pytest
import torch
from contracts.recipes import small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ulna.policies.backbones.backbone import Sizes
from ulna.policies.backbones.chain_of_action import ChainOfAction, ChainOfActionNet
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.contexts.context import Context, Shown
from ulna.policies.objectives.cvae import CVAE
from ulna.policies.objectives.regression import Regression
from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.sampler import sample
from ulna.policies.solvers.ddim import DDIM

SIZES = Sizes(action_dim=2, horizon=4, token_width=3, pooled_width=3)
OBJECTIVE = CVAE(Regression("l2"), latent=8, kl_weight=1.0)
INNER = ResidualMLP(32, 1, 8)


def net_of(part: ChainOfAction, sizes: Sizes = SIZES) -> ChainOfActionNet:
    torch.manual_seed(0)
    net = part.build(sizes, OBJECTIVE.needs)
    assert isinstance(net, ChainOfActionNet)
    return net


def seen(n: int) -> Context:
    return Context(torch.ones(n, 1, 3), torch.ones(n, 3))


def mostly_up(n: int = 60) -> Tensor:
    """Chunks that go up by 0.7 or down by 0.7 under one observation, two of three up: nobody stays."""
    ramp = torch.linspace(0, 0.7, 4)[:, None] * torch.tensor([1.0, 0.0])
    a = ramp.expand(n, 4, 2).clone()
    a[::3] *= -1
    return a


def learn(net: ChainOfActionNet, steps: int = 250) -> ChainOfActionNet:
    optimizer, a = torch.optim.Adam(net.parameters(), 1e-2), mostly_up()
    for _ in range(steps):
        optimizer.zero_grad()
        losses = OBJECTIVE.losses(net, a, seen(len(a)), OBJECTIVE.draw(a, 0.0, None))
        (losses.error.mean() + losses.extras["kl"]).backward()
        optimizer.step()
    return net.eval()


def act(net: ChainOfActionNet) -> Tensor:
    return sample(net, OBJECTIVE, DDIM(), seen(1), (1, 4, 2), 1, 0).chunk[0]


@pytest.mark.parametrize("moved", list(itertools.product((-1, 0, 1), repeat=2)))
def test_a_motion_is_what_falls_stays_and_rises(moved: tuple[int, int]) -> None:
    net = net_of(ChainOfAction(INNER, still=0.1))
    chunk = torch.tensor([[0.3, -0.2], [9.0, 9.0], [0.3, -0.2], [-9.0, -9.0]])
    chunk[2] += 0.2 * torch.tensor(moved)
    counts = torch.tensor([[True, True, True, False]])
    word = net.read("motion", Shown(chunk[None], counts, torch.zeros(1, 8)))
    assert word.tolist() == [3 * (moved[0] + 1) + moved[1] + 1]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.integers(2, 7), st.integers(0, 2))
def test_a_point_is_where_the_last_action_that_counts_lies(at: list[float], bins: int, past: int) -> None:
    sizes = Sizes(action_dim=2, horizon=4, token_width=3, pooled_width=3, n_past_actions=past)
    net = net_of(ChainOfAction(INNER, ("point",), bins=bins), sizes)
    chunk, counts = torch.full((1, 4, 2), 7.0), torch.ones(1, 4, dtype=torch.bool)
    chunk[0, 3] = torch.tensor(at)
    (word,) = net.read("point", Shown(chunk, counts, torch.zeros(1, 8))).tolist()
    lows = [d * 3 / bins - 1.5 for d in divmod(word, bins)]
    for x, low in zip(at, lows, strict=True):
        assert low - 1e-4 <= min(max(x, -1.5), 1.5) <= low + 3 / bins + 1e-4


def test_it_does_one_of_two_things_where_regression_does_neither() -> None:
    net = learn(net_of(ChainOfAction(INNER)))
    with torch.no_grad():
        told, nothing, word = net.told(seen(1))
        assert (word.tolist(), nothing) == ([[2 * 3 + 1]], None), "rises, stays: two of three did so"
        assert told.tokens.shape == (1, 2, 3)
        torch.testing.assert_close(act(net)[-1], torch.tensor([0.7, 0.0]), atol=0.05, rtol=0)
        shown = Shown(mostly_up(), torch.ones(60, 4, dtype=torch.bool), torch.zeros(60, 8))
        context = Context(torch.ones(60, 1, 3), torch.ones(60, 3), shown=shown)
        surprise = net.told(context)[1]
    assert surprise is not None
    entropy = -(2 / 3) * torch.tensor(2 / 3).log() - (1 / 3) * torch.tensor(1 / 3).log()
    torch.testing.assert_close(surprise, entropy, atol=0.02, rtol=0)


def test_it_minds_what_it_says() -> None:
    honest, mistaken = net_of(ChainOfAction(INNER)), net_of(ChainOfAction(INNER, shuffled=True))
    mistaken.load_state_dict(learn(honest).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(act(mistaken.eval())[-1], torch.tensor([-0.7, 0.0]), atol=0.05, rtol=0)


def test_later_words_are_told_those_before() -> None:
    net = net_of(ChainOfAction(INNER, ("point", "motion")))
    shown = [
        Shown(torch.full((1, 4, 2), x), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 8))
        for x in (-1.0, 1.0)
    ]
    contexts = [Context(torch.ones(1, 1, 3), torch.ones(1, 3), shown=s) for s in shown]
    (first, a, one), (second, b, two) = (net.told(c) for c in contexts)
    assert one[0, 0] != two[0, 0]
    assert one[0, 1] == two[0, 1], "nothing moves in either"
    assert a != b, "the same word, but not as likely after another"
    assert first.tokens.shape == second.tokens.shape == (1, 3, 3)
    assert first.pooled.shape == (1, 3 + 2 * 8)


def test_without_a_latent_it_is_the_network_inside_and_nonsense_is_refused() -> None:
    assert not isinstance(ChainOfAction(INNER).build(SIZES, Regression("l2").needs), ChainOfActionNet)
    for make in (
        lambda: ChainOfAction(thoughts=()),
        lambda: ChainOfAction(thoughts=("phrase",)),  # type: ignore[arg-type]
        lambda: ChainOfAction(bins=1),
        lambda: ChainOfAction(elements=0),
    ):
        with pytest.raises(ValueError, match="ChainOfAction's"):
            make()


def test_its_options_are_named_as_of_every_recipe() -> None:
    recipe: Recipe = override(small("openha"), {"backbone.thoughts": ("point", "motion")})
    assert isinstance(recipe.backbone, ChainOfAction)
    assert recipe.backbone.thoughts == ("point", "motion")
