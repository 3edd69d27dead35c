"""Networks of a policy that runs on a GPU, few rows at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.transformer import TransformerNet
from ..backbones.unet1d import UNet1DNet
from ..contexts.context import Context

log = logging.getLogger("ulna.fast")

MOST_ROWS = 64  # actions of all chunks together: beyond, the libraries' kernels are as fast


def hasten(policy: nn.Module) -> None:
    """Let the networks in `policy` that have kernels of their own use them, where a decision has few rows and
    nothing is differentiated. Where the kernels do not work, which a trial shows, all stays as it is. The
    weights must stay as they are from now on."""
    for module in policy.modules():
        # what is derived from them computes otherwise
        if type(module) is UNet1DNet or type(module) is TransformerNet:
            _hasten(module)


def _hasten(net: UNet1DNet | TransformerNet) -> None:
    try:
        fast = _rows(net)
        error = _difference(net, fast)
    except Exception as reason:  # noqa: BLE001  no compiler, no Triton, a card that it does not know, odd sizes
        log.warning("%s runs on the libraries' kernels: %s", type(net).__name__, str(reason)[:200])
        return
    if not error < 1e-3:
        log.warning("%s runs on the libraries' kernels: ours differ by %.1e", type(net).__name__, error)
        return
    plain = net.forward

    def forward(x_BHA: Tensor, s: Tensor, t: Tensor, context: Context, *more: Any, **others: Any) -> Tensor:
        rows = x_BHA.shape[0] * x_BHA.shape[1]
        few = rows <= MOST_ROWS and x_BHA.dtype == torch.float32
        few = few and (not isinstance(net, TransformerNet) or x_BHA.shape[1] == len(net.action_positions))
        if few and not (more or others or net.training or torch.is_grad_enabled()):
            return fast(x_BHA, s, t, context)
        return plain(x_BHA, s, t, context, *more, **others)

    net.forward = forward  # type: ignore[method-assign]


def _rows(net: UNet1DNet | TransformerNet) -> Callable[..., Tensor]:
    if isinstance(net, UNet1DNet):
        from .unet import UNetRows

        return UNetRows(net)
    from .transformer import TransformerRows

    return TransformerRows(net)


@torch.no_grad()
def _difference(net: UNet1DNet | TransformerNet, fast: Callable[..., Tensor]) -> float:
    """Between both, on a random question: the size of the difference over that of the answer."""
    weight = next(net.parameters())
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(weight)

    if isinstance(net, UNet1DNet):
        actions, horizon = cast(nn.Conv1d, net.out[1]).out_channels, 1 << len(net.up) << 1
        context = Context(normal(1, 1, 1), normal(1, net.pooled_width))
    else:
        horizon, actions = len(net.action_positions), net.actions_in.in_features
        context = Context(normal(1, 2, net.tokens_in.in_features), normal(1, 1))
    x, tau = normal(1, horizon, actions), torch.full((1,), 0.3).to(weight)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        want = net(x, tau, tau, context)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return float((fast(x, tau, tau, context) - want).norm() / want.norm())
