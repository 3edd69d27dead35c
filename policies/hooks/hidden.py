"""Which of a policy's networks acts, where it has one of every size (HyperPPO, Hegde et al. 2023, arXiv
2309.16663)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..backbones.hyperppo import HyperPPO
from ..contexts.context import Context
from ..field import Field
from .hook import Hook, Steered


@dataclass(frozen=True)
class Hidden(Hook):
    """The size of the network that acts, for the backbone `HyperPPO`: smaller ones cost less and may do as
    well."""

    widths: tuple[int, ...] = (16, 16)
    """Of its hidden layers, such as the training has drawn (`HyperPPO.widths`, `HyperPPO.depth`)."""

    def require(self, recipe: Steered) -> None:
        backbone = recipe.backbone
        if not isinstance(backbone, HyperPPO):
            raise ValueError(  # noqa: TRY004  a user chose it
                f"Hidden chooses among the sizes of the backbone HyperPPO, and {recipe.name} has "
                f"{type(backbone).__name__}, of one size: leave the hook out"
            )
        backbone.require(self.widths)

    def condition(self, field: Field, rng: torch.Generator) -> Context:
        return replace(field.context, hidden=self.widths)
