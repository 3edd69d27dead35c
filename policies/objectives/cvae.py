"""Conditional variational autoencoders of chunks (Sohn et al. 2015; ACT, Zhao et al. 2023, arXiv 2304.13705).
Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head
from ..contexts.context import Context, Shown
from ..pred import Pred
from .objective import Draw, Level, Losses, Objective, Path, row_weights
from .regression import Regression


@dataclass(frozen=True)
class CVAE:
    """An objective, learned by a network that is also told a latent of the demonstrated chunk, so that what
    differs between demonstrations of one observation need not be averaged. The latent's divergence from a
    standard normal is paid for; when acting, it is 0, the middle."""

    inner: Objective = Regression("l1")
    """What is learned, given the latent."""
    latent: int = 32
    """Width of the latent, at least 1."""
    kl_weight: float = 10.0
    """Weight of the divergence in the loss."""

    def __post_init__(self) -> None:
        if self.latent < 1 or self.kl_weight < 0:
            raise ValueError("CVAE's latent is at least 1 wide, and its kl_weight is not negative")

    @property
    def needs(self) -> Head:
        return replace(self.inner.needs, latent=self.latent)

    def path(self, steps: int) -> Path:
        return self.inner.path(steps)

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """more: `latent` `(B, Z)` standard normal, beside the inner objective's."""
        draw = self.inner.draw(a_BHA, progress, rng)
        shape = len(a_BHA), self.latent
        noise = torch.randn(shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
        return replace(draw, more={**draw.more, "latent": noise})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        every = torch.ones(a_BHA.shape[:2], dtype=torch.bool, device=a_BHA.device)
        mask = draw.more.get("mask", every)
        shown = Shown(a_BHA, mask, draw.more["latent"], row_weights(draw))
        losses = self.inner.losses(net, a_BHA, replace(context, shown=shown), draw, teacher)
        if "kl" not in losses.extras:
            raise ValueError(
                f"{type(self.inner).__name__} has no place for what a latent costs: use CVAE around an "
                "objective of chunks, such as Regression"
            )
        return replace(losses, extras={**losses.extras, "kl": self.kl_weight * losses.extras["kl"]})

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        return self.inner.believe(net, a_BHA, level, context)
