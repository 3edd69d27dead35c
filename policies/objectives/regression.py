"""Regression of the whole chunk (the action head of ACT, Zhao et al. 2023, arXiv 2304.13705)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class Regression:
    """The chunk in one pass, from x = 0 at tau = 0 (ACT's decoder queries, without its latent). norm: of the
    loss, the mean of absolute (`l1`) or of squared errors (`l2`)."""

    norm: Literal["l1", "l2"] = "l1"
    """Of the error: absolute (l1) or squared (l2)."""

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        if steps != 1:
            raise ValueError(f"regression samples in one step, not {steps}")
        return Path((0.0, 1.0), (0.0, 1.0), (0.0, 0.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        return Draw(torch.zeros_like(a_BHA), full(0.0, a_BHA))

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        zero, tau = torch.zeros_like(a_BHA), draw.tau
        target = a_BHA if teacher is None else teacher(zero, tau, tau, context).float()
        output = outputs(net, zero, tau, tau, context)

        def error(chunk: Tensor) -> Tensor:
            difference = chunk.float() - target
            return difference.abs() if self.norm == "l1" else difference**2

        return compare(output, error)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(0.0, a_BHA)
        x = net(torch.zeros_like(a_BHA), tau, tau, context).float()
        return Pred(a_BHA, level.alpha, level.sigma, x, torch.zeros_like(x))
