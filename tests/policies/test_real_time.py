"""Chunks that go on from the one that is executed: guidance against finite differences and on a density whose
answer is known, warm starts, prefixes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, WITH_IMAGE, write_store
from contracts.recipes import small
from torch import Tensor, nn

from ulna.datasets.features import ACTION, ENVIRONMENT, PAST, STATE
from ulna.datasets.stats import vector_stats
from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.token_times import TokenTimes
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.codec import RELATIVE
from ulna.policies.conditions.label import Label
from ulna.policies.contexts.context import Context
from ulna.policies.field import Field, Start
from ulna.policies.hooks.ask import Ask, Compose
from ulna.policies.hooks.guidance import CFG
from ulna.policies.hooks.prefix import Prefix
from ulna.policies.hooks.rtc import RTC, guidance, weights
from ulna.policies.hooks.rti import RTI
from ulna.policies.inverse_dynamics import InverseDynamics
from ulna.policies.objectives.diffusion import Diffusion
from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Objective
from ulna.policies.objectives.prefixed import Prefixed
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.sampler import Sampled, sample, stream
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.solvers.ddim import DDIM
from ulna.policies.train.loop import train

B, H, A = 24, 12, 2
LAGS = torch.arange(H)[:, None] - torch.arange(H)
SMOOTH = torch.exp(-0.5 * (LAGS / 3.0) ** 2).double() + 1e-4 * torch.eye(H).double()


class Smooth(nn.Module):
    """What a perfect network says of smooth random chunks: their mean given a noisy one, or its noise."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says = says

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        tau = float(t[0])
        alpha, sigma = tau, 1 - tau
        if self.says == "eps":
            alpha, sigma = (v / math.hypot(tau, 1 - tau) for v in (alpha, sigma))
        gain = alpha * SMOOTH @ torch.linalg.inv(alpha**2 * SMOOTH + sigma**2 * torch.eye(H).double())
        clean = torch.einsum("ij,bja->bia", gain.float(), x)
        return clean if self.says == "x" else (x - alpha * clean) / sigma


class Plain:
    """A policy whose actions are in the network's units."""

    n_past_actions = 0

    def context(self, request: Request, drop: bool = False) -> Context:
        raise AssertionError

    def normalise_action(self, action: Tensor, observation: Any) -> Tensor:
        return action

    def normalise_past(self, past_BdA: Tensor, observation: Any) -> Tensor:
        return past_BdA

    def denormalise_action(self, chunk: Tensor, observation: Any) -> Tensor:
        return chunk


MODELS: dict[str, tuple[Objective, nn.Module]] = {
    "flow": (Flow(predict="x"), Smooth("x")),
    "diffusion": (Diffusion(), Smooth("eps")),
}
CONTEXT = Context(torch.zeros(B, 1, 1), torch.zeros(B, 1))


def field_of(model: str, request: Request, steps: int = 10) -> Field:
    objective, net = MODELS[model]
    path = objective.path(steps)
    field = Field(net, objective, path, CONTEXT, request, 1, Plain())
    noise = torch.randn(B, H, A, generator=torch.Generator().manual_seed(3))
    field.start = Start(path.sigma[0] * noise, noise)
    return field


def drawn(model: str, hooks: list[Any], request: Request, seed: int = 1, steps: int = 10) -> Sampled:
    objective, net = MODELS[model]
    return sample(
        net, objective, DDIM(), CONTEXT, (B, H, A), steps, seed, hooks, request=request, policy=Plain()
    )


def smooth_chunks(seed: int) -> Tensor:
    noise = torch.randn(B, H, A, generator=torch.Generator().manual_seed(seed)).double()
    return torch.einsum("ij,bja->bia", torch.linalg.cholesky(SMOOTH), noise).float()


