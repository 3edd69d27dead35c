"""Backbones that claim derivatives have them; those that do not refuse by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ulna.policies.backbones.backbone import Backbone, Head, Sizes, require_head
from ulna.policies.backbones.encoder_decoder import EncoderDecoder
from ulna.policies.contexts.context import Context
from ulna.policies.parts import parts_for

SIZES = Sizes(action_dim=3, horizon=4, token_width=5, pooled_width=10, tokens=4)
ASKS = Head("chunk", times=2, forward_mode=True, second_order=True)
SMALL: dict[str, dict[str, Any]] = {
    "UNet1D": {"widths": (8, 16), "time_width": 8},
    "Transformer": {"width": 16, "depth": 2},
    "EncoderDecoder": {"width": 16, "encoder_depth": 1, "heads": 4, "ffn": 32},
    "Latent": {"inner": EncoderDecoder(16, 1, 1, 4, 32)},
    "Insulated": {"inner": EncoderDecoder(16, 1, 1, 4, 32)},
    "ResidualMLP": {"width": 16, "depth": 2, "time_width": 8},
    "Horizons": {"horizons": (2, 4)},
    "NeuralDynamics": {"basis": 2},
}
DOUBLE = torch.float64
CHUNKS = sorted(parts_for(Backbone))


def build(name: str, head: Head) -> nn.Module:
    part = parts_for(Backbone)[name]
    torch.manual_seed(0)
    return part(**SMALL.get(name, {})).build(SIZES, head)


def derivable(name: str, head: Head) -> nn.Module:
    """The network, in double precision with weights that are all in use; a test of one that refuses ends
    here, when it says its name."""
    refusal, net = "", None
    try:
        net = build(name, head).double().eval()
    except ValueError as error:
        refusal = str(error)
    if net is None:
        assert name in refusal
        assert name not in SMALL, "these have derivatives"
        pytest.skip(f"it has none: {refusal}")
    for p in net.parameters():  # those that begin at zero, too
        nn.init.normal_(p, std=0.15)
    return net


def question() -> tuple[Tensor, Tensor, Tensor, Context]:
    rng = torch.Generator().manual_seed(1)
    x, tokens = (torch.randn(s, dtype=DOUBLE, generator=rng) for s in ((2, 4, 3), (2, 2, 5)))
    s, t = torch.tensor([0.1, 0.6], dtype=DOUBLE), torch.tensor([0.4, 0.9], dtype=DOUBLE)
    return x, s, t, Context(tokens, tokens.flatten(1), present=x[:, 0].clone(), reference=x.flip(1).clone())


def jvp(f: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return cast("tuple[Tensor, Tensor]", torch.func.jvp(f, at, along))


@pytest.mark.parametrize("name", CHUNKS)
def test_forward_mode_agrees_with_central_differences(name: str) -> None:
    net = derivable(name, ASKS)
    x, s, t, context = question()
    v = torch.randn(x.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    value, along = jvp(lambda x, s: net(x, s, t, context), (x, s), (v, torch.ones_like(s)))
    h = 1e-7
    differences = (net(x + h * v, s + h, t, context) - net(x - h * v, s - h, t, context)) / (2 * h)
    torch.testing.assert_close(value, net(x, s, t, context))
    assert float(differences.detach().abs().max()) > 1e-3
    torch.testing.assert_close(along, differences, rtol=1e-4, atol=1e-5)
    _, of_time = jvp(lambda s: net(x, s, t, context), (s,), (torch.ones_like(s),))
    assert float(of_time.detach().abs().max()) > 1e-6, "the first time counts"


@pytest.mark.parametrize("name", CHUNKS)
def test_a_gradient_can_be_trained_through(name: str) -> None:
    """As energy models do: the loss is of a derivative, and its own derivative by a weight is right."""
    net = derivable(name, ASKS)
    x, s, t, context = question()
    x.requires_grad_()
    weights = [p for p in net.parameters() if p.ndim == 2]

    def slope() -> Tensor:
        (g,) = torch.autograd.grad((net(x, s, t, context) ** 2).sum(), x, create_graph=True)
        return (g**2).sum()

    # of the weight that counts most, which in a deep network the first one need not
    derivatives = zip(torch.autograd.grad(slope(), weights, allow_unused=True), weights, strict=True)
    second, weight = max(
        ((d, w) for d, w in derivatives if d is not None), key=lambda pair: float(pair[0].abs().max())
    )
    i = tuple(int(v) for v in torch.unravel_index(second.abs().argmax(), second.shape))
    assert float(second[i].abs()) > 1e-6
    values, h = [], 1e-6
    for step in (h, -2 * h):
        with torch.no_grad():
            weight[i] += step
        values.append(slope().detach())
    torch.testing.assert_close((values[0] - values[1]) / (2 * h), second[i], rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Plain:
    """A backbone of one time, without derivatives."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head())
        return nn.Identity()


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (Head(times=2), "two times, and Plain is told one"),
        (Head(forward_mode=True), "forward-mode derivatives of the network, and Plain has none"),
        (Head(second_order=True), "second-order derivatives of the network, and Plain has none"),
        (Head("energy"), "gives an energy, and Plain gives a chunk"),
    ],
)
def test_a_backbone_refuses_by_its_name_what_it_lacks(head: Head, says: str) -> None:
    assert isinstance(Plain().build(SIZES, Head()), nn.Identity)
    with pytest.raises(ValueError, match=says):
        Plain().build(SIZES, head)
