"""Regression of the whole chunk (the action head of ACT, Zhao et al. 2023, arXiv 2304.13705)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..pred import Pred
from .objective import Path, full, masked_mean


@dataclass(frozen=True)
class Regression:
    """The chunk in one pass, from x = 0 at tau = 0 (ACT's decoder queries, without its latent). norm: of the
    loss, the mean of absolute (`l1`) or of squared errors (`l2`)."""

    norm: Literal["l1", "l2"] = "l1"
    """Of the error: absolute (l1) or squared (l2)."""

    def path(self, steps: int, device: torch.device) -> Path:
        if steps != 1:
            raise ValueError(f"regression samples in one step, not {steps}")
        return Path(torch.tensor([0.0, 1.0], device=device), torch.tensor([1.0, 0.0], device=device))

    def start(self, noise_BHA: Tensor) -> Tensor:
        return torch.zeros_like(noise_BHA)

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        tau = full(0.0, a_BHA)
        error = net(torch.zeros_like(a_BHA), tau, tau, context).float() - a_BHA
        return masked_mean(error.abs() if self.norm == "l1" else error**2, mask_BH)

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        tau = full(0.0, a_BHA)
        x = net(torch.zeros_like(a_BHA), tau, tau, context).float()
        return Pred.from_x(a_BHA, path.alpha[0], path.sigma[0], x)

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        return pred.x
