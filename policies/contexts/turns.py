"""A conversation of few tokens a turn (LiteVLP, Li et al. 2025, arXiv 2503.10322): pictures compressed, and
the decisions before this one as earlier turns.

Legend: B batch, T = n_obs_steps, K tokens of a frame, k of a compressed picture, D width, N tokens of a turn,
P turns before this one, M = P·(1 + N·D) memory width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, carried
from .reading import Piece, ReadingNet


@dataclass(frozen=True)
class Turns:
    """What is asked for, then a turn for each decision of the episode, the newest last: a mark, the pictures'
    tokens, averaged over squares, and the state's. The memory that is carried from decision to decision holds
    the compressed turns. Trained through windows in a row, as many as there are turns, as far apart as
    decisions are. For the encoder `VisionLanguage`, whose language model reads them, each token those before
    it, and the backbones that `CachedPrefix` is for."""

    tokens: int = 4
    """Of each camera's picture: a square number, 1, 4, 9 and so on."""
    turns: int = 4
    """Decisions that are read, this one among them."""

    @property
    def chain(self) -> int:
        """Windows in a row that a training sees: the oldest turn matters to the newest."""
        return self.turns

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if self.turns < 1 or self.tokens < 1 or math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(
                f"Turns has {self.turns} turns of {self.tokens} tokens a picture: at least 1 turn, and a "
                "square number of tokens, such as 1, 4 or 16"
            )
        return TurnsNet(self, width, n_obs_steps, condition_tokens)


class TurnsNet(ReadingNet):
    def __init__(self, part: Turns, width: int, n_obs_steps: int, condition_tokens: int) -> None:
        super().__init__(part, width)
        self.part, self.steps, self.condition_tokens = part, n_obs_steps, condition_tokens
        self.mark = nn.Parameter(torch.randn(width))  # before each turn

    def use(self, encoder: nn.Module) -> None:
        super().use(encoder)
        self.gives(tokens=False)
        model: Any = encoder
        self.cameras = len(model.image_keys)
        self.per_camera = model.vision.tokens if model.vision is not None else 0
        if self.cameras and self.part.tokens > self.per_camera:
            raise ValueError(
                f"a picture has {self.per_camera} tokens, which cannot be compressed to {self.part.tokens}: "
                "set --context.tokens lower"
            )
        if self.state_width:
            self.state_proj = nn.Linear(self.state_width, self.width)
        self.per_turn = self.steps * (self.cameras * self.part.tokens + bool(self.state_width))
        self.tokens = self.condition_tokens + self.part.turns * (1 + self.per_turn)
        self.memory_width = (self.part.turns - 1) * (1 + self.per_turn * self.width)
        self.pooled_width = 0

    def compressed(self, z_BTKD: Tensor) -> Tensor:
        """The tokens of this decision's turn `(B, N, D)`."""
        seen, state = self.split(z_BTKD)
        tokens = [seen[:, :, :0]]
        if self.cameras:
            side, whole = math.isqrt(self.part.tokens), math.isqrt(self.per_camera)
            planes = seen.unflatten(2, (self.cameras, whole, whole)).movedim(-1, 3)
            small = F.adaptive_avg_pool2d(planes.flatten(0, 2), side)
            tokens = [small.unflatten(0, planes.shape[:3]).flatten(4).transpose(3, 4).flatten(2, 3)]
        if self.state_width:
            tokens.append(self.state_proj(state)[:, :, None])
        return torch.cat(tokens, dim=2).flatten(1, 2)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        now, past = self.compressed(z_BTKD), self.part.turns - 1
        b = len(now)
        memory, _ = carried(memory, fresh, now.new_zeros(b, self.memory_width))
        # of each turn whether there was one, and its tokens
        before = memory.unflatten(1, (past, -1)) if past else now.new_zeros(b, 0, 1 + now[0].numel())
        newest = torch.cat([torch.ones_like(now[:, :1, 0]), now.flatten(1)], dim=1)[:, None]
        turns = torch.cat([before.to(newest.dtype), newest], dim=1)
        told = turns[:, :, 0] > 0.5
        tokens = turns[:, :, 1:].unflatten(2, (-1, self.width))
        marks = self.mark.to(tokens.dtype).expand(b, past + 1, 1, -1)
        said = torch.cat([marks, tokens], dim=2)
        pieces: list[Piece] = [] if conditions is None else [(conditions.tokens, conditions.mask)]
        pieces.append((said.flatten(1, 2), told.repeat_interleave(said.shape[2], dim=1)))
        read, mask = self.read(pieces, causal=True)
        everywhere = torch.full((mask.shape[1],), -1, device=mask.device)
        after = turns[:, 1:].flatten(1) if past else None
        return Context(read, now[:, 0, :0], mask, everywhere, after)
