"""VQ-BeT: codes of chunks, which code, and what is off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE, write_store
from contracts.planar import write_demonstrations
from contracts.recipes import small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ulna.datasets.features import ACTION, STATE
from ulna.policies.backbones.backbone import Sizes
from ulna.policies.backbones.codes import Codes, CodesNet
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.ndp import NeuralDynamics
from ulna.policies.backbones.residual_vq import ResidualVQ
from ulna.policies.backbones.unet1d import UNet1D
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.contexts.context import Context
from ulna.policies.objectives.choice import choice, uniforms
from ulna.policies.objectives.regression import Regression
from ulna.policies.objectives.vq_bet import VQBeT
from ulna.policies.parts import override
from ulna.policies.request import Request
from ulna.policies.sampler import sample
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.server import PolicyServer
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.train.data import open_data
from ulna.policies.train.loop import train

SIZES = Sizes(action_dim=2, horizon=4, token_width=3, pooled_width=3)
SMALL = Codes(ResidualMLP(32, 1, 8), feature=32, codes=4, code_width=8, hidden=32)


def two_ways(n: int, seed: int) -> tuple[Tensor, Context]:
    """Chunks near ±0.7, half of them each, under one observation."""
    a = torch.full((n, 4, 2), 0.7)
    a[::2] *= -1
    a = a + 0.05 * torch.randn(a.shape, generator=torch.Generator().manual_seed(seed))
    return a, Context(torch.ones(n, 1, 3), torch.ones(n, 3))


@pytest.fixture(scope="module")
def fitted() -> tuple[CodesNet, VQBeT]:
    """A network that learned both phases on `two_ways`."""
    torch.manual_seed(0)
    objective = VQBeT()
    net = SMALL.build(SIZES, objective.needs)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for step in range(200):
        a, context = two_ways(64, step)
        draw = objective.draw(a, step / 200 * 0.5, None)
        optimizer.zero_grad()
        objective.losses(net, a, context, draw).error.mean().backward()
        optimizer.step()
    assert isinstance(net, CodesNet)
    return net.eval(), objective


def drawn(fitted: tuple[CodesNet, VQBeT], n: int = 400, temperature: float = 1.0) -> Tensor:
    net, objective = fitted[0], VQBeT(temperature=temperature)
    context = Context(torch.ones(n, 1, 3), torch.ones(n, 3))
    sampled = sample(net, objective, DDIM(), context, (n, 4, 2), 1, 0)
    assert sampled.nfe.unique().tolist() == [1]
    return sampled.chunk


def test_codebooks_do_not_collapse(fitted: tuple[CodesNet, VQBeT]) -> None:
    a, _ = two_ways(512, 1000)
    codes = fitted[0].quantiser.codes(a, torch.ones(512, 4, dtype=torch.bool))
    for book in codes.T:
        assert len(book.unique()) >= 3
    low, high = codes[::2, 0].unique().tolist(), codes[1::2, 0].unique().tolist()
    assert not set(low) & set(high), "a first code is of one of the ways"


def test_codes_and_offsets_give_the_chunk_again(fitted: tuple[CodesNet, VQBeT]) -> None:
    net, _ = fitted
    a, context = two_ways(256, 1001)
    every, zero = torch.ones(256, 4, dtype=torch.bool), torch.zeros(256)
    with torch.no_grad():
        coded = net(torch.zeros_like(a), zero, zero, context)
        codes = coded.quantiser.codes(a, every)
        stands_for = coded.quantiser.chunk(coded.quantiser.vectors(codes))
        assert (stands_for - a).abs().mean() < 0.08
        assert (coded.chunk(codes) - a).abs().mean() < 0.05
    # one observation does not say more than the code does, so offsets are small
    assert (coded.chunk(codes) - stands_for).abs().mean() < 0.05


def test_both_ways_are_drawn_where_a_mean_goes_neither(fitted: tuple[CodesNet, VQBeT]) -> None:
    means = drawn(fitted).mean((1, 2))
    assert (means.abs() - 0.7).abs().max() < 0.15
    assert 0.4 < float((means > 0).float().mean()) < 0.6
    net = ResidualMLP(32, 1, 8).build(SIZES, Regression().needs)
    optimizer, objective = torch.optim.Adam(net.parameters(), 5e-3), Regression("l2")
    for step in range(100):
        a, context = two_ways(64, step)
        optimizer.zero_grad()
        objective.losses(net, a, context, objective.draw(a, 0.0, None)).error.mean().backward()
        optimizer.step()
    context = Context(torch.ones(1, 1, 3), torch.ones(1, 3))
    assert sample(net, objective, DDIM(), context, (1, 4, 2), 1, 0).chunk.abs().max() < 0.2


def test_a_low_temperature_draws_the_likeliest_codes(fitted: tuple[CodesNet, VQBeT]) -> None:
    cold = drawn(fitted, 50, 0.01)
    assert torch.allclose(cold, cold[:1].expand_as(cold), atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(0, 4))
def test_shares_are_those_at_which_the_focal_loss_is_least(logits: list[float], gamma: float) -> None:
    """The gradient of the expected loss by the logits is zero there."""
    objective = VQBeT(gamma=gamma)
    at = torch.tensor([logits], dtype=torch.float64).requires_grad_()
    shares = objective.shares(at.detach())
    assert shares.sum().item() == pytest.approx(1)
    each = torch.arange(len(logits))
    (shares[0] * objective._focal(at.expand(len(logits), -1), each)).sum().backward()
    assert at.grad is not None
    assert at.grad.abs().max() < 1e-6
    if gamma == 0:
        torch.testing.assert_close(shares, at.detach().softmax(1))


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4))
def test_uniforms_are_even_and_independent(parts: int, actions: int) -> None:
    noise = torch.randn(4000, 3, actions, generator=torch.Generator().manual_seed(0))
    u = uniforms(noise, parts)
    assert u.shape == (4000, parts)
    assert (u.mean(0) - 0.5).abs().max() < 0.03
    if parts > 1:
        assert np.abs(np.corrcoef(u.T.numpy())[0, 1:]).max() < 0.06


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_a_choice_has_its_share(shares: list[int]) -> None:
    u = (torch.arange(2000) + 0.5) / 2000
    chosen = choice(torch.tensor([shares], dtype=torch.float32).expand(2000, -1), u)
    counted = np.bincount(chosen.numpy(), minlength=len(shares)) / 2000
    np.testing.assert_allclose(counted, np.array(shares) / sum(shares), atol=2e-3)


def test_the_phases_part(fitted: tuple[CodesNet, VQBeT]) -> None:
    """First the codes alone, then all but them; codes that are settled are not learned anew."""
    torch.manual_seed(0)
    objective = VQBeT(codes_until=0.5)
    net = SMALL.build(SIZES, objective.needs)
    a, context = two_ways(32, 0)

    def learned(progress: float) -> tuple[set[str], bool]:
        net.zero_grad()
        before = net.quantiser.books.clone()  # type: ignore[union-attr, operator]
        objective.losses(net, a, context, objective.draw(a, progress, None)).error.mean().backward()
        moved = not torch.equal(before, net.quantiser.books)  # type: ignore[union-attr, arg-type]
        return {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}, moved

    assert learned(0.2) == ({"quantiser"}, True)
    rest = {n.split(".")[0] for n, _ in net.named_parameters()} - {"quantiser"}
    assert learned(0.7) == (rest, False)
    assert learned(0.2) == (rest, False)


def test_padded_actions_count_for_nothing() -> None:
    torch.manual_seed(0)
    quantiser = ResidualVQ(4, 2, 16, 8, 4, 2).eval()
    a, mask = torch.randn(5, 4, 2), torch.arange(4)[None] < torch.tensor([[4], [3], [2], [1], [1]])
    other = torch.where(mask[..., None], a, a + 3)
    assert torch.equal(quantiser.codes(a, mask), quantiser.codes(other, mask))
    for x, y in zip(quantiser.learn(a, mask), quantiser.learn(other, mask), strict=True):
        assert torch.equal(x, y)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 8), st.integers(1, 3))
def test_codes_are_of_the_nearest_and_what_they_leave(n: int, codes: int, books: int) -> None:
    torch.manual_seed(n)
    quantiser = ResidualVQ(3, 2, 16, 8, codes, books)
    a, every = torch.randn(n, 3, 2), torch.ones(n, 3, dtype=torch.bool)
    quantiser.learn(a, every)
    quantiser.learn(a, every)
    assert torch.isfinite(quantiser.books).all()
    assert (quantiser.counts > 0).all(), "no code is without a use for long"
    z = quantiser.encoder(a.flatten(1)).detach()
    chosen = quantiser.codes(a, every)
    for g in range(books):
        before = quantiser.vectors(chosen[:, :g]) if g else torch.zeros_like(z)
        distances = ((z - before)[:, None] - quantiser.books[g]).norm(dim=-1)
        best = distances.gather(1, chosen[:, g : g + 1])[:, 0]
        torch.testing.assert_close(best, distances.amin(1))


def test_what_does_not_fit_is_said() -> None:
    for make, says in (
        (lambda: ResidualMLP().build(SIZES, VQBeT().needs), "gives codes, and ResidualMLP gives a chunk"),
        (lambda: SMALL.build(SIZES, Regression().needs), "gives a chunk, and Codes gives codes"),
        (lambda: Codes(UNet1D()).build(SIZES, VQBeT().needs), "one action"),
        (lambda: Codes(NeuralDynamics()).build(SIZES, VQBeT().needs), "NeuralDynamics gives a motion"),
        (lambda: Codes(SMALL.inner, books=9).build(SIZES, VQBeT().needs), "9 codebooks are more than"),
        (lambda: Codes(codes=1), "at least 2 codes"),
        (lambda: VQBeT(codes_until=1.0), "a share of the training"),
        (lambda: VQBeT(temperature=0.0), "above 0"),
        (lambda: VQBeT(gamma=-1.0), "not negative"),
        (lambda: VQBeT().path(2), "one step, not 2"),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_a_checkpoint_keeps_its_codes_and_is_served(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    result = train(small("vq_bet", steps=12), tmp_path / "d", tmp_path / "out", device="cpu")
    policy = load_checkpoint(result.checkpoint)
    assert isinstance(policy.net, CodesNet)
    assert bool(policy.net.quantiser.settled)
    rng = np.random.default_rng(0)
    observation = {
        k: np.stack([rng.normal(size=f.shape).astype(np.float32)] * 5)
        for k, f in FEATURES.items()
        if k != ACTION
    }
    local = LocalPolicy(result.checkpoint)
    expected = [local.infer(Request(observation, seed).to_wire())["actions"] for seed in range(4)]
    assert expected[0].shape == (5, 3)
    with PolicyServer(local, port=0).background() as server, PolicyClient(server.url) as client:
        assert client.metadata.recipe == "vq_bet"
        for seed, actions in enumerate(expected):
            reply = client.infer(Request(observation, seed).to_wire())
            np.testing.assert_array_equal(reply["actions"], actions)
            assert reply["nfe"] == 1


def test_training_resumes_in_either_phase_and_starts_with_settled_codes(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    recipe = override(small("vq_bet", steps=12, checkpoint_every=3), {"objective.codes_until": 0.5})
    whole = train(recipe, tmp_path / "d", tmp_path / "whole", device="cpu")
    for at in (4, 8):  # the last states were saved in the phase of the codes, and after it

        def stop(progress, at: int = at) -> None:  # type: ignore[no-untyped-def]
            if progress.step == at:
                raise KeyboardInterrupt

        out = tmp_path / f"cut {at}"
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "d", out, device="cpu", report=stop)
        resumed = train(recipe, tmp_path / "d", out, device="cpu", resume=True)
        assert resumed.content_hash == whole.content_hash
    before = load_checkpoint(whole.checkpoint).net.quantiser.books  # type: ignore[union-attr]
    again = override(recipe, {"training.start": str(whole.checkpoint)})
    after = load_checkpoint(train(again, tmp_path / "d", tmp_path / "again", device="cpu").checkpoint)
    assert torch.equal(after.net.quantiser.books, before)  # type: ignore[union-attr, arg-type]


def test_pictures_pass_the_whole_way(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", features=WITH_IMAGE)
    recipe = override(small("vq_bet", WITH_IMAGE), {"encoder.image": "SmallCNN"})
    result = train(recipe, store.path, tmp_path / "out", device="cpu")
    assert len(result.losses) == 6


def test_it_goes_both_ways_round_a_disc(tmp_path: Path) -> None:
    """T1 fork: the first chunks from the axis of symmetry, trained on both ways, in seconds."""
    write_demonstrations(tmp_path / "d", "fork", 40)
    data = open_data(tmp_path / "d")
    common = {"n_obs_steps": 1, "horizon": 8, "n_action_steps": 8, "encoder.state.width": 64}
    sizes = {"backbone.inner": "ResidualMLP", "backbone.inner.width": 64, "backbone.codes": 8}
    training = {
        "steps": 200,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "warmup": 20,
        "checkpoint_every": 1000,
    }
    far = {}
    for name, changes in (("vq_bet", common | sizes), ("regression_mlp", common | {"backbone.width": 64})):
        recipe = override(small(name, data.features, **training), changes)
        train(recipe, data, tmp_path / name, device="cpu")
        policy = load_checkpoint(tmp_path / name)
        state = torch.tensor([0.0, 0.0]).expand(64, 1, 2)
        chunk = policy.sample(Request({STATE: state}, 0)).chunk
        far[name] = chunk[:, 6, 1]  # m off the axis, where the disc begins
    assert far["regression_mlp"].abs().max() < 0.1, "the mean of both ways"
    left = (far["vq_bet"] > 0.15).float().mean()
    right = (far["vq_bet"] < -0.15).float().mean()
    assert left + right > 0.9
    assert min(left, right) > 0.2
