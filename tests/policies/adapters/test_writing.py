"""A language model that goes on from what it read: words that are actions (OpenVLA), and a whole chunk in one
pass (OpenVLA-OFT)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from contracts.recipes import small
from contracts.vla import FEATURES, STATS, WRITERS, noise_for, observation, policy
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ulna.datasets.features import ACTION
from ulna.policies.backbones.action_tokens import Written, bins_of, middles
from ulna.policies.backbones.parallel_decoding import ParallelDecodingNet
from ulna.policies.contexts.context import Context
from ulna.policies.field import Field
from ulna.policies.hooks.hook import Hook
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request

TASKS = ["lift", "put the red cube into the left bowl, then wait"]


def written(asked: Policy, rows: int = 2) -> Written:
    context = asked.context(Request(observation(rows), 0, task=TASKS[:rows]))
    zero = torch.zeros(rows)
    return asked.net(torch.zeros_like(noise_for(asked, rows)), zero, zero, context)


@given(st.floats(-1.5, 1.5, width=32), st.integers(2, 1024))
def test_a_number_comes_back_to_within_half_a_bin(x: float, bins: int) -> None:
    back = float(middles(bins_of(torch.tensor([x]), bins), bins)[0])
    assert abs(back - min(max(x, -1.0), 1.0)) <= 1 / bins + 1e-6


def test_bins_are_the_last_words_and_come_back() -> None:
    every = torch.arange(256)
    assert torch.equal(bins_of(middles(every, 256), 256), every)
    assert bins_of(torch.tensor([-9.0, -1.0, 1.0, 9.0]), 256).tolist() == [0, 0, 255, 255]
    of = written(policy("openvla_small"))
    vocabulary = of.language.part.vocabulary
    assert sorted(of.ids(every).tolist()) == list(range(vocabulary - 256, vocabulary))


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_with_a_cache_is_what_is_written_without(name: str) -> None:
    of, heard = written(policy(name)), []

    def choose(logits: Tensor, n: int) -> Tensor:
        heard.append(logits)
        return (torch.arange(len(logits)) * 111 + n * 37) % 256  # whatever is likely

    with torch.no_grad():
        bins = bins_of(of.write(choose)[0], 256)
        at_once = of.logits(bins)[..., -256:].flip(-1).flatten(1, 2)
    assert bins.flatten(1)[1, :3].tolist() == [111, 148, 185]
    torch.testing.assert_close(torch.stack(heard, dim=1), at_once, atol=1e-5, rtol=1e-5)


def test_a_prefix_and_what_follows_are_one_causal_pass() -> None:
    """The same words after no prefix at all, the prefix's tokens first: nothing was read otherwise."""
    asked = policy("openvla_small")
    tokens: list[Tensor] = []
    asked.encoder.language.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))  # type: ignore[union-attr]
    of = written(asked, rows=1)
    bins = torch.randint(0, 256, (1, *of.net.shape))
    language, ids = of.language, of.ids(bins.flatten(1)[:, :-1])
    words = language.embed(torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1))
    none = [(torch.zeros(1, 1, 0, 16), torch.zeros(1, 1, 0, 16)) for _ in language.layers]
    empty = torch.ones(1, 0, dtype=torch.bool)
    with torch.no_grad():
        whole, _ = language.further(torch.cat([tokens[0], words], dim=1), none, empty, causal=True)
        expected = language.logits(whole[:, tokens[0].shape[1] :]).unflatten(1, of.net.shape)
        torch.testing.assert_close(of.logits(bins), expected, atol=1e-5, rtol=1e-5)


def test_a_word_is_told_those_before_it_only() -> None:
    of = written(policy("openvla_small"))
    bins = torch.randint(0, 256, (2, *of.net.shape))
    other = bins.clone()
    other[:, 2, 1] = (other[:, 2, 1] + 100) % 256
    with torch.no_grad():
        differ = (of.logits(bins) - of.logits(other)).abs().amax((0, -1)).flatten() > 1e-6
    assert differ.tolist() == [i > 7 for i in range(12)]


def test_the_loss_is_the_cross_entropy_of_all_words() -> None:
    asked = policy("openvla_small")
    actions = asked.codec.decode(torch.rand(2, 4, 3) * 2 - 1, {})
    batch = {**observation(2), "task": TASKS, ACTION: actions, "mask": torch.ones(2, 4, dtype=torch.bool)}
    loss = asked.loss(batch)
    of = written(asked)
    bins = bins_of(asked.codec.encode(actions, {}), 256)
    shares = of.logits(bins).log_softmax(-1)
    expected = -shares.gather(-1, (511 - bins)[..., None]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in asked.encoder.parameters())


def test_a_seed_says_which_words_are_drawn_and_greed_asks_none() -> None:
    greedy = policy("openvla_small", changes={"objective.temperature": 0.0})
    request = Request(observation(2), [0, 1], task=TASKS)
    first = greedy.sample(request)
    assert torch.equal(first.chunk, greedy.sample(replace(request, seed=[5, 6])).chunk)
    assert first.nfe.tolist() == [12, 12]
    drawn = policy("openvla_small")
    chunk = drawn.sample(request).chunk
    assert torch.equal(chunk, drawn.sample(request).chunk)
    assert not torch.equal(chunk, drawn.sample(replace(request, seed=[5, 6])).chunk)


