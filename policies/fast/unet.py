"""`UNet1D` for few rows: the same network in the kernels of `kernels.py`.

What the blocks are told is a sum of a part of the time and a part of the context, since the Mish before the
linear map works on each element: the context's is made once a decision. Legend: B batch, H horizon, A action
dimensions, F scales and shifts of all blocks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones.unet1d import ConvBlock, ResidualBlock, UNet1DNet
from ..contexts.context import Context
from . import kernels
from .once import Once, Times


class UNetRows:
    """Call it as the network whose weights it reads; those of convolutions are laid out anew in place, as the
    kernels read them."""

    def __init__(self, net: UNet1DNet) -> None:
        self.net = net
        for module in net.modules():
            if isinstance(module, nn.Conv1d):
                module.weight.data = _channels_last(module.weight.data).permute(0, 2, 1)
        self.blocks = [m for m in net.modules() if isinstance(m, ResidualBlock)]
        films = [cast(nn.Linear, b.film[1]) for b in self.blocks]
        width = int(net.time.mlp[2].out_features)  # type: ignore[arg-type]
        weight = torch.cat([f.weight.data for f in films])
        self.of_time, self.of_context = weight[:, :width].contiguous(), weight[:, width:].contiguous()
        self.film_bias = torch.cat([f.bias.data for f in films])
        ends = torch.tensor([len(f.weight) for f in films]).cumsum(0).tolist()
        self.film = dict(zip(self.blocks, zip([0, *ends[:-1]], ends, strict=True), strict=True))
        self.steps_up = [_doubled(cast(Any, level)[2]) for level in net.up]
        self.told, self.times = Once(self._told), Times(self._time)

    def __call__(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        net, (b, h, _) = self.net, x_BHA.shape
        film = (self.times(s, t), self.told(context.pooled))

        def block(of: Any, x: Tensor, length: int, out: Tensor | None = None) -> Tensor:
            first, last = self.film[of]
            own = (film[0][:, first:last], film[1][:, first:last])
            beside = None if isinstance(of.skip, nn.Identity) else of.skip
            parts, skip = _convolution(of.first[0], x, length, beside)
            inner = kernels.finish(parts, length, _norm(of.first), own)
            parts, _ = _convolution(of.second[0], inner, length)
            return kernels.finish(parts, length, _norm(of.second), add=skip or x, out=out)

        x, length, joined = x_BHA.reshape(b * h, -1), h, []
        for i, level in enumerate(net.down):
            one, two, step = cast(Any, level)
            c = two.second[0].out_channels
            join = x.new_empty(b * length, 2 * c)  # what comes up again, and the skip beside it
            x = block(two, block(one, x, length), length, join[:, c:])
            joined.append(join)
            if i < len(net.down) - 1:
                x = kernels.finish(_convolution(step, x, length)[0], length // 2)
                length //= 2
        for i, middle in enumerate(net.middle):
            c = joined[-1].shape[1] // 2
            x = block(middle, x, length, joined[-1][:, :c] if i else None)
        for level, (weight, bias) in zip(net.up, self.steps_up, strict=True):
            one, two, _ = cast(Any, level)
            x = block(two, block(one, joined.pop(), length), length)
            step, _ = kernels.convolution(x, weight, bias, length)
            c = joined[-1].shape[1] // 2
            out = joined[-1][:, :c] if len(joined) > 1 else None
            x = kernels.finish(step, length, out=out, fold=2)
            length *= 2
        last, out = cast(ConvBlock, net.out[0]), cast(nn.Conv1d, net.out[1])
        x = kernels.finish(_convolution(last[0], x, length)[0], length, _norm(last))
        return kernels.product(x, _channels_last(out.weight)[:, 0], cast(Tensor, out.bias)).reshape(
            x_BHA.shape
        )

    def _time(self, s: Tensor, t: Tensor) -> Tensor:
        return kernels.product(self.net.time(s, t), self.of_time, self.film_bias, before="mish")

    def _told(self, pooled: Tensor) -> Tensor:
        return kernels.product(pooled, self.of_context, torch.zeros_like(self.film_bias), before="mish")


def _convolution(
    conv: Any, x: Tensor, length: int, skip: Any = None
) -> tuple[kernels.Parts, kernels.Parts | None]:
    beside = None if skip is None else (_channels_last(skip.weight), skip.bias)
    weight = _channels_last(conv.weight)  # as it lies in memory: nothing is copied
    return kernels.convolution(x, weight, conv.bias, length, conv.stride[0], beside)


def _norm(block: ConvBlock) -> tuple[Tensor, Tensor, float, int]:
    norm = cast(nn.GroupNorm, block[1])
    return norm.weight, norm.bias, norm.eps, norm.num_groups


def _channels_last(weight: Tensor) -> Tensor:
    """`(N, C, taps)` to `(N, taps, C)`."""
    return weight.detach().permute(0, 2, 1).contiguous()


def _doubled(step: nn.ConvTranspose1d) -> tuple[Tensor, Tensor]:
    """The step up, a transposed convolution of 4 taps and stride 2, as one of 3 taps and stride 1 whose
    result holds two actions side by side: weights `(2·N, 3, C)`, bias `(2·N,)`."""
    before, here, after, beyond = step.weight.data.permute(2, 1, 0)  # by tap, (N, C)
    none = torch.zeros_like(here)
    even, odd = torch.stack([beyond, here, none], 1), torch.stack([none, after, before], 1)
    bias = cast(Tensor, step.bias).data
    return torch.cat([even, odd]).contiguous(), torch.cat([bias, bias])