# where diffusion begins there is next to no signal, of which float32 leaves no difference to be measured
@pytest.mark.parametrize("left", [H - 3, H, 1, H + 2])
@pytest.mark.parametrize(
    ("model", "level"), [("flow", 0), ("flow", 4), ("flow", 9), ("diffusion", 2), ("diffusion", 9)]
)
def test_the_push_is_the_vector_jacobian_product(model: str, level: int, left: int) -> None:
    """left: actions of the last chunk; where the rest of it is shorter than a chunk, what it is padded with
    has no weight, as in the paper, which pads with zeros. It may be shorter than the delay."""
    before = torch.cat([smooth_chunks(7), smooth_chunks(8)], dim=1)[:, :left]
    request, d, known = Request({}, previous=before, delay=2), min(2, left), min(left, H)
    field = field_of(model, request)
    hook, rng = RTC(), stream([0], "x", torch.device("cpu"))
    assert field.start is not None
    a = field.start.a
    at = field.path[level]
    plain, pushed = field(a, level), hook.guide(field, rng)(a, level)
    assert torch.isfinite(pushed.x).all()
    target = torch.cat([before[:, :known], torch.zeros(B, H - known, A)], dim=1)
    error = weights(H, d, known)[:, None] * (target - plain.x)
    # the network is linear here, so that a difference of one is exact: row i of the transposed Jacobian
    product = torch.zeros_like(a)
    for i in range(H):
        nudge = torch.zeros_like(a)
        nudge[:, i] = 1
        column = field(a + nudge, level).x - plain.x  # by the chunk on its own path
        product[:, i] = (column * error).sum(1)
    expected = min(5.0, guidance(at.tau)) * (at.alpha + at.sigma) * product
    scale = float(expected.abs().max())
    torch.testing.assert_close(pushed.velocity - plain.velocity, expected, atol=1e-3 * scale, rtol=0)
    # the chunk is what the path says, whatever is believed of it
    torch.testing.assert_close(at.alpha * pushed.x + at.sigma * pushed.eps, a, atol=1e-4, rtol=1e-4)
    identity = replace(hook, jacobian="identity").guide(field, rng)(a, level)
    torch.testing.assert_close(
        identity.velocity - plain.velocity, min(5.0, guidance(at.tau)) * error, atol=1e-4, rtol=1e-4
    )


def test_the_mask_is_whole_and_then_falls_to_nothing_where_the_last_chunk_ends() -> None:
    w = weights(10, 3, 8)
    assert w[:3].tolist() == [1, 1, 1]
    assert w[8:].tolist() == [0, 0]
    c = torch.tensor([5, 4, 3, 2, 1]) / 6
    torch.testing.assert_close(w[3:8], c * torch.expm1(c) / (math.e - 1))
    assert weights(4, 4, 4).tolist() == [1, 1, 1, 1]
    assert (guidance(0.0), guidance(1.0)) == (math.inf, math.inf)
    assert guidance(0.5) == pytest.approx(2)


@pytest.mark.parametrize("model", MODELS)
def test_a_chunk_goes_on_from_the_last_one(model: str) -> None:
    """Both kinds of guidance bring the beginning of the chunk to what is executed. The true product also
    leaves the rest as smooth as it would be, which the identity does not."""
    d, executed = 4, smooth_chunks(7)[:, 2:]
    request = Request({}, previous=executed, delay=d)

    def measure(hooks: list[Any]) -> tuple[float, float, float]:
        chunk = drawn(model, hooks, request).chunk
        prefix = (chunk[:, :d] - executed[:, :d]).pow(2).mean().sqrt()
        jerk = torch.cat([executed[:, :d], chunk[:, d:]], dim=1).diff(n=3, dim=1).abs()
        return float(prefix), float(jerk[:, d - 3 : d].mean()), float(jerk[:, d:].mean())

    none, identity, true = map(measure, ([], [RTC(jacobian="identity")], [RTC()]))
    assert max(true[0], identity[0]) < 0.08 * none[0], "error of the prefix"
    assert true[1] < 0.95 * identity[1] < 0.2 * none[1], "steps of the acceleration where it takes over"
    assert true[2] < 1.1 * none[2] < 0.9 * identity[2], "and after that"


def test_without_a_last_chunk_or_weight_nothing_is_pushed() -> None:
    for model in MODELS:
        base = drawn(model, [], Request({}))
        for hooks, request in [
            ([RTC()], Request({})),
            ([RTI()], Request({})),
            ([RTC(beta=0)], Request({}, previous=smooth_chunks(1), delay=3)),
        ]:
            other = drawn(model, hooks, request)
            assert torch.equal(other.chunk, base.chunk)
            assert torch.equal(other.nfe, base.nfe)


def test_a_warm_start_takes_the_last_steps_only() -> None:
    before = smooth_chunks(7)
    for model in MODELS:
        request = Request({}, previous=before[:, 1:])
        warm = drawn(model, [RTI(steps=3)], request)
        assert set(warm.nfe.tolist()) == {3}
        cold = drawn(model, [], request)
        shifted = torch.cat([before[:, 1:], before[:, -1:]], dim=1)
        assert (warm.chunk - shifted)[:, :-2].abs().mean() < 0.3 * (cold.chunk - shifted)[:, :-2].abs().mean()
        noisy = [drawn(model, [RTI(3, noise=True)], request, seed).chunk for seed in (1, 2)]
        assert not torch.equal(*noisy)
        assert torch.equal(warm.chunk, drawn(model, [RTI(3)], request, 2).chunk), "nothing is drawn"
        # more steps than there are: all of them, from noise
        assert torch.equal(drawn(model, [RTI(steps=99)], request).chunk, cold.chunk)


