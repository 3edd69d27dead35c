"""The 1-D convolutional UNet over time of Diffusion Policy (Chi et al. 2023), conditioned by FiLM.

Down: two residual blocks a level, a strided convolution between levels. Middle: two blocks. Up: the mirror,
with the skip of each level concatenated. Each block is scaled and shifted by a linear map of [time embedding,
pooled context]. Legend: B batch, C channels, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head
from .time import LevelEmbedding, TimeEmbedding


@dataclass(frozen=True)
class UNet1D:
    """Convolutions over the actions of the chunk. The horizon must be a multiple of 2^(levels - 1)."""

    widths: tuple[int, ...] = (256, 512, 1024)
    """Channels of each level, finest first; each a multiple of groups."""
    kernel: int = 5
    """Actions that a convolution spans; odd."""
    groups: int = 8
    """Of each group normalisation."""
    time_width: int = 256
    """Of the embedding of the time; even."""
    levels: int = 0
    """0: it is told the time. Else, as in Diffusion Policy's own code and LeRobot's, the number of the level,
    the cleanest first, of so many on the squared-cosine schedule."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        horizon = sizes.horizon
        factor = 2 ** (len(self.widths) - 1)
        if horizon % factor:
            raise ValueError(
                f"UNet1D with {len(self.widths)} levels needs a horizon that is a multiple of {factor}, "
                f"not {horizon}: use --horizon {-(-horizon // factor) * factor}"
            )
        return UNet1DNet(self, sizes, head)


class UNet1DNet(nn.Module):
    def __init__(self, c: UNet1D, sizes: Sizes, head: Head) -> None:
        super().__init__()
        action_dim, self.pooled_width = sizes.action_dim, sizes.pooled_width
        if c.levels and head.times == 2:
            raise ValueError("a UNet1D that is told the number of a level knows no second time: use levels 0")
        self.time = (
            LevelEmbedding(c.time_width, c.levels)
            if c.levels
            else TimeEmbedding(c.time_width, head.times == 2)
        )
        condition = c.time_width + sizes.pooled_width

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, condition, c.kernel, c.groups)

        widths = (action_dim, *c.widths)
        last = len(c.widths) - 1
        self.down = nn.ModuleList()
        for i in range(len(c.widths)):
            step = nn.Conv1d(widths[i + 1], widths[i + 1], 3, 2, 1) if i < last else nn.Identity()
            self.down.append(
                nn.ModuleList([block(widths[i], widths[i + 1]), block(widths[i + 1], widths[i + 1]), step])
            )
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]), block(widths[-1], widths[-1])])
        self.up = nn.ModuleList()
        for i in range(last, 0, -1):
            step = nn.ConvTranspose1d(c.widths[i - 1], c.widths[i - 1], 4, 2, 1)
            self.up.append(
                nn.ModuleList(
                    [block(2 * c.widths[i], c.widths[i - 1]), block(c.widths[i - 1], c.widths[i - 1]), step]
                )
            )
        self.out = nn.Sequential(
            ConvBlock(c.widths[0], c.widths[0], c.kernel, c.groups), nn.Conv1d(c.widths[0], action_dim, 1)
        )

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        condition = torch.cat([self.time(s, t), context.pooled], dim=-1)
        x = x_BHA.transpose(1, 2)
        skips: list[Tensor] = []
        for level in self.down:
            first, second, step = cast(nn.ModuleList, level)
            x = second(first(x, condition), condition)
            skips.append(x)
            x = step(x)
        for block in self.middle:
            x = block(x, condition)
        for level in self.up:
            first, second, step = cast(nn.ModuleList, level)
            x = torch.cat([x, skips.pop()], dim=1)
            x = step(second(first(x, condition), condition))
        return self.out(x).transpose(1, 2)


class ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )


class ResidualBlock(nn.Module):
    """Convolution, FiLM, convolution, plus the input: `(B, C_in, H)` and condition `(B, D)` to `(B, C_out,
    H)`."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, groups)
        self.second = ConvBlock(outputs, outputs, kernel, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * scale + shift) + self.skip(x)
