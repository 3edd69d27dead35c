"""Experts that choose what to learn: the curricula, the gate, and their table in training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Sizes
from ulna.policies.backbones.mixture import Mixture
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.contexts.context import Context
from ulna.policies.objectives.imc import IMC
from ulna.policies.objectives.regression import Regression
from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.sampler import sample
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.train.curriculum import begins, curriculum
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.state import STATE_FILE, read_header, read_table

SIZES = Sizes(action_dim=2, horizon=4, token_width=3, pooled_width=3)
ALL = torch.ones(64, 4, dtype=torch.bool)


def two_modes(n: int = 64) -> tuple[Tensor, Context]:
    """Chunks of ±0.7, half of them each, under one observation: of a mean nobody ever demonstrated."""
    a = torch.full((n, 4, 2), 0.7)
    a[::2] = -0.7
    return a, Context(torch.ones(n, 1, 3), torch.ones(n, 3))


def fit(objective: IMC, components: int, rounds: int = 10, steps: int = 15) -> tuple[nn.Module, list[Tensor]]:
    """(the network, the table of each round) after expectation and maximisation on `two_modes`."""
    torch.manual_seed(0)
    net = Mixture(ResidualMLP(16, 1, 8), components, 0.2, 16, 1).build(SIZES, objective.needs)
    a, context = two_modes()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    tables: list[Tensor] = []
    for _ in range(rounds):
        with torch.no_grad():
            values = objective.assess(net, a, context, ALL)
        tables.append(objective.refresh(values, tables[-1] if tables else None))
        for _ in range(steps):
            optimizer.zero_grad()
            draw = objective.draw(a, 0.0, None)
            draw.more["table"] = tables[-1]
            losses = objective.losses(net, a, context, draw)
            (losses.error.mean() + losses.extras["gate"]).backward()
            optimizer.step()
    return net, tables


def chunks_of(net: nn.Module) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(1)
    chunks, logits = net(torch.zeros(1, 4, 2), zero, zero, Context(torch.ones(1, 1, 3), torch.ones(1, 3)))
    return chunks[0].detach(), logits[0].softmax(0).detach()


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.1, 20), st.integers(0, 1000))
def test_each_window_keeps_weight_1_for_its_best_expert(n: int, c: int, eta: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    objective, table = IMC(eta), None
    for _ in range(4):
        table = objective.refresh(-10 * torch.rand(n, c, generator=rng), table)
        assert torch.equal(table.amax(1), torch.zeros(n))
    assert table is not None
    by_expert = IMC(eta, largest="expert").refresh(-10 * torch.rand(n, c, generator=rng), None)
    assert torch.equal(by_expert.amax(0), torch.zeros(c))


def test_the_rounds_compound_as_the_paper_says() -> None:
    """p*(n|z) ∝ exp(R / eta), R = log p + eta log q, q the last round's share."""
    values = torch.tensor([[-1.0, -3.0], [-2.0, -1.5]], dtype=torch.float64)
    first = IMC(eta=2.0).refresh(values, None)
    torch.testing.assert_close(first, values / 2 - (values / 2).amax(1, keepdim=True))
    second = IMC(eta=2.0).refresh(values, first)
    by_hand = values / 2 + first.log_softmax(1)
    torch.testing.assert_close(second, by_hand - by_hand.amax(1, keepdim=True))
    torch.testing.assert_close(second[:, 0] - second[:, 1], 2 * (first[:, 0] - first[:, 1]))


def test_curricula_harden_and_the_experts_part() -> None:
    net, tables = fit(IMC(), 2)
    shares = [float(t.softmax(1).amax(1).mean()) for t in tables]
    assert shares[0] < 0.9
    assert shares[-1] > 0.99
    assert shares == pytest.approx(sorted(shares), abs=0.03)
    chunks, gate = chunks_of(net)
    low, high = sorted(chunks.mean((1, 2)).tolist())
    assert (low, high) == pytest.approx((-0.7, 0.7), abs=0.1)
    assert gate.tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_one_expert_averages_or_picks_a_subset() -> None:
    """With the largest weight 1 in each window one expert is regression; with 1 in each expert it may ignore
    data, which a mean over two modes cannot."""
    averaging, _ = fit(IMC(eta=0.5), 1)
    assert chunks_of(averaging)[0].abs().mean() < 0.1
    choosy, tables = fit(IMC(eta=0.5, largest="expert"), 1)
    assert chunks_of(choosy)[0].mean().abs() > 0.6
    ignored = tables[-1].exp()[:, 0] < 0.01
    assert ignored.sum() == 32


