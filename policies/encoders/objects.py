"""Objects as tokens: a vector that holds the positions of several, taken apart.

Legend: B batch, T = n_obs_steps, N objects, K tokens of a step, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...datasets.features import ENVIRONMENT, Feature, image_keys, state_keys


@dataclass(frozen=True)
class Objects:
    """Of each step one token of all vectors but `of`, and one for each `size` elements of that, which is an
    object; the same network reads all objects, and each has a learned name. Where pictures are seen
    `FeatureMaps` has tokens of their places."""

    of: str = ENVIRONMENT
    """The vector of the objects."""
    size: int = 2
    """Elements of one object."""
    width: int = 64
    """Of a token."""

    def build(self, features: dict[str, Feature]) -> ObjectsEncoder:
        if cameras := image_keys(features):
            raise ValueError(
                f"Objects sees no pictures, and there is {cameras[0]}: use --encoder FeatureMaps"
            )
        keys = state_keys(features)
        if self.of not in keys or len(keys) < 2:
            raise ValueError(
                f"Objects takes {self.of} apart, beside another vector, and the policy sees "
                f"{', '.join(keys)}: name one of several (--encoder.of)"
            )
        if self.size < 1 or features[self.of].shape[0] % self.size:
            raise ValueError(
                f"{self.of} has {features[self.of].shape[0]} elements, which are not objects of {self.size}: "
                "set --encoder.size"
            )
        return ObjectsEncoder(self, features, [k for k in keys if k != self.of])


class ObjectsEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, 1 + N, D)`."""

    def __init__(self, part: Objects, features: dict[str, Feature], others: list[str]) -> None:
        super().__init__()
        self.of, self.size, self.width, self.others = part.of, part.size, part.width, others
        count = features[part.of].shape[0] // part.size
        self.tokens_per_frame = 1 + count
        self.rest = _mlp(sum(features[k].shape[0] for k in others), part.width)
        self.object = _mlp(part.size, part.width)
        self.names = nn.Parameter(torch.randn(count, part.width))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        rest = self.rest(torch.cat([observation[k] for k in self.others], dim=-1))
        objects = self.object(observation[self.of].unflatten(-1, (-1, self.size))) + self.names
        return torch.cat([rest[:, :, None], objects], dim=2)


def _mlp(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.Mish(), nn.Linear(width, width))
