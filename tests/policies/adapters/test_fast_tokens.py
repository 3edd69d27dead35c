"""A chunk in few tokens (pi0-FAST), and knowledge insulation, which teaches a language model by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES as PLAIN
from contracts.data import write_store
from contracts.recipes import small
from contracts.vla import observation, policy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ulna.datasets.features import ACTION
from ulna.policies.backbones.fast_tokens import REACH, FASTNet, WrittenFAST
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.objectives.objective import Draw
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.train.loop import train

TASKS = ["lift", "put the red cube into the left bowl, then wait"]
RISING = np.linspace(-1, 1, 4)[None, :, None] * np.random.default_rng(0).uniform(0.2, 1, (200, 1, 3))


def writer(name: str = "pi0_fast_small") -> Policy:
    """With tokens that were fitted to rising lines."""
    made = policy(name)
    (net,) = [m for m in made.modules() if isinstance(m, FASTNet)]
    net.learn(RISING)
    return made


def written(of: Policy, rows: int = 2) -> WrittenFAST:
    context = of.context(Request(observation(rows), 0, task=TASKS[:rows]))
    assert isinstance(of.net, FASTNet)
    zero = torch.zeros(rows)
    return of.net(torch.zeros(rows, 4, 3), zero, zero, context)


def test_tokens_that_were_learned_are_fewer_and_come_back() -> None:
    net = writer().net
    assert isinstance(net, FASTNet)
    tokens, there = net.of(torch.from_numpy(RISING[:50]).float())
    assert there.sum(1).float().mean() < 5, "of 12 numbers"
    row = tokens[7][there[7]].tolist()
    back = net.tokens.decode(row)
    assert np.abs(back - RISING[7]).max() <= net.tokens.error
    assert net.tokens.vocabulary == 128
    assert sorted(net.words(torch.arange(128)).tolist()) == list(range(512 - 128, 512))


WHOLE = writer()


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_whatever_is_drawn_is_one_chunk(seed: int) -> None:
    """Random weights, drawn words: what would make more than a chunk is never said."""
    assert isinstance(WHOLE.net, FASTNet)
    sampled = WHOLE.sample(Request(observation(2), [seed, seed + 1], task=TASKS))
    assert sampled.chunk.isfinite().all()
    assert ((sampled.nfe >= 1) & (sampled.nfe <= 12)).all()


def test_a_row_that_is_whole_does_not_wait_to_be_right() -> None:
    """Rows of 3 and of 12 tokens: the short one is not changed by what goes on beside it."""
    of = written(writer())
    tokens = of.net.tokens
    pairs = [t for t, n in enumerate(tokens.lengths) if n == max(tokens.lengths)]

    def choose(logits: Tensor, n: int) -> Tensor:
        first = torch.where(logits[0, pairs[0]].isfinite(), pairs[0], 0)
        return torch.stack([first, torch.tensor(n)])

    with torch.no_grad():
        chunk, passes = of.write(choose)
    size = max(tokens.lengths)
    rows = [[pairs[0]] * (12 // size) + [0] * (12 % size), [*range(12)]]
    assert passes.tolist() == [len(rows[0]), 12]
    for own, row in zip(chunk.numpy(), rows, strict=True):
        np.testing.assert_array_equal(own, tokens.decode(row))


def test_what_is_written_with_a_cache_is_what_is_written_without() -> None:
    of, heard = written(writer()), []

    def choose(logits: Tensor, n: int) -> Tensor:
        heard.append(logits)
        return torch.tensor([3 * n + 1, 5 * n + 2])  # single coefficients, whatever is likely

    with torch.no_grad():
        of.write(choose)
        tokens = torch.tensor([[3 * n + 1 for n in range(12)], [5 * n + 2 for n in range(12)]])
        words = of.net.words(torch.arange(128))
        at_once = of.told(of.net.words(tokens))[..., words]
    for n, logits in enumerate(heard):
        fits = logits.isfinite()
        assert fits[:, :81].all()
        torch.testing.assert_close(logits[fits], at_once[:, n][fits], atol=1e-5, rtol=1e-5)
    assert heard[0].isfinite().all()
    assert heard[-1].isfinite().sum(1).tolist() == [81, 81], "the last coefficient is a single one"


def test_the_loss_is_the_cross_entropy_of_all_words() -> None:
    asked = writer()
    assert isinstance(asked.net, FASTNet)
    actions = asked.codec.decode(torch.stack([torch.from_numpy(RISING[0]), torch.rand(4, 3) * 2 - 1]), {})
    batch = {**observation(2), "task": TASKS, ACTION: actions, "mask": torch.ones(2, 4, dtype=torch.bool)}
    loss = asked.loss(batch)
    tokens, there = asked.net.of(asked.codec.encode(actions, {}))
    counts = there.sum(1).tolist()
    assert counts[0] < counts[1]
    shares = written(asked).told(asked.net.words(tokens)).log_softmax(-1)
    said = [shares[b, n, 511 - tokens[b, n]] for b in range(2) for n in range(counts[b])]
    torch.testing.assert_close(loss, -torch.stack(said).mean())
    loss.backward()
    assert all(p.grad is not None for p in asked.encoder.parameters())


@pytest.mark.parametrize("name", ["pi0_fast_small", "pi05_ki_small"])
def test_training_fits_the_tokens_and_goes_on_with_them(name: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", (12, 10), PLAIN)
    said: list[str] = []
    recipe = small(name, PLAIN)
    train(recipe, store.path, tmp_path / "first", say=said.append)
    (sentence,) = [s for s in said if "action tokens" in s]
    assert sentence.startswith("a chunk of 12 numbers is "), sentence
    first = tokens_of(load_checkpoint(tmp_path / "first"))
    assert first.learned
    other = write_store(tmp_path / "other", (15, 20), PLAIN)
    said.clear()
    started = override(recipe, {"training.start": str(tmp_path / "first")})
    train(started, other.path, tmp_path / "second", say=said.append)
    assert not [s for s in said if "action tokens" in s]
    assert torch.equal(tokens_of(load_checkpoint(tmp_path / "second")).pairs, first.pairs)


def tokens_of(made: Policy) -> FASTNet:
    (net,) = [m for m in made.modules() if isinstance(m, FASTNet)]
    return net


def test_insulation_stops_the_experts_gradients_and_only_those() -> None:
    """Flow alone moves nothing that reads; words alone move nothing that acts; together each is as alone."""
    made = writer("pi05_ki_small")
    whole, quiet = made.recipe.objective, replace(made.recipe.objective, weight=0.0)  # type: ignore[type-var]
    a = torch.from_numpy(RISING[:2]).float()
    rng = torch.Generator().manual_seed(1)
    draw = Draw(torch.randn(a.shape, generator=rng), torch.tensor([0.3, 0.8]))

    def gradients(objective: object) -> dict[str, Tensor]:
        made.zero_grad()
        context = made.encode({**observation(2), "task": TASKS})
        losses = objective.losses(made.net, a, context, draw)  # type: ignore[attr-defined]
        (losses.error.mean() + losses.extras["words"]).backward()
        return {k: p.grad.clone() for k, p in made.named_parameters() if p.grad is not None and p.grad.any()}

    both, flow = gradients(whole), gradients(quiet)
    assert flow
    assert all(k.startswith("net.inner.") for k in flow)
    assert all(torch.equal(both[k], flow[k]) for k in flow)
    assert {k.split(".")[0] for k in both} == {"encoder", "net", "context_net"}
    insulated = made.encode({**observation(2), "task": TASKS})
    open_ = whole.inner.losses(made.net, a, insulated, draw).error.mean()  # type: ignore[attr-defined]
    made.zero_grad()
    open_.backward()
    moved = [k for k, p in made.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(k.startswith("encoder.") for k in moved), "without insulation the same loss moves the reader"


def test_a_decision_of_insulation_writes_nothing() -> None:
    made = writer("pi05_ki_small")
    plain = override(made.recipe, {"objective": "Flow"})
    inner = Policy(plain, made.features, made.stats).eval()
    inner.load_state_dict(
        {k.replace("net.inner.", "net."): v for k, v in made.state_dict().items() if "net.words" not in k}
    )
    request = Request(observation(2), [3, 4], task=TASKS)
    sampled, alone = made.sample(request), inner.sample(request)
    assert torch.equal(sampled.chunk, alone.chunk)
    assert sampled.nfe.tolist() == alone.nfe.tolist() == [10, 10]


def test_an_action_far_beyond_the_data_is_cut() -> None:
    net = writer().net
    assert isinstance(net, FASTNet)
    back = net.tokens.decode(net.tokens.encode(np.full((4, 3), 99.0)))
    assert np.abs(back).max() <= REACH + net.tokens.error