STATS = {k: vector_stats(np.random.default_rng(0).normal(size=(50, *f.shape))) for k, f in FEATURES.items()}
STATS[RELATIVE] = vector_stats(np.random.default_rng(1).normal(size=(50, 16, 3)))


def observation(rows: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {k: torch.randn(rows, 2, *f.shape, generator=rng) for k, f in FEATURES.items() if k != ACTION}


@pytest.mark.parametrize("codec", ["Absolute", "Relative", "Delta"])
def test_the_last_chunk_is_in_the_actions_units_and_its_past_was_sent(codec: str) -> None:
    """With any codec, the guided chunk comes near to what is left of the last one."""
    torch.manual_seed(0)
    changes = {"codec": codec, "n_past_actions": 2, "objective.predict": "velocity"}
    policy = Policy(override(small("flow"), changes), FEATURES, STATS).eval()
    seen, past = observation(3), torch.randn(3, 2, 3)
    free = policy.sample(Request(seen, 4, past))
    wanted = free.chunk[:, 2:] + 0.3
    request = Request(seen, 4, past, previous=wanted[:, :9], delay=5)
    held = policy.sample(request, [RTC()])
    error = (held.chunk - free.chunk - 0.3)[:, 2:7].abs().mean()
    assert error < 0.2
    assert set(held.nfe.tolist()) == {10}
    assert held.chunk.shape == free.chunk.shape
    many = policy.sample(replace(request, seed=[4, 4, 4]), [RTC(), _Two()])
    torch.testing.assert_close(many.candidates[:, 0], policy.sample(
        replace(request, seed=[4, 4, 4]), [RTC()]).chunk, atol=1e-4, rtol=1e-4)  # fmt: skip


class _Two(RTC):
    """Wants another candidate, and nothing else."""

    def __init__(self) -> None:
        object.__setattr__(self, "beta", 0.0)
        object.__setattr__(self, "jacobian", "true")

    @property
    def wants_candidates(self) -> int:
        return 2


def test_policies_without_noise_refuse() -> None:
    recipe = small("regression_mlp")
    for name, objective in (("imc", "IMC"), ("vq_bet", "VQBeT"), ("openvla", "NextToken")):
        with pytest.raises(ValueError, match=f"the {objective} of the recipe {name} has no such way"):
            RTC().require(small(name, WITH_IMAGE))
    RTC().require(small("ebt"))
    for hook in (RTC(), RTI(), Prefix()):
        with pytest.raises(ValueError, match=f"{type(hook).__name__} goes on .*InverseDynamics"):
            hook.require(replace(small("rtc_flow"), codec=InverseDynamics()))
    for hook in (RTC(), RTI()):
        with pytest.raises(ValueError, match="Regression"):
            hook.require(recipe)
        hook.require(small("flow"))
        hook.require(small("diffusion_unet"))
    with pytest.raises(ValueError, match="train the recipe rtc_flow"):
        Prefix().require(small("flow"))
    with pytest.raises(ValueError, match="beta"):
        RTC(beta=-1)
    with pytest.raises(ValueError, match="at least 1 step"):
        RTI(steps=0)
    with pytest.raises(ValueError, match="wrap it, --backbone TokenTimes"):
        Policy(override(small("flow"), {"objective": "Prefixed"}), FEATURES, STATS)
    with pytest.raises(ValueError, match="leave nothing"):
        Prefixed(most=16).draw(torch.zeros(1, 16, 2), 0.0, None)


# ------------------------------------------------------------------ prefixes that were trained
@pytest.mark.parametrize("backbone", [ResidualMLP(32, 1), Transformer(16, 1, 2)])
def test_what_is_given_is_seen_clean_and_costs_no_loss(backbone: Any) -> None:
    torch.manual_seed(0)
    objective = Prefixed(Flow(predict="x", time="uniform"), most=6)
    net = TokenTimes(backbone).build(Sizes(2, 8, 3, 3), objective.needs)
    context, chunk = Context(torch.randn(5, 1, 3), torch.randn(5, 3)), torch.randn(5, 8, 2)
    draw = objective.draw(chunk, 0.0, torch.Generator().manual_seed(1))
    lengths = draw.more["prefix"]
    given = torch.arange(8) < lengths[:, None]
    error = objective.losses(net, chunk, context, draw).error
    assert (error[given] == 0).all()
    # every chunk weighs alike, however much of it is given
    plain = Flow(predict="x", time="uniform")
    inputs: list[tuple[Tensor, Tensor]] = []

    class Heard(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, c: Context) -> Tensor:
            inputs.append((x, t))
            return torch.zeros_like(x)

    whole = objective.losses(Heard(), chunk, context, draw).error
    x, t = inputs[0]
    assert torch.equal(x[given], chunk[given])
    assert (t[given] == 1).all()
    assert torch.equal(t[~given], draw.tau[:, None].expand(5, 8)[~given])
    unmasked = plain.losses(Heard(), chunk, context, replace(draw, more={})).error
    ratio = whole[~given] / unmasked[~given]
    torch.testing.assert_close(ratio[:, 0], (8 / (8 - lengths))[:, None].expand(5, 8)[~given])
    drawn_lengths = {int(n) for s in range(20) for n in objective.draw(chunk, 0, _rng(s)).more["prefix"]}
    assert drawn_lengths == set(range(7))


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_backbone_of_two_times_is_refused_a_time_for_each_action() -> None:
    with pytest.raises(ValueError, match="two times"):
        TokenTimes().build(Sizes(2, 8, 3, 3), Head(times=2, token_times=True))
    with pytest.raises(ValueError, match="another TokenTimes"):
        TokenTimes(TokenTimes()).build(Sizes(2, 8, 3, 3), Head(token_times=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtc")
    write_store(folder / "data")
    return train(small("rtc_flow"), folder / "data", folder / "out", device="cpu", track=()).checkpoint


def test_a_trained_policy_begins_with_what_it_is_given(trained: Path) -> None:
    policy = LocalPolicy(trained)
    values = {k: v[0].numpy() for k, v in observation(1).items()}
    options = {"steering": [{"part": "Prefix"}]}
    first = policy.infer(Request(values, 5).to_wire())
    previous = first["actions"][3:]
    request = Request(values, 6, previous=previous, delay=4, options=options)
    reply = policy.infer(request.to_wire())
    np.testing.assert_allclose(reply["actions"][:4], previous[:4], atol=1e-4)
    assert reply["nfe"] == first["nfe"]
    free = policy.infer(Request(values, 6).to_wire())
    assert np.abs(reply["actions"] - free["actions"])[4:].max() > 1e-6, "the rest knows of it"
    for idle in (replace(request, delay=0), replace(request, previous=None)):
        np.testing.assert_array_equal(policy.infer(idle.to_wire())["actions"], free["actions"])
    with pytest.raises(BadRequest, match="not trained to go on"):
        LocalPolicy.of_options(_stock(trained), options)


@pytest.mark.parametrize(
    "hooks",
    [
        (Prefix(), CFG(1.5)),
        (Prefix(), Compose(asks=(f"{ENVIRONMENT}=0.5",))),
        (Prefix(), Ask(set=(f"{ENVIRONMENT}=0.5",))),
        (_Two(), Prefix(), CFG(1.5)),
    ],
    ids=lambda hooks: " ".join(type(h).__name__ for h in hooks),
)
def test_a_prefix_is_kept_whatever_else_is_asked_of_the_policy(hooks: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    recipe = replace(small("rtc_flow"), conditions=(Label(ENVIRONMENT),))
    policy = Policy(recipe, FEATURES, STATS).eval()
    previous = torch.full((2, 9, 3), 0.3)
    chunk = policy.sample(Request(observation(2), [4, 5], previous=previous, delay=4), hooks).candidates
    torch.testing.assert_close(chunk[:, :, :4], torch.full_like(chunk[:, :, :4], 0.3), atol=1e-4, rtol=0)


def _stock(folder: Path) -> LocalPolicy:
    """The same weights, as if they were of a recipe that knows no prefixes."""
    policy = LocalPolicy(folder)
    policy.policy.recipe = small("flow")
    return policy


def test_many_are_answered_as_each_alone(trained: Path) -> None:
    local, rng = LocalPolicy(trained), np.random.default_rng(2)
    seen = observation(3)
    for part in ("RTC", "RTI", "Prefix"):
        requests = [
            Request(
                {k: v[i].numpy() for k, v in seen.items()},
                i,
                previous=rng.normal(size=(9, 3)),
                delay=3,
                options={"steering": [{"part": part}]},
            )
            for i in range(3)
        ]
        assert len({r.kind for r in requests}) == 1
        answers = BatchPolicy(local).decide(requests)
        for request, chunk, nfe in zip(requests, answers.chunks, answers.nfe, strict=True):
            alone = local.infer(request.to_wire())
            np.testing.assert_allclose(chunk, alone["actions"], atol=1e-4)
            assert nfe == alone["nfe"]
    kinds = {
        replace(requests[0], **change).kind
        for change in (
            {},
            {"delay": 2},
            {"previous": None},
            {"previous": np.zeros((2, 3))},
            {"memory": 1},
            {"past": np.zeros((1, 3))},
        )
    }
    assert len(kinds) == 6
    assert PAST not in seen
    assert STATE in seen
