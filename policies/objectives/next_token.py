"""The likeliest next token, of a language model that writes actions (OpenVLA, Kim et al. 2024, arXiv
2406.09246; pi0-FAST, Pertsch et al. 2025, arXiv 2501.09747).

Legend: B batch, H horizon, A action dimensions, C tokens that may come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.action_tokens import Writing
from ..backbones.backbone import Head
from ..contexts.context import Context
from ..pred import Pred
from .choice import choice
from .objective import Draw, Level, Losses, Path, full


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy over the whole vocabulary of each word that the chunk is written in, given those before
    it. A decision writes one word after the other, the likeliest of those that mean an action, or draws them
    by the sampler's noise."""

    temperature: float = 0.0
    """0: the likeliest word, as published; above, words are drawn by their shares to the power of 1/this, so
    that candidates differ."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"NextToken's temperature is {self.temperature}: it is not negative")

    @property
    def needs(self) -> Head:
        return Head("tokens")

    def path(self, steps: int) -> Path:
        """The noise, which says which words, and the chunk."""
        if steps != 1:
            raise ValueError(f"a chunk is written in one step of the sampler, not {steps}")
        return Path((0.0, 1.0), (0.0, 1.0), (1.0, 0.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return Draw(torch.zeros_like(a_BHA), full(0.0, a_BHA))

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        if teacher is not None:
            raise ValueError("NextToken learns from data: it is not told another network's words")
        return Losses(self._ask(net, a_BHA, context).error(a_BHA))

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        u_BN = torch.special.ndtr(a_BHA.flatten(1).float()).clamp(1e-12, 1 - 1e-6)

        def choose(logits_BC: Tensor, n: int) -> Tensor:
            if not self.temperature:
                return logits_BC.argmax(1)
            return choice((logits_BC / self.temperature).softmax(1), u_BN[:, n])

        chunk, passes = self._ask(net, a_BHA, context).write(choose)
        if (spend := getattr(net, "spend", None)) is not None:  # of a sampler, which counts
            spend(passes)
        return Pred(a_BHA, 0.0, 1.0, chunk, a_BHA)

    def _ask(self, net: nn.Module, a_BHA: Tensor, context: Context) -> Writing:
        zero = full(0.0, a_BHA)
        return net(torch.zeros_like(a_BHA), zero, zero, context)
