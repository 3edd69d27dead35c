"""A label: an observation that says what to do, a number or a vector, which only the condition sees.

Legend: B batch, T = n_obs_steps, K tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.features import Features, state_keys
from ..serving.protocol import BadRequest
from .condition import ConditionNet


@dataclass(frozen=True)
class Label:
    """One of the data's vectors, its newest value: whole numbers are kinds, each a learned vector; else a
    small network reads it."""

    key: str = "observation.label"
    """Of the vector, in the data and in requests."""
    kinds: int = 0
    """How many kinds there are, 0 to kinds - 1, where the label is of whole numbers."""
    drop: float = 0.1
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {}

    def keys(self, features: Features) -> tuple[str, ...]:
        if self.key not in state_keys(features):
            raise ValueError(
                f"the label is {self.key}, and the vectors of the data are "
                f"{', '.join(state_keys(features)) or 'none'}: name one of them (--conditions.Label.key)"
            )
        return (self.key,)

    def hides(self, features: Features) -> tuple[str, ...]:
        return (self.key,)

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        feature = features[self.key]
        if np.dtype(feature.dtype).kind in "iub":
            if self.kinds < 1:
                raise ValueError(
                    f"{self.key} is of {feature.dtype}: say how many kinds there are "
                    "(--conditions.Label.kinds)"
                )
            return KindNet(self, feature.shape[0], width)
        return VectorNet(self.key, feature.shape[0], width)


class KindNet(ConditionNet):
    """A token for each of the label's numbers."""

    def __init__(self, part: Label, numbers: int, width: int) -> None:
        super().__init__()
        self.part, self.n_tokens = part, numbers
        self.table = nn.Embedding(numbers * part.kinds, width)

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        kind, kinds = _newest(observation[self.part.key]).long(), self.part.kinds
        if bool(((kind < 0) | (kind >= kinds)).any()):
            raise BadRequest(
                f"{self.part.key} is {kind.flatten().tolist()[:8]}, and the policy knows the kinds 0 to "
                f"{kinds - 1}"
            )
        tokens = self.table(kind + kinds * torch.arange(self.n_tokens, device=kind.device))
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class VectorNet(ConditionNet):
    n_tokens = 1

    def __init__(self, key: str, inputs: int, width: int) -> None:
        super().__init__()
        self.key = key
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        token = self.net(_newest(observation[self.key]))[:, None]
        return token, torch.ones(token.shape[:2], dtype=torch.bool, device=token.device)


def _newest(value: Tensor) -> Tensor:
    """Of `(B, T, n)`, or of `(B, n)` that stands for all steps."""
    return value[:, -1] if value.ndim == 3 else value
