"""The plain context of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .context import Conditions, Context, ContextNet


@dataclass(frozen=True)
class Stack:
    """The last `n_obs_steps` encodings as they are, side by side, after the conditions."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        net = StackNet()
        net.token_width = width
        net.tokens = tokens_per_frame * n_obs_steps + condition_tokens
        net.pooled_width = width * (tokens_per_frame * n_obs_steps + conditions)
        return net


class StackNet(ContextNet):
    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        return stacked(z_BTKD, conditions)


def stacked(z_BTKD: Tensor, conditions: Conditions | None, memory: Tensor | None = None) -> Context:
    """Every frame's tokens, after the conditions'."""
    b, t, k, _ = z_BTKD.shape
    tokens, pooled = z_BTKD.flatten(1, 2), z_BTKD.flatten(1)
    if conditions is None:
        frame = None if k == 1 else torch.arange(t, device=tokens.device).repeat_interleave(k)
        return Context(tokens, pooled, None, frame, memory)
    frame = torch.cat(
        [
            torch.full((conditions.tokens.shape[1],), -1, device=tokens.device),
            torch.arange(t, device=tokens.device).repeat_interleave(k),
        ]
    )
    everywhere = torch.ones(b, t * k, dtype=torch.bool, device=tokens.device)
    return Context(
        torch.cat([conditions.tokens, tokens], dim=1),
        torch.cat([conditions.pooled, pooled], dim=-1),
        torch.cat([conditions.mask, everywhere], dim=1),
        frame,
        memory,
    )
