"""What each context with a memory promises: the same alone and along a chain, and its paper's equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.datasets.features import ACTION
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.contexts.ada import AdA
from ulna.policies.contexts.aura_mem import AuraMem
from ulna.policies.contexts.context import Conditions, ContextPart
from ulna.policies.contexts.decision_mamba import DecisionMamba
from ulna.policies.contexts.decision_s4 import DecisionS4
from ulna.policies.contexts.recurrent import Recurrent
from ulna.policies.contexts.sega import SEGA
from ulna.policies.contexts.state_space import S4D, scan
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.train.loop import train
from ulna.policies.train.state import STATE_FILE

WIDTH, T, K = 8, 2, 2
PARTS = [
    Recurrent(5),
    SEGA(3, 2, 2),
    AuraMem(4),
    DecisionS4(8, 2, 3),
    DecisionMamba(8, 2, 3),
    AdA(8, 2, 2, steps=4),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def chain(links: int, b: int) -> tuple[torch.Tensor, Conditions, torch.Tensor]:
    """Encodings, conditions of one token, and where memories are empty, of L·B rows."""
    z = torch.randn(links * b, T, K, WIDTH, dtype=torch.double)
    tokens = torch.randn(links * b, 1, WIDTH, dtype=torch.double)
    fresh = torch.zeros(links, b, dtype=torch.bool)
    fresh[0] = True
    return z, Conditions(tokens, torch.ones(links * b, 1, dtype=torch.bool), tokens[:, 0]), fresh


@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_along_a_chain_is_one_decision_after_the_other(part: ContextPart) -> None:
    """Training, by FFT and scan where there is one, gives what acting gives, whose memory is carried."""
    net = part.build(WIDTH, K, T, 1, 1).double().eval()
    z, told, fresh = chain(9, 2)
    whole = net.along(z, told, fresh)
    assert whole.tokens.shape[1:] == (net.tokens, net.token_width)
    assert whole.pooled.shape[1] == net.pooled_width
    memory = None
    for i in range(9):
        rows = slice(2 * i, 2 * i + 2)
        one = net(z[rows], told.rows(rows), memory)
        torch.testing.assert_close(one.tokens, whole.tokens[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(one.pooled, whole.pooled[rows], rtol=0, atol=1e-12)
        memory = one.memory
        assert memory.shape == (2, net.memory_width)
    # what is to be forgotten is: that row is as at its beginning, the other is not
    half = net(z[:2], told.rows(slice(2)), memory, torch.tensor([True, False]))
    torch.testing.assert_close(half.pooled[0], whole.pooled[0], rtol=0, atol=1e-12)
    assert not torch.allclose(half.pooled[1], whole.pooled[1])


def test_s4d_is_its_impulse_response() -> None:
    layer = S4D(3, 2).double()
    u = torch.randn(11, 1, 3, dtype=torch.double)
    a = -np.exp(layer.log_decay.detach().numpy()) + 1j * layer.frequency.detach().numpy()
    dt = np.exp(layer.log_step.detach().numpy())[:, None]
    c = layer.c.detach().numpy() @ np.array([1, 1j])
    enters = (np.exp(a * dt) - 1) / a  # an input that is held over a step
    rows = u[:, 0].numpy()
    expected = layer.skip.detach().numpy() * rows
    for t in range(len(rows)):
        for s in range(t + 1):
            expected[t] += 2 * (c * enters * np.exp(a * dt * (t - s))).sum(1).real * rows[s]
    np.testing.assert_allclose(layer(u)[:, 0].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 33])
def test_a_scan_is_the_recurrence(steps: int) -> None:
    keep, add = torch.rand(2, steps, 3, dtype=torch.double)
    h, rows = torch.zeros(3, dtype=torch.double), []
    for a, b in zip(keep, add, strict=True):
        h = a * h + b
        rows.append(h)
    torch.testing.assert_close(scan(keep, add), torch.stack(rows), rtol=0, atol=1e-12)


def sega(**fields: object) -> Any:
    return SEGA(3, 1, 2, **fields).build(WIDTH, K, T, 0, 0).double()  # type: ignore[arg-type]


def test_segas_gate_mixes_what_was_with_what_is_new() -> None:
    gated, always = sega(), sega(gate=False)
    always.load_state_dict(gated.state_dict())
    z, _, _ = chain(1, 4)
    first = gated(z, memory=None)
    assert torch.equal(first.memory, always(z).memory), "the gate is 1 where there was nothing"
    before = torch.randn(4, 3 * WIDTH, dtype=torch.double)
    mixed, new = gated(z, memory=before).memory, always(z, memory=before).memory
    share = ((mixed - before) / (new - before)).unflatten(1, (3, WIDTH))
    torch.testing.assert_close(share, share[:, :, :1].expand_as(share))  # one gate for each token
    # the sigmoid of how well it matched: mean score over heads and observed tokens
    block, held = gated.memory_blocks[0], before.unflatten(1, (3, -1)) + gated.place
    x = held + block.own(block.norms[0](held), block.norms[0](held))[0]
    q, k = (
        t.unflatten(-1, (2, -1)).transpose(1, 2)
        for t in (
            block.across.q(block.norms[1](x)),
            block.across.kv(block.norms[2](z.flatten(1, 2))).chunk(2, -1)[0],
        )
    )
    scores = q @ k.transpose(-1, -2) / (WIDTH / 2) ** 0.5
    torch.testing.assert_close(share[..., 0], torch.sigmoid(scores.mean((1, 3))))


@pytest.mark.parametrize(
    ("fields", "learns"),
    [({"backprop": 2}, True), ({"backprop": 0}, True), ({"backprop": 1}, False), ({"gate": False}, False)],
    ids=["two decisions", "all", "released: cut at each", "no gate"],
)
def test_segas_gate_learns_where_a_gradient_goes_back(fields: dict[str, object], learns: bool) -> None:
    """The released code cuts the memory at every decision, and so never teaches its gate."""
    net = sega(**fields)
    across = net.memory_blocks[0].across
    torch.nn.init.zeros_(across.out.weight)  # what is read counts for nothing: only the gate is left
    z, _, fresh = chain(4, 2)
    net.along(z, None, fresh).tokens.square().sum().backward()
    q = across.q.weight.grad
    assert (q is not None and bool(q.any())) == learns


def aura(**fields: object) -> Any:
    net: Any = AuraMem(WIDTH, **fields).build(WIDTH, 1, 1, 0, 0)  # type: ignore[arg-type]
    with torch.no_grad():  # key, query and value are what is seen, written whole
        net.kqv.weight.copy_(torch.eye(WIDTH).repeat(3, 1))
        net.kqv.bias.zero_()
        net.rate.fill_(50.0)
    return net.double()


def test_aura_writes_by_the_delta_rule_where_its_gate_opens() -> None:
    net = aura(gate="always")
    z = 3 * torch.eye(WIDTH, dtype=torch.double)[:, None, None]
    first = net(z[:1])
    read = first.pooled[0, -WIDTH:]
    torch.testing.assert_close(read, z[0, 0, 0])  # its value for its key
    second = net(z[1:2], memory=first.memory)
    w = second.memory[0, : WIDTH**2].unflatten(0, (WIDTH, WIDTH))
    torch.testing.assert_close(w[:, :2], 3 * torch.eye(WIDTH, dtype=torch.double)[:, :2])
    again = net(2 * z[:1], memory=second.memory).memory[0, : WIDTH**2].unflatten(0, (WIDTH, WIDTH))
    torch.testing.assert_close(again[:, 0], 2 * w[:, 0])  # written over, not added to
    torch.testing.assert_close(again[:, 1:], w[:, 1:])

    net = aura()
    shut, open_ = (net.opens[-1].bias.detach().clone() + b for b in (-100.0, 100.0))
    for bias, wrote in ((shut, False), (open_, True)):
        net.opens[-1].bias.data.copy_(bias)
        context = net(z[2:3], memory=second.memory)
        assert context.wrote.tolist() == [wrote]
        same = torch.equal(context.memory[:, : WIDTH**2], second.memory[:, : WIDTH**2])
        assert same == (not wrote), "not a bit changes"
    assert 4 * AuraMem().build(WIDTH, 1, 1, 0, 0).memory_width == 4224


def test_auras_gates_keep_to_a_budget_or_pay() -> None:
    z, _, fresh = chain(20, 32)
    z = z[:, :1, :1]
    periodic = aura(gate="periodic", budget=0.2).along(z, None, fresh).wrote.unflatten(0, fresh.shape)
    assert periodic[:, 0].nonzero().flatten().tolist() == [0, 5, 10, 15]
    surprise = aura(gate="surprise", budget=0.2)
    for _ in range(30):
        surprise.along(z, None, fresh)
    wrote = surprise.eval().along(z, None, fresh).wrote.unflatten(0, fresh.shape).double()
    assert abs(float(wrote.mean()) - 0.2) < 0.05
    learned = aura(write_cost=0.5)
    context = learned.along(z, None, fresh)
    assert context.cost.shape == (640,)
    assert ((context.cost > 0.25) == context.wrote).all(), "half the price is a gate that is half open"
    context.pooled.sum().backward()
    assert learned.opens[0].weight.grad.any(), "the action's error teaches the gate"


def test_the_checkpoint_has_the_threshold_that_training_moved(tmp_path: Path) -> None:
    write_store(tmp_path / "data")
    recipe = override(small("aura_mem", steps=3), {"context.gate": "surprise"})
    train(recipe, tmp_path / "data", tmp_path / "out", device="cpu", track=())
    name = "context_net.threshold"
    saved = load_checkpoint(tmp_path / "out").state_dict()[name]
    assert saved
    assert saved == load_file(tmp_path / "out" / STATE_FILE)[f"model/{name}"]


def test_the_price_of_writing_grows_over_the_training() -> None:
    recipe = override(RECIPES["aura_mem"](FEATURES), {"context.chain": 2, "context.write_cost": 100.0})
    rng = np.random.default_rng(0)
    policy = Policy(
        recipe, FEATURES, {k: vector_stats(rng.normal(size=(50, *f.shape))) for k, f in FEATURES.items()}
    )
    batch = {
        **{k: torch.randn(2, 2, recipe.n_obs_steps, *f.shape) for k, f in FEATURES.items() if k != ACTION},
        ACTION: torch.randn(2, 2, recipe.horizon, *FEATURES[ACTION].shape),
        "mask": torch.tensor([[True, True], [True, False]])[..., None].expand(2, 2, recipe.horizon),
        "fresh": torch.tensor([[True, False]] * 2),
    }

    def loss(progress: float) -> float:
        torch.manual_seed(0)
        return float(policy.loss(batch, progress).detach())

    context: Any = policy.examples(batch)[1]
    cost = context.cost.detach()
    counted = float(cost[[0, 1, 2]].mean())  # links one after the other; the last is beyond its episode
    assert loss(1.0) - loss(0.0) == pytest.approx(counted, rel=1e-4)
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5 * counted, rel=1e-4)
