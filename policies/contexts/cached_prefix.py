"""A prefix that is read once a decision: pictures, words and state by a language model, whose keys and values
the network attends to at every step of the sampler (pi0, Black et al. 2024, arXiv 2410.24164)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet
from .reading import Piece, ReadingNet


@dataclass(frozen=True)
class CachedPrefix:
    """All tokens of the observation steps, then those of the conditions. For the encoder `VisionLanguage`,
    whose language model reads them, and the backbones `ActionExpert`, `ActionTokens` and
    `ParallelDecoding`."""

    state: Literal["token", "among", "apart", "unsaid"] = "apart"
    """Where the state goes: into a token after all others, which they do not see, as SmolVLA's; by two layers
    into a token among them, between pictures and words, as OpenVLA-OFT's; apart, to the action expert, as
    pi0's; nowhere, where the words tell it, as pi0.5's."""
    causal: bool = False
    """A token sees those before it, as in a language model that writes; else they see each other both
    ways."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        return CachedPrefixNet(self, width, tokens_per_frame, n_obs_steps, condition_tokens)


class CachedPrefixNet(ReadingNet):
    def __init__(
        self, part: CachedPrefix, width: int, per_frame: int, n_obs_steps: int, condition_tokens: int
    ) -> None:
        super().__init__(part, width)
        self.part, self.steps = part, n_obs_steps
        self.tokens = per_frame * n_obs_steps + condition_tokens

    def use(self, encoder: nn.Module) -> None:
        super().use(encoder)
        self.gives(tokens=False)
        where = self.part.state if self.state_width else "unsaid"
        self.pooled_width = self.state_width * self.steps if where == "apart" else 0
        if where == "token":
            self.state_proj = nn.Linear(self.state_width, self.width)
        if where == "among":
            self.state_proj = nn.Sequential(
                nn.Linear(self.state_width, self.width), nn.GELU(), nn.Linear(self.width, self.width)
            )

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        seen, state = self.split(z_BTKD)
        pieces: list[Piece] = [(seen.flatten(1, 2), None)]
        told = self.part.state if self.state_width else "unsaid"
        if told == "among":
            pieces.append((self.state_proj(state), None))
        if conditions is not None:
            pieces.append((conditions.tokens, conditions.mask))
        if told == "token":
            pieces.append((self.state_proj(state), None))
        read, mask = self.read(pieces, self.part.causal, state.shape[1] if told == "token" else 0)
        pooled = state.flatten(1) if self.part.state == "apart" else state[:, 0, :0]
        everywhere = torch.full((mask.shape[1],), -1, device=mask.device)
        return Context(read, pooled, mask, everywhere, memory)
