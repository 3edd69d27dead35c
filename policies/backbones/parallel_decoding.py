"""The language model gives a whole chunk in one pass (OpenVLA-OFT, Kim, Finn and Liang 2025, arXiv
2502.19645).

Legend: B batch, H horizon, A action dimensions, D width of the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.language import Reader
from ..contexts.context import Context
from .action_tokens import what_was_read, writing_model
from .backbone import Head, Sizes, require_head

TIMES = 32  # sinusoids of the level of noise


@dataclass(frozen=True)
class ParallelDecoding:
    """After what was read, the language model is given an empty token for each element of the chunk, which
    see all that was read and each other; of what it makes of an action's tokens, side by side, a head of
    residual blocks gives the action. For the context `CachedPrefix` and a language model that `gives` words,
    and as published for `Regression`; an objective that begins with noise has it in the tokens, which are
    empty where there is none."""

    width: int = 4096
    """Hidden units of the head."""
    blocks: int = 2
    """Residual blocks of the head."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", token_times=True))
        return ParallelDecodingNet(self, sizes, writing_model(self, sizes))


class ParallelDecodingNet(nn.Module):
    def __init__(self, c: ParallelDecoding, sizes: Sizes, language: Reader) -> None:
        super().__init__()
        self.sizes, width = sizes, language.part.width
        self._language = (language,)  # in a tuple: its weights are the encoder's
        # without biases, so that a token of no noise, at the time 0, is empty
        self.noise_in = nn.Linear(1, width, bias=False)
        self.time_in = nn.Linear(TIMES, width, bias=False)
        periods = torch.exp(torch.linspace(math.log(4e-3), math.log(4.0), TIMES))
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)
        self.head = ResidualHead(sizes.action_dim * width, c.width, sizes.action_dim, c.blocks)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        """t: `(B,)`, or `(B, H)`, a time for each action."""
        language, h, a = self._language[0], *x_BHA.shape[1:]
        time = t if t.ndim == 2 else t[:, None].expand(-1, h)
        phase = (time[..., None].to(self.frequencies.dtype) * self.frequencies).sin()
        tokens = self.noise_in(x_BHA[..., None]) + self.time_in(phase.to(x_BHA.dtype))[:, :, None]
        before, mask = what_was_read(context, self.sizes.layers)
        hidden, _ = language.further(tokens.flatten(1, 2), before, mask, causal=False)
        return self.head(hidden.unflatten(1, (h, a)).flatten(2))


class ResidualHead(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(inputs), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.fc2(self.layer_norm2(x))
