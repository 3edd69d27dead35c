"""Mixture of horizons: who speaks of what, how it is mixed, and how much of it is executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Backbone, Head, Output, Sizes, outputs
from ulna.policies.backbones.horizons import Horizons, HorizonsNet
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.ndp import NeuralDynamics
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.backbones.unet1d import UNet1D
from ulna.policies.contexts.context import Context
from ulna.policies.hooks.consensus import Consensus
from ulna.policies.hooks.hook import Hook
from ulna.policies.objectives.diffusion import Diffusion
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Objective, masked_mean
from ulna.policies.objectives.regression import Regression
from ulna.policies.sampler import Sampled, sample
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.solvers.heun import Heun

B, H, A, STEPS = 3, 8, 2, (2, 4, 8)
SIZES = Sizes(A, H, 8, 8)
MLP, ATTENTION, UNET = ResidualMLP(16, 1), Transformer(16, 1, 2), UNet1D((8, 16), groups=4, time_width=8)
EACH = pytest.mark.parametrize("inner", [MLP, ATTENTION, UNET], ids=["mlp", "transformer", "unet"])


def built(
    inner: Backbone = MLP, horizons: tuple[int, ...] = STEPS, sizes: Sizes = SIZES, gate: str = "learned"
):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = Horizons(inner, horizons, gate).build(sizes, Head()).eval()  # type: ignore[arg-type]
    assert isinstance(net, HorizonsNet)
    return net


def question(b: int = B) -> tuple[Tensor, Tensor, Tensor, Context]:
    rng = torch.Generator().manual_seed(1)
    pooled = torch.randn(b, 8, generator=rng)
    t = torch.rand(b, generator=rng)
    return torch.randn(b, H, A, generator=rng), t, t, Context(pooled[:, None], pooled)


@EACH
def test_views_are_about_their_own_actions_and_make_up_the_chunk(inner: Backbone) -> None:
    net = built(inner)
    output = outputs(net, *question())
    assert [mask.tolist() for _, mask in output.views] == [[1.0] * h + [0.0] * (H - h) for h in STEPS]
    assert output.weights is not None
    torch.testing.assert_close(output.weights.sum(1), torch.ones(B, H))
    for (_, mask), gate in zip(output.views, output.weights.unbind(1), strict=True):
        assert (gate[:, mask == 0] == 0).all()
        assert (gate[:, mask > 0] > 0).all()
    mixed = sum(
        w[..., None] * chunk for (chunk, _), w in zip(output.views, output.weights.unbind(1), strict=True)
    )
    torch.testing.assert_close(output.chunk, mixed)
    torch.testing.assert_close(net(*question()), output.chunk)


@EACH
def test_a_horizon_does_not_see_what_lies_beyond_it(inner: Backbone) -> None:
    net = built(inner)
    x, s, t, context = question()
    changed = torch.cat([x[:, :2], x[:, 2:] + 1], dim=1)
    before, after = outputs(net, x, s, t, context), outputs(net, changed, s, t, context)
    torch.testing.assert_close(after.views[0][0][:, :2], before.views[0][0][:, :2])
    assert (after.views[2][0][:, :2] - before.views[2][0][:, :2]).abs().max() > 1e-4


@EACH
def test_one_horizon_is_the_inner_network(inner: Backbone) -> None:
    net = built(inner, (H,))
    torch.manual_seed(0)
    plain = inner.build(SIZES, Head()).eval()
    assert torch.equal(net(*question()), plain(*question()))
    output = outputs(net, *question())
    assert output.views == ()
    assert output.extras == {}
    assert net.evaluations == 1


@EACH
def test_rows_do_not_depend_on_their_neighbours(inner: Backbone) -> None:
    net = built(inner)
    x, s, t, context = question(5)
    together = outputs(net, x, s, t, context)
    for i in range(5):
        alone = outputs(net, x[i : i + 1], s[i : i + 1], t[i : i + 1], context.take(torch.tensor([i])))
        torch.testing.assert_close(together.chunk[i : i + 1], alone.chunk)
        for (many, _), (one, _) in zip(together.views, alone.views, strict=True):
            torch.testing.assert_close(many[i : i + 1], one)


def test_past_actions_belong_to_every_horizon() -> None:
    output = outputs(built(horizons=(1, 6), sizes=replace(SIZES, n_past_actions=2)), *question())
    assert [int(mask.sum()) for _, mask in output.views] == [3, 8]


def test_the_balance_is_zero_for_even_gates_and_by_hand_for_others() -> None:
    net = built()
    even = net.seen / net.seen.sum(0)
    assert net._unevenness(even.expand(B, -1, -1)) == 0
    gates = torch.zeros(3, H)
    gates[:, :2] = torch.tensor([0.5, 0.25, 0.25])[:, None]
    gates[1:, 2:4] = torch.tensor([0.9, 0.1])[:, None]
    gates[2, 4:] = 1.0
    variance = [np.var([0.5, 0.25, 0.25]) * 9, np.var([0.9, 0.1]) * 4]
    assert float(net._unevenness(gates[None])) == pytest.approx(np.mean(variance), rel=1e-5)
    output = outputs(net, *question())
    assert output.weights is not None
    torch.testing.assert_close(output.extras["balance"], 1e-3 * net._unevenness(output.weights))
    assert outputs(built(gate="uniform"), *question()).extras == {}


def test_gates_are_noisy_in_training_only() -> None:
    net = built()
    assert torch.equal(net(*question()), net(*question()))
    net.train()
    first, second = outputs(net, *question()), outputs(net, *question())
    assert not torch.equal(first.chunk, second.chunk)
    assert torch.equal(first.views[0][0], second.views[0][0])


@pytest.mark.parametrize("objective", [Flow(), Flow(predict="x"), Diffusion(), Regression("l1")])
def test_every_objective_learns_all_horizons_and_the_gate(objective: Objective) -> None:
    net = built(ATTENTION).train()
    _, _, _, context = question()
    target = torch.randn(B, H, A)
    losses = objective.losses(net, target, context, objective.draw(target, 0.0, None))
    assert losses.error.shape == (B, H, A)
    assert set(losses.extras) == {"balance"}
    (masked_mean(losses.error, torch.ones(B, H, dtype=torch.bool)) + losses.extras["balance"]).backward()
    weight = dict(net.named_parameters())["inner.out.weight"].grad
    assert weight is not None
    assert (weight.abs().amax(1) > 0).all()


def test_equal_horizons_share_the_loss_of_the_mixture() -> None:
    """With views that all say the target, nothing is lost; each view errs on its own actions only."""
    target = torch.zeros(B, H, A)
    off = torch.ones(B, H, A)
    mask = (torch.arange(H) < 2).float()

    class Two(nn.Module):
        def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
            return Output(target, ((off, mask),))

    losses = Regression("l2").losses(Two(), target, question()[3], Regression("l2").draw(target, 0.0, None))
    assert masked_mean(losses.error, torch.ones(B, H, dtype=torch.bool)) == pytest.approx(1.0)
    assert (losses.error[:, 2:] == 0).all()


@pytest.mark.parametrize("horizons", [(), (0, 8), (4, 4, 8), (8, 4), (2, 4), (4, 16)])
def test_horizons_that_do_not_fit_are_refused(horizons: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="from at least 1 to the 8 actions"):
        built(horizons=horizons)


def test_other_outputs_and_odd_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="energy"):
        Horizons(MLP, STEPS).build(SIZES, Head("energy"))
    with pytest.raises(ValueError, match="not of NeuralDynamics"):
        Horizons(NeuralDynamics(), STEPS).build(SIZES, Head())


# how much to execute


class Disagreeing(nn.Module):
    """Two horizons, 4 and 8 of 8 actions, even gates. They lie `2·gap` apart on each action, where the gaps
    `(H,)` times the context's first element are a row's."""

    evaluations = 2

    def __init__(self, gap_H: Tensor) -> None:
        super().__init__()
        self.gap_H = gap_H
        self.seen = torch.stack([torch.arange(H) < 4, torch.arange(H) < 8])

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.outputs(x, s, t, context).chunk

    def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        middle = torch.zeros_like(x)
        off = (context.pooled[:, :1] * torch.arange(H) + self.gap_H)[..., None].expand_as(x)
        weights = (self.seen / self.seen.sum(0)).expand(len(x), -1, -1)
        views = ((middle - off, self.seen[0].float()), (middle + off, self.seen[1].float()))
        return Output((weights[..., None] * torch.stack([v for v, _ in views], 1)).sum(1), views, {}, weights)


def decide(
    net: nn.Module,
    hooks: Sequence[Hook],
    b: int = B,
    objective: Objective | None = None,
    slope: float = 0.0,
    **settings,
) -> Sampled:  # type: ignore[no-untyped-def]
    objective = objective or Flow(predict="x")
    pooled = slope * torch.arange(b)[:, None].float()
    steps = 1 if isinstance(objective, Regression) else 4
    solver = settings.pop("solver", DDIM())
    context = Context(pooled[:, None], pooled)
    return sample(net, objective, solver, context, (b, H, A), steps, list(range(b)), hooks, **settings)


def gaps(*values: float) -> Disagreeing:
    return Disagreeing(torch.tensor(values))


FLAT = gaps(*[1.0] * 8)


@pytest.mark.parametrize("objective", [Flow(predict="x"), Flow(), Diffusion(), Regression("l1")])
def test_execution_goes_on_while_horizons_agree(objective: Objective) -> None:
    for third, fourth, expected in ((1.0, 1.0, 4), (1.0, 1.5, 3), (1.5, 1.0, 2), (0.0, 0.0, 4)):
        net = gaps(1.0, 1.0, third, fourth, 9.0, 9.0, 9.0, 9.0)
        sampled = decide(net, [Consensus(1.2, least=2)], objective=objective)
        assert sampled.execute is not None
        assert sampled.execute.tolist() == [expected] * B


def test_where_one_horizon_speaks_nothing_is_agreed() -> None:
    sampled = decide(FLAT, [Consensus(1.4, least=2)])
    assert sampled.execute is not None
    assert sampled.execute.tolist() == [4] * B
    assert decide(FLAT, [Consensus(1.4, least=2, active=2)]).execute.tolist() == [2] * B  # type: ignore[union-attr]


def test_each_row_has_its_own_count_whatever_the_batch() -> None:
    hook = Consensus(1.3, least=2)
    together = decide(FLAT, [hook], b=6, slope=0.1)
    assert together.execute is not None
    assert len(set(together.execute.tolist())) > 1
    pooled = 0.1 * torch.arange(6)[:, None].float()
    for i in range(6):
        context = Context(pooled[i : i + 1, None], pooled[i : i + 1])
        alone = sample(FLAT, Flow(predict="x"), DDIM(), context, (1, H, A), 4, [i], [hook])
        assert alone.execute is not None
        assert alone.execute[0] == together.execute[i]


@given(
    st.integers(1, 12), st.integers(1, 3), st.floats(0, 3), st.lists(st.floats(0, 2), min_size=8, max_size=8)
)
@settings(max_examples=30, deadline=None)
def test_the_count_lies_between_the_least_and_the_chunk(
    least: int, active: int, ratio: float, values: list[float]
) -> None:
    execute = decide(gaps(*values), [Consensus(ratio, least, active)]).execute
    assert execute is not None
    assert ((execute >= min(least, H)) & (execute <= max(min(least, H), 4))).all()


def test_listening_changes_no_bit_and_costs_no_evaluation() -> None:
    net = built()
    for solver in (DDIM(), Heun()):
        for hooks in ([Consensus(least=2)], [Consensus(least=2), Consensus(1.4, least=3)]):
            free = _with_pooled(net, [], solver)
            heard = _with_pooled(net, hooks, solver)
            assert torch.equal(free.chunk, heard.chunk)
            assert torch.equal(free.nfe, heard.nfe)
            assert free.execute is None
            assert heard.execute is not None


def _with_pooled(net: nn.Module, hooks: Sequence[Hook], solver: DDIM | Heun) -> Sampled:
    return sample(net, Flow(), solver, question()[3], (B, H, A), 4, 7, hooks)


def test_an_evaluation_is_counted_as_a_pass_for_each_horizon() -> None:
    assert decide(built(sizes=replace(SIZES, token_width=1, pooled_width=1)), []).nfe.tolist() == [12] * B
    assert decide(FLAT, []).nfe.tolist() == [8] * B


@dataclass(frozen=True)
class Last(Hook):
    """Of three candidates the last."""

    @property
    def wants_candidates(self) -> int:
        return 3

    def score(self, chunks_BNHA: Tensor, field) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.arange(3.0).expand(len(chunks_BNHA), -1)


class ByTheChunk(Disagreeing):
    """Disagrees by the chunk it is given, so that candidates differ."""

    def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        output = super().outputs(x, s, t, context)
        views = tuple((chunk * x[..., :1].abs(), mask) for chunk, mask in output.views)
        return replace(output, views=views)


def test_the_count_is_of_the_candidate_that_is_chosen() -> None:
    net, hook = ByTheChunk(torch.ones(H)), Consensus(1.0, least=1)
    several = decide(net, [Last(), hook], b=8)
    first = decide(net, [hook], b=8)
    assert several.execute is not None
    assert first.execute is not None
    assert several.execute.tolist() != first.execute.tolist()
    assert torch.equal(several.chunk, several.candidates[:, 2])


def test_a_network_of_one_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the backbone Horizons"):
        decide(built(horizons=(8,), sizes=replace(SIZES, token_width=1, pooled_width=1)), [Consensus()])


@dataclass(frozen=True)
class Nothing(Hook):
    def execute(self, chunk_BHA: Tensor, field) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.tensor([3, 0, 3])


def test_a_hook_that_wants_nothing_executed_is_named() -> None:
    with pytest.raises(ValueError, match="Nothing wants 0 actions"):
        decide(FLAT, [Nothing()])
