"""The words look at the pictures: of what is seen, the policy is told what it was asked about (attention over
a scene by a sentence, Stepputtis et al. 2020, arXiv 2010.12083).

Legend: B batch, T = n_obs_steps, K tokens of a frame, P of them that are of a place in a picture, G width of
all conditions, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet


@dataclass(frozen=True)
class Grounded:
    """Of each step one token: what queries, made of the conditions, find among the places of all pictures.
    The tokens of no place, such as the state's, go along as they are. One product of words and pictures
    stands between what is said and where to go, where a network that crosses all tokens must first carry the
    words to where it looks. For the encoder `FeatureMaps`."""

    heads: int = 4
    """Queries, each of its share of a token's width."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if width % self.heads:
            raise ValueError(
                f"Grounded's heads {self.heads} must divide the width of a token {width}: set --context.heads"
            )
        return GroundedNet(self, width, n_obs_steps, conditions, condition_tokens)


class GroundedNet(ContextNet):
    def __init__(
        self, part: Grounded, width: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> None:
        super().__init__()
        self.part, self.token_width = part, width
        self._steps, self._conditions, self._told = n_obs_steps, conditions, condition_tokens

    def use(self, encoder: nn.Module) -> None:
        places = getattr(encoder, "places", None)
        if places is None:
            raise ValueError("Grounded looks at the places of pictures: use --encoder FeatureMaps")
        width, seen = self.token_width, [i for i, place in enumerate(places) if place is not None]
        free = [i for i, place in enumerate(places) if place is None]
        self.free: Tensor
        self.register_buffer("free", torch.tensor(free, dtype=torch.long), persistent=False)
        self.seen: Tensor
        self.register_buffer("seen", torch.tensor(seen, dtype=torch.long), persistent=False)
        per_step = len(free) + bool(seen)
        self.tokens = self._told + per_step * self._steps
        self.pooled_width = width * (self._conditions + per_step * self._steps)
        if seen:
            self.positions = nn.Parameter(0.02 * torch.randn(len(seen), width))
            self.unasked = nn.Parameter(torch.randn(width))
            self.query = nn.Linear(width * self._conditions, width) if self._conditions else None
            self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        b, t = z_BTKD.shape[:2]
        per_step = [z_BTKD[:, :, self.free]]
        if len(self.seen):
            asked = None if conditions is None else conditions.pooled
            per_step.append(self.found(z_BTKD[:, :, self.seen].flatten(0, 1), asked).unflatten(0, (b, t)))
        own = torch.cat(per_step, dim=2).flatten(1, 2)
        tokens, pooled, mask = own, own.flatten(1), None
        if conditions is not None:
            tokens = torch.cat([conditions.tokens, own], dim=1)
            pooled = torch.cat([conditions.pooled, pooled], dim=-1)
            mask = torch.cat([conditions.mask, torch.ones_like(own[..., 0], dtype=torch.bool)], dim=1)
        everywhere = torch.full((tokens.shape[1],), -1, device=tokens.device)
        return Context(tokens, pooled, mask, everywhere, memory)

    def found(self, places_NPD: Tensor, asked_BG: Tensor | None) -> Tensor:
        """`(N, 1, D)` of N = B·T frames, asked by what the B rows were told."""
        n, heads = len(places_NPD), self.part.heads
        query = self.unasked.expand(n, -1)
        if self.query is not None and asked_BG is not None:
            query = query + self.query(asked_BG).repeat_interleave(n // len(asked_BG), dim=0)
        normed = across_places(places_NPD)
        q, k, v = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2)
            for x in (query[:, None], self.key(normed), self.value(normed + self.positions))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def across_places(places_NPD: Tensor, eps: float = 1e-5) -> Tensor:
    """Each element by its mean and deviation over the places of its frame: what all places have in common
    says nothing of where to look. By their sizes as they are, a policy was seen to make all places alike
    while it learned, and then its pictures changed nothing."""
    variance, mean = torch.var_mean(places_NPD, dim=1, keepdim=True, correction=0)
    return (places_NPD - mean) * torch.rsqrt(variance + eps)