@dataclass(frozen=True)
class Highest(Hook):
    """H5: of four candidates the one of the highest sum."""

    @property
    def wants_candidates(self) -> int:
        return 4

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor:
        return chunks_BNHA.sum((2, 3))


def test_candidates_differ_and_the_best_is_chosen() -> None:
    request = Request(observation(2), [0, 1], task=TASKS)
    best = policy("openvla_small").sample(request, [Highest()])
    sums = best.candidates.sum((2, 3))
    assert (sums.std(1) > 0).all()
    assert torch.equal(best.chunk, best.candidates[torch.arange(2), sums.argmax(1)])
    # what was read is shared by candidates
    flow = policy("openvla_oft_small", changes={"objective": "Flow", "sampling_steps": 3})
    assert (flow.sample(request, [Highest()]).candidates.std(1) > 0).any()


@pytest.mark.parametrize("name", ["openvla_small", "openvla_oft_small", "litevlp_small"])
def test_no_padding_is_let_in(name: str) -> None:
    asked = policy(name)
    context = asked.context(Request(observation(2), 0, task=TASKS))
    assert context.mask is not None
    assert not context.mask.all()
    noisy = context.tokens + 100 * torch.randn_like(context.tokens) * ~context.mask[..., None]

    def said(of: Context) -> Tensor:
        noise = noise_for(asked, 2)
        torch.manual_seed(0)
        path = asked.recipe.objective.path(1)
        return asked.recipe.objective.believe(asked.net, 0 * noise, path[0], of).x

    assert torch.equal(said(context), said(replace(context, tokens=noisy)))


def test_the_tokens_of_a_chunk_are_empty_and_see_each_other() -> None:
    asked = policy("openvla_oft_small")
    net = asked.net
    assert isinstance(net, ParallelDecodingNet)
    given: list[Tensor] = []
    language = net._language[0]
    plain = language.further

    def further(tokens: Tensor, *rest: Any, **more: Any) -> Any:
        given.append(tokens)
        return plain(tokens, *rest, **more)

    language.further = further  # type: ignore[method-assign]
    try:
        chunk = net(
            torch.zeros(1, 8, 3),
            *2 * [torch.zeros(1)],
            asked.context(Request(observation(), 0, task=["lift"])),
        )
    finally:
        del language.further
    assert given[0].shape == (1, 24, 32)
    assert not given[0].any()
    (grad,) = torch.autograd.grad(chunk[0, 0].sum(), given[0])
    assert (grad.abs().sum(-1) > 0).all(), "the first action sees the last one's tokens"


def test_all_in_one_pass() -> None:
    asked = policy("openvla_oft_small")
    sampled = asked.sample(Request(observation(2), 0, task=TASKS))
    assert sampled.nfe.tolist() == [1, 1]
    assert sampled.chunk.shape == (2, 8, 3)


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    for name, changes, says in (
        ("openvla_small", {"encoder.language.gives": "keys"}, "gives words, and this one gives keys"),
        ("openvla_small", {"encoder.language.gives": "tokens"}, "--encoder.language.gives keys"),
        ("openvla_small", {"backbone.bins": 512}, "has 512 bins"),
        ("openvla_small", {"objective": "Flow"}, "gives tokens"),
        ("openvla_small", {"backbone": "ActionExpert"}, "use --backbone ActionTokens"),
        ("pi0_fast_small", {"backbone.vocabulary": 80}, "has 80 tokens: at least 81"),
        ("pi0_fast_small", {"backbone.skip": 400}, "the language model's words, 512 less 400"),
        ("pi0_fast_small", {"encoder.language.gives": "keys"}, "gives words, and this one gives keys"),
        ("pi05_ki_small", {"backbone": "ActionExpert"}, "--backbone Insulated"),
        ("pi05_ki_small", {"encoder.language.gives": "keys"}, "gives words, and this one gives keys"),
        ("openvla_small", {"sampling_steps": 2}, "written in one step"),
        ("openvla_oft_small", {"context": "ReadTokens"}, "--encoder.language.gives tokens"),
        ("openvla_oft_small", {"context": "Stack"}, "VisionLanguage --context CachedPrefix"),
        ("gr00t_small", {"encoder.language.gives": "keys"}, "--encoder.language.gives tokens"),
        (
            "gr00t_small",
            {"context": "CachedPrefix", "encoder.language.gives": "keys"},
            "--context ReadTokens",
        ),
        ("gr00t_small", {"backbone.embodiment": 2}, "room for 0 to 1"),
        ("litevlp_small", {"context.tokens": 5}, "a square number"),
        ("litevlp_small", {"context.tokens": 9}, "cannot be compressed to 9"),
    ):
        with pytest.raises(ValueError, match=says):
            Policy(override(small(name, FEATURES), changes), FEATURES, STATS).sample(
                Request(observation(), 0, task=["lift"])
            )
