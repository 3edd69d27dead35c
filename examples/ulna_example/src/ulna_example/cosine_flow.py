"""An objective: flow matching with another choice of levels to train at. Legend: B batch, H horizon, A action
dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ulna.policies.objectives.flow import Flow
from ulna.policies.objectives.objective import Draw


@dataclass(frozen=True)
class CosineFlow(Flow):
    """Flow matching whose levels are dense at both ends. Keeps the protocol
    `ulna.policies.objectives.objective.Objective`."""

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        even = torch.rand(len(a_BHA), device=a_BHA.device, generator=rng)
        return replace(super().draw(a_BHA, progress, rng), tau=(1 - torch.cos(math.pi * even)) / 2)
