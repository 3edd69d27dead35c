"""What a language model makes of pictures and words, as tokens that a network crosses (GR00T N1, Bjorck et
al. 2025, arXiv 2503.14734, and N1.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.dit import DiTBlock
from .context import Conditions, Context, ContextNet
from .reading import Piece, ReadingNet


@dataclass(frozen=True)
class ReadTokens:
    """The last layer's tokens of pictures and words, normalised, then through layers of self-attention. For
    the encoder `VisionLanguage` with a language model that `gives` tokens, and any backbone of tokens. The
    state goes to the backbone, as it is."""

    layers: int = 4
    """Of self-attention over the model's tokens; 0: none, as GR00T N1's."""
    heads: int = 32
    """Of these layers."""
    dropout: float = 0.2
    """Share of activations that these layers do without while training."""
    causal: bool = True
    """A token sees those before it, as in a language model that writes; else they see each other both
    ways."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if width % self.heads:
            raise ValueError(
                f"ReadTokens' heads {self.heads} must divide the language model's width {width}: set "
                "--context.heads"
            )
        return ReadTokensNet(self, width, tokens_per_frame * n_obs_steps + condition_tokens, n_obs_steps)


class ReadTokensNet(ReadingNet):
    def __init__(self, c: ReadTokens, width: int, tokens: int, n_obs_steps: int) -> None:
        super().__init__(c, width)
        self.part, self.tokens, self.steps = c, tokens, n_obs_steps
        self.vlln = nn.LayerNorm(width)
        self.vl_self_attention = nn.ModuleDict(
            {
                "transformer_blocks": nn.ModuleList(
                    DiTBlock(width, c.heads, width // c.heads, c.dropout) for _ in range(c.layers)
                )
            }
        )

    def use(self, encoder: nn.Module) -> None:
        super().use(encoder)
        self.gives(tokens=True)
        self.pooled_width = self.state_width * self.steps

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        seen, state = self.split(z_BTKD)
        pieces: list[Piece] = [(seen.flatten(1, 2), None)]
        if conditions is not None:
            pieces.append((conditions.tokens, conditions.mask))
        read, mask = self.read(pieces, self.part.causal)
        tokens = self.vlln(read)
        for block in self.vl_self_attention["transformer_blocks"]:  # type: ignore[union-attr]
            tokens = block(tokens, seen=mask[:, None])
        everywhere = torch.full((mask.shape[1],), -1, device=mask.device)
        return Context(tokens, state.flatten(1), mask, everywhere, memory)
