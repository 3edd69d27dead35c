"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditions.condition import require_dropped
from ..contexts.context import Context
from ..field import Field
from ..pred import Pred
from .hook import Hook, Steered


@dataclass(frozen=True)
class CFG(Hook):
    """Go beyond what the condition asks for, away from what is done without it: the belief told, times the
    weight, and the belief not told, times 1 - weight; BESO's lambda (Reuss et al. 2023, arXiv 2304.02532).

    Two evaluations where both have a share. For policies whose conditions were dropped in training, so that
    they know what is done without; ValueError for others. In the study beso_words a policy that is told a
    goal succeeds the more the larger the weight is: 26 % at 0, 33 % at 1, 40 % at 2. One that is told words,
    which does 81 % anyhow, gains nothing."""

    weight: float = 1.5
    """0: as if not told, 1: as told, more: beyond."""

    def require(self, recipe: Steered) -> None:
        require_dropped(recipe.conditions)

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        unconditional, w = field.unconditional(), self.weight

        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            free = unconditional if rows is None else unconditional.take(rows)
            if w in (0, 1):
                return field(a, i, context if w else free, rows=rows)
            told = field(a, i, context, rows=rows)
            return Pred.mix([field(a, i, free, rows=rows), told], [1 - w, w])

        return field.with_belief(belief)
