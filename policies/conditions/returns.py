"""A return: the policy is told how good what comes next shall be.

Legend: B batch, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...datasets.features import Features
from .condition import RETURN, ConditionNet


@dataclass(frozen=True)
class Return:
    """The discounted rewards from now to the end of the episode, as a condition (Decision Diffuser, Ajay et
    al. 2023, arXiv 2211.15657; Decision Transformer, Chen et al. 2021, arXiv 2106.01345). Data without
    rewards has 1 at the end of an episode that succeeded: the return then says how soon. A request may hold
    `return` `(1,)`."""

    optional: ClassVar[bool] = True
    discount: float = 0.99
    """γ, by which a reward counts less for each tick that it lies ahead; above 0 and up to 1."""
    scale: float = 1.0
    """A return that counts as 1 to the network: about the best of the data."""
    ask: float = 0.9
    """The return that is asked for where a request does not say, as a share of scale."""
    drop: float = 0.25
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"discounted_return": self.discount}

    def keys(self, features: Features) -> tuple[str, ...]:
        return (RETURN,)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.scale <= 0:
            raise ValueError(f"Return's scale is {self.scale}: it must be above 0")
        return ReturnNet(self, width)


class ReturnNet(ConditionNet):
    n_tokens = 1

    def __init__(self, part: Return, width: int) -> None:
        super().__init__()
        self.part = part
        self.net = nn.Sequential(nn.Linear(1, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        share = torch.nan_to_num(observation[RETURN] / self.part.scale, nan=self.part.ask)
        token = self.net(share)[:, None]
        return token, torch.ones(token.shape[:2], dtype=torch.bool, device=token.device)
