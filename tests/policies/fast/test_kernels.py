"""The kernels and the networks made of them against torch's own: on a GPU where there is one, else in
Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.backbones.transformer import Transformer
from ulna.policies.backbones.unet1d import UNet1D
from ulna.policies.contexts.context import Context
from ulna.policies.fast import networks
from ulna.policies.objectives.objective import full

pytest.importorskip("triton")
from ulna.policies.fast import kernels

# of Triton's interpreter
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def without_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE == "cpu":
        monkeypatch.setattr(kernels, "PROGRAMS", 4)
    with torch.no_grad():
        yield


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize(
    ("c", "n", "taps", "stride", "length"),
    [(64, 48, 5, 1, 8), (7, 32, 5, 1, 8), (64, 64, 3, 2, 8), (128, 5, 1, 1, 6), (64, 64, 5, 1, 1)],
)
def test_a_convolution_is_torchs(c: int, n: int, taps: int, stride: int, length: int) -> None:
    x, weight, bias = normal(2, c, length), normal(n, c, taps, seed=1) / c**0.5, normal(n, seed=2)
    rows = x.permute(0, 2, 1).reshape(2 * length, c).contiguous()
    parts, none = kernels.convolution(rows, weight.permute(0, 2, 1).contiguous(), bias, length, stride)
    want = F.conv1d(x.cpu(), weight.cpu(), bias.cpu(), stride, taps // 2).to(DEVICE)
    assert none is None
    ours = kernels.finish(parts, want.shape[2])
    close(ours.reshape(2, -1, n).permute(0, 2, 1), want)


@pytest.mark.parametrize("length", [4, 6])
def test_a_block_ends_in_one_kernel(length: int) -> None:
    """Bias, group normalisation, Mish, FiLM, and the skip, which was multiplied beside the convolution."""
    c, n = 64, 48
    x, weight, bias = normal(2, c, length), normal(n, c, 5, seed=1) / c**0.5, normal(n, seed=2)
    skip, skip_bias = normal(n, c, 1, seed=3) / c**0.5, normal(n, seed=4)
    of_time, told = normal(1, 2 * n, seed=5), normal(2, 2 * n, seed=6)
    scale, offset = normal(n, seed=7), normal(n, seed=8)
    rows = x.permute(0, 2, 1).reshape(2 * length, c).contiguous()
    parts, beside = kernels.convolution(
        rows,
        weight.permute(0, 2, 1).contiguous(),
        bias,
        length,
        1,
        (skip.permute(0, 2, 1).contiguous(), skip_bias),
    )
    room = torch.full((2 * length, 100), torch.nan, device=DEVICE)
    kernels.finish(parts, length, (scale, offset, 1e-5, 8), (of_time, told), beside, room[:, 10 : 10 + n])
    cpu = [v.cpu() for v in (x, weight, bias, skip, skip_bias)]
    film = (of_time + told)[..., None].cpu()
    want = F.mish(F.group_norm(F.conv1d(cpu[0], cpu[1], cpu[2], 1, 2), 8, scale.cpu(), offset.cpu()))
    want = want * film[:, :n] + film[:, n:] + F.conv1d(cpu[0], cpu[3], cpu[4])
    close(room[:, 10 : 10 + n].reshape(2, length, n).cpu(), want.permute(0, 2, 1))
    assert room[:, :10].isnan().all()
    assert room[:, 10 + n :].isnan().all()


@pytest.mark.parametrize("c", [7, 64, 700, 1100])
@pytest.mark.parametrize("before", ["", "mish"])
def test_a_product_is_torchs(c: int, before: str) -> None:
    x, weight, bias, add = normal(10, c), normal(40, c, seed=1) / c**0.5, normal(40, seed=2), normal(10, 40)
    want = F.linear(F.mish(x.cpu()) if before else x.cpu(), weight.cpu(), bias.cpu())
    close(kernels.product(x, weight, bias, before=before).cpu(), want)
    close(kernels.product(x, weight, bias, before=before, add=add).cpu(), want + add.cpu())


def test_a_product_begins_and_ends_with_more() -> None:
    norm = nn.LayerNorm(64).to(DEVICE)
    norm.weight.data, norm.bias.data = normal(64, seed=3), normal(64, seed=4)
    x, weight, bias, places = normal(10, 64), normal(40, 64, seed=1) / 8, normal(40, seed=2), normal(5, 40)
    ours = kernels.product(x, weight, bias, before=norm, after="gelu", add=places)
    cpu = [v.cpu() for v in (norm.weight, norm.bias, weight, bias, places)]
    want = F.gelu(F.linear(F.layer_norm(x.cpu(), (64,), cpu[0], cpu[1]), cpu[2], cpu[3])) + cpu[4].repeat(
        2, 1
    )
    close(ours.cpu(), want)


SIZES = Sizes(5, 4, 12, 24, 8)


def nets() -> list[tuple[str, Any]]:
    unet = UNet1D(widths=(8, 16), kernel=3, groups=4, time_width=16)
    plain, causal = (Transformer(width=32, depth=1, heads=2, causal=causal) for causal in (False, True))
    return [("unet", unet), ("transformer", plain), ("causal", causal)]


@pytest.mark.parametrize(("name", "backbone"), nets(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_network_is_the_plain_one(name: str, backbone: Any) -> None:
    torch.manual_seed(0)
    net = backbone.build(SIZES, Head()).to(DEVICE).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = normal(2, 4, 5)
    mask = torch.tensor([[True, False], [True, True]], device=DEVICE)
    contexts = [Context(normal(2, 2, 12, seed=i), normal(2, 24, seed=i)) for i in range(3)]
    if name != "unet":
        contexts.append(Context(contexts[0].tokens, contexts[0].pooled, mask))
    contexts = contexts[-1:] if DEVICE == "cpu" else contexts  # the interpreter is slow
    times = [full(0.3, x), full(0.6, x), torch.tensor([0.1, 0.9], device=DEVICE)]
    times = times[2 if name == "unet" else 1 :] if DEVICE == "cpu" else times
    want = [net(x, t, t, c) for t in times for c in contexts]
    plain = net.forward
    networks.hasten(net)
    assert net.forward != plain
    for _ in range(2):  # what is kept of the first round is used in the second
        given = [net(x, t, t, c) for t in times for c in contexts]
        for ours, theirs in zip(given, want, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < (1e-5 if DEVICE == "cpu" else 1e-3)
    after = net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items()), "a checkpoint is what it was"


def test_gradients_go_through_the_plain_network() -> None:
    torch.manual_seed(0)
    net = UNet1D(widths=(8, 16), kernel=3, groups=4, time_width=16).build(SIZES, Head()).to(DEVICE).eval()
    networks.hasten(net)
    x, context = normal(1, 8, 5).requires_grad_(), Context(normal(1, 2, 12), normal(1, 24))
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(net(x, full(0.3, x), full(0.3, x), context).sum(), x)
    assert gradient.abs().sum() > 0


def test_where_a_kernel_does_not_work_the_network_stays() -> None:
    net = Transformer(width=48, depth=1, heads=4).build(SIZES, Head()).to(DEVICE).eval()  # heads of 12
    plain = net.forward
    networks.hasten(net)
    assert net.forward == plain
