"""What the contexts that read with the encoder's language model have in common.

Legend: B batch, T = n_obs_steps, K tokens of a frame, S tokens, D width, W elements of the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .context import ContextNet, Layers

Piece = tuple[Tensor, Tensor | None]
"""Tokens `(B, s, D)` and which of them there are `(B, s)` bool; None: all."""


class ReadingNet(ContextNet):
    """A context net with the encoder `VisionLanguage` at hand, whose weights stay the encoder's."""

    def __init__(self, part: object, width: int) -> None:
        super().__init__()
        self.name, self.width = type(part).__name__, width

    def use(self, encoder: nn.Module) -> None:
        model: Any = encoder
        if not (hasattr(model, "language") and hasattr(model, "state_width")):
            raise ValueError(
                f"{self.name} reads with the encoder's language model, and this encoder has none: use "
                "--encoder VisionLanguage, or --context Stack"
            )
        self._encoder: tuple[Any] = (encoder,)  # in a tuple, or its weights would count twice
        self.state_width = int(model.state_width)

    def gives(self, tokens: bool) -> None:
        """Say what the context's tokens are: those of the last layer, or keys and values. ValueError where
        the language model gives the other."""
        language = self._encoder[0].language.part
        if tokens != (language.gives == "tokens"):
            needed = "tokens" if tokens else "keys"
            raise ValueError(
                f"{self.name} needs a language model's {needed}, and this one gives {language.gives}: set "
                f"--encoder.language.gives {needed}"
            )
        layers: Layers = language.layers
        self.layers, self.token_width = (None, self.width) if tokens else (layers, layers.token_width)

    def split(self, z_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """(the pictures' tokens `(B, T, k, D)`, the states `(B, T, W)`)."""
        if self.state_width:
            return z_BTKD[:, :, :-1], z_BTKD[:, :, -1, : self.state_width]
        return z_BTKD, z_BTKD.new_zeros(*z_BTKD.shape[:2], 0)

    def read(self, pieces: Sequence[Piece], causal: bool, last: int = 0) -> tuple[Tensor, Tensor]:
        """(what the language model gives of the pieces in a row, which tokens there are `(B, S)`). causal: a
        token sees those before it; else all see each other, but for the last so many, which see those before
        them and are not seen by these."""
        masks = [
            torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) if m is None else m for t, m in pieces
        ]
        mask = torch.cat(masks, dim=1)
        if not mask.shape[1]:
            raise ValueError(
                "the language model has nothing to read: the policy sees no pictures and is told no words"
            )
        blocks = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        if not causal:
            blocks = (blocks - (mask.shape[1] - last)).clamp(min=0)
        return self._encoder[0].language(torch.cat([t for t, _ in pieces], dim=1), mask, blocks), mask
