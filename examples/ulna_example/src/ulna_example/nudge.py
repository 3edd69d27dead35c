"""A hook: push every action of the chunk the same way while it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ulna.policies.contexts.context import Context
from ulna.policies.field import Field
from ulna.policies.hooks.hook import Hook
from ulna.policies.pred import Pred


@dataclass(frozen=True)
class Nudge(Hook):
    """Guidance by a constant velocity."""

    push: float = 0.1
    """How far a chunk moves while it is drawn, in normalised units."""

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            return field(a, i, context, rows=rows).push(torch.full_like(a, self.push))

        return field.with_belief(belief)
