"""Retrieval: what was done where it looked as it does now, looked up in a store at each decision (Goyal et
al. 2022, arXiv 2202.08417).

Legend: B batch, N ticks of the store, k of them that are near, T = n_obs_steps, K tokens of a frame, D
width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..conditions.store import of_tick
from .context import Conditions, Context, ContextNet
from .stack import stacked


@dataclass(frozen=True)
class Retrieval:
    """The last `n_obs_steps` encodings, and one more token: what two passes of attention read of the
    `nearest` ticks of the store. Near is by the encodings, through which no gradient goes: what is found is
    learned, not how it is found. Where there is no store, or nothing in it, a token that says so is read.
    For the condition `Store`, and no other beside it."""

    nearest: int = 8
    """Ticks that are read."""
    heads: int = 4
    """Of each attention."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if conditions > 1:
            raise ValueError("Retrieval reads one store: use --conditions Store, and no other condition")
        if self.nearest < 1 or width % self.heads:
            raise ValueError(
                f"Retrieval reads at least 1 tick, not {self.nearest}, and its heads {self.heads} must "
                f"divide the encodings' width {width}: set --context.nearest, --context.heads"
            )
        return RetrievalNet(self, width, tokens_per_frame * n_obs_steps)


class RetrievalNet(ContextNet):
    def __init__(self, part: Retrieval, width: int, seen: int) -> None:
        super().__init__()
        self.nearest = part.nearest
        self.token_width, self.tokens, self.pooled_width = width, seen + 1, width * (seen + 1)
        self.nothing = nn.Parameter(0.02 * torch.randn(width))
        self.passes = nn.ModuleList(
            nn.MultiheadAttention(width, part.heads, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        now = of_tick(z_BTKD)[:, -1]
        values = self.nothing.to(now.dtype).expand(len(now), 1, -1)
        absent = torch.zeros(len(now), 1, dtype=torch.bool, device=now.device)
        if conditions is not None:
            at, found = self.near(now, conditions)
            found_values = conditions.tokens[:, 1::2].take_along_dim(at[..., None], dim=1)
            values, absent = torch.cat([values, found_values], dim=1), torch.cat([absent, ~found], dim=1)
        read = now[:, None]
        for attention, norm in zip(self.passes, self.norms, strict=True):
            read = read + attention(norm(read), values, values, absent, need_weights=False)[0]
        return stacked(z_BTKD, None, memory).first(read, read[:, 0])

    def near(self, now_BD: Tensor, store: Conditions) -> tuple[Tensor, Tensor]:
        """(the places in the store of the ticks that look most as it does now, the nearest first `(B, k)`,
        whether there is a tick `(B, k)`)."""
        keys, there = store.tokens[:, 0::2].detach(), store.mask[:, 0::2] & store.mask[:, 1::2]
        far = (keys - now_BD.detach()[:, None]).square().sum(-1).masked_fill(~there, torch.inf)
        at = far.topk(min(self.nearest, far.shape[1]), largest=False).indices
        return at, there.gather(1, at)