def test_without_a_table_it_is_a_mixture_density_network() -> None:
    """The gradient of its loss is that of the mixture's negative log-likelihood."""
    torch.manual_seed(0)
    objective = IMC(rounds=0)
    net = Mixture(ResidualMLP(16, 1, 8), 3, 0.5, 16, 1).build(SIZES, objective.needs).double()
    a, pooled = torch.randn(5, 4, 2, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    context, zero = Context(pooled[:, None], pooled), torch.zeros(5, dtype=torch.float64)
    losses = objective.losses(net, a, context, objective.draw(a, 0.0, None))
    (losses.error.flatten(1).sum(1).mean() + losses.extras["gate"]).backward()
    ours = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
    net.zero_grad()
    chunks, logits = net(torch.zeros_like(a), zero, zero, context)
    log_p = -0.5 * ((chunks - a[:, None]) ** 2).flatten(2).sum(2)
    (-(log_p + logits.log_softmax(1)).logsumexp(1).mean()).backward()
    for own, parameter in zip(ours, net.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, atol=1e-6, rtol=1e-4)
    assert curriculum(objective) is None


class Gate(nn.Module):
    """Three experts whose chunks are their numbers, with the shares 0.5, 0.3, 0.2."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        chunks = torch.arange(3.0)[None, :, None, None].expand(len(x), 3, *x.shape[1:])
        return chunks, torch.tensor([0.5, 0.3, 0.2]).log().expand(len(x), 3)


def test_the_noise_says_which_expert_by_the_gates_shares() -> None:
    context = Context(torch.zeros(4000, 1, 1), torch.zeros(4000, 1))
    sampled = sample(Gate(), IMC(), DDIM(), context, (4000, 4, 2), 1, 0)
    assert sampled.nfe.unique().tolist() == [1]
    z = sampled.chunk[:, 0, 0].round().long()
    assert (sampled.chunk - z[:, None, None]).abs().max() < 1e-5, "of one expert, not mixed"
    shares = np.bincount(z.numpy(), minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    again = sample(Gate(), IMC(), DDIM(), context.take(torch.arange(3)), (3, 4, 2), 1, [5, 6, 7]).chunk
    alone = sample(Gate(), IMC(), DDIM(), context.take(torch.arange(1)), (1, 4, 2), 1, [6]).chunk
    assert torch.equal(again[1:2], alone)


def test_any_network_of_chunks_becomes_a_mixture_and_others_are_refused() -> None:
    with pytest.raises(ValueError, match="a backbone that gives a mixture, and ResidualMLP gives a chunk"):
        ResidualMLP().build(SIZES, IMC().needs)
    with pytest.raises(ValueError, match="gives a chunk, and Mixture gives a mixture"):
        Mixture().build(SIZES, Regression().needs)
    with pytest.raises(ValueError, match="one step, not 3"):
        IMC().path(3)
    for make in (lambda: IMC(eta=0.0), lambda: IMC(rounds=-1), lambda: Mixture(components=0)):
        with pytest.raises(ValueError, match=r"eta|component"):
            make()


@given(st.integers(1, 60), st.integers(1, 200))
def test_rounds_begin_at_equal_distances_from_the_first_step(rounds: int, steps: int) -> None:
    at = [step for step in range(steps) if begins(rounds, step, steps)]
    assert at[0] == 0
    assert len(at) == min(rounds, steps)
    if len(at) > 2:
        gaps = np.diff(at)
        assert gaps.max() - gaps.min() <= 1


def recipe(steps: int = 12, **training: object) -> Recipe:
    return override(small("imc", steps=steps, checkpoint_every=4, **training), {"objective.rounds": 5})


def test_training_resumes_with_its_table(tmp_path: Path) -> None:
    """Rounds begin before steps 0, 3, 5, 8 and 10; the run is stopped after the state of step 8, whose table
    is that of step 5, was saved."""
    write_store(tmp_path / "d", features=FEATURES)
    whole = train(recipe(), tmp_path / "d", tmp_path / "whole", device="cpu")

    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "d", tmp_path / "cut", device="cpu", report=stop)
    state = tmp_path / "cut" / STATE_FILE
    assert len(read_header(state)["losses"]) == 8
    table = read_table(state)
    assert table is not None
    assert table.shape == (33, 3)
    assert torch.equal(table.amax(1), torch.zeros(33))
    resumed = train(recipe(), tmp_path / "d", tmp_path / "cut", device="cpu", resume=True)
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert resumed.content_hash == whole.content_hash


def test_a_table_grows_with_the_data(tmp_path: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "p"
    write_store(data, features=FEATURES)
    train(override(recipe(steps=3), {"objective.rounds": 1}), data, out, device="cpu", track=())
    shutil.rmtree(data)
    write_store(data, (20, 13, 25), FEATURES)
    train(override(recipe(steps=12), {"objective.rounds": 1}), data, out, device="cpu", track=(), resume=True)
    table = read_table(out / STATE_FILE)
    assert table is not None
    assert len(table) == 58


def test_batches_learn_by_the_table(tmp_path: Path) -> None:
    """With and without a table the first losses differ, and one that hardens changes what is learned."""
    write_store(tmp_path / "d", features=FEATURES)
    with_table = train(recipe(), tmp_path / "d", tmp_path / "a", device="cpu")
    without = override(recipe(), {"objective.rounds": 0})
    plain = train(without, tmp_path / "d", tmp_path / "b", device="cpu")
    assert with_table.losses[0] > plain.losses[0], "weights of several experts, not shares of one"


def test_a_memory_leaves_windows_no_row_of_their_own(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=FEATURES)
    remembering = override(small("imc", steps=1), {"context": "Recurrent", "context.chain": 2})
    with pytest.raises(TrainingError, match=r"to the memory of Recurrent .* use --objective\.rounds 0"):
        train(remembering, tmp_path / "d", tmp_path / "out", device="cpu")
    train(override(remembering, {"objective.rounds": 0}), tmp_path / "d", tmp_path / "out", device="cpu")
