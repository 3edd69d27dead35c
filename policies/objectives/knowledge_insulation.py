"""Knowledge insulation (Driess et al. 2025, arXiv 2505.23705): what the expert learns does not reach the
language model, which learns to write the same actions instead.

Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head
from ..contexts.context import Context
from ..pred import Pred
from .flow import Flow
from .objective import Draw, Level, Losses, Objective, Path, full, masked_mean


@dataclass(frozen=True)
class KnowledgeInsulation:
    """An objective whose gradients stop at the context: encoder, conditions and context learn by
    cross-entropy of the tokens alone, in which the language model writes the demonstrated chunk. A decision
    is the inner objective's, and writes nothing. For the backbone `Insulated`."""

    inner: Objective = Flow()
    """What the expert learns."""
    weight: float = 1.0
    """Of the tokens' cross-entropy, beside the inner loss."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"KnowledgeInsulation's weight is {self.weight}: it is not negative")

    @property
    def needs(self) -> Head:
        return replace(self.inner.needs, words=True)

    def path(self, steps: int) -> Path:
        return self.inner.path(steps)

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return self.inner.draw(a_BHA, progress, rng)

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        apart = replace(context, tokens=context.tokens.detach(), pooled=context.pooled.detach())
        losses = self.inner.losses(net, a_BHA, apart, draw, teacher)
        writes: Any = getattr(net, "writes", None)
        if writes is None:
            raise ValueError(
                "KnowledgeInsulation needs Insulated as the outermost backbone: wrap others in it"
            )
        error = writes(torch.zeros_like(a_BHA), full(0.0, a_BHA), context).error(a_BHA)
        every = torch.ones(a_BHA.shape[:2], dtype=torch.bool, device=a_BHA.device)
        mask = draw.more.get("mask", every)
        words = self.weight * masked_mean(error, mask, draw.more.get("weight"))
        return replace(losses, extras={**losses.extras, "words": words})

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        return self.inner.believe(net, a_BHA, level, context)
