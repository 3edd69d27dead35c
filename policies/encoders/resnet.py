"""torchvision's ResNets as image encoders, as LeRobot builds them: pixels scaled by a mean and a deviation of
each colour, batch norms that stay as they are, and a layer after the spatial softmax.

Legend: N frames, C H W image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .vector import SpatialSoftmax


@dataclass(frozen=True)
class ResNet:
    """For weights that come from LeRobot (`ulna train --start lerobot:PATH`), with what its networks have and
    `ResNet18` has not. The mean and deviation of the colours come with those weights; without, they are
    ImageNet's. From random weights use `ResNet18`: batch norms that stay as they begin are for weights that
    were trained before."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Which of torchvision's."""
    norm: Literal["frozen", "group"] = "frozen"
    """Batch norms with their statistics and scales as they come with the weights, or group norms of 16
    channels."""
    dilated: bool = False
    """Whether the last convolutions widen instead of halving the map once more."""
    keypoints: int = 32
    """Points that the spatial softmax finds in a frame; each gives two numbers."""
    crop: float = 1.0
    """Share of each side that is seen, 0 to 1: a random window in training, else the centre; 1: all."""

    def build(self) -> tuple[nn.Module, int]:
        trunk, channels = self.trunk()
        width = 2 * self.keypoints
        return nn.Sequential(
            trunk,
            nn.Conv2d(channels, self.keypoints, 1),
            SpatialSoftmax(),
            nn.Linear(width, width),
            nn.ReLU(),
        ), width

    def trunk(self) -> tuple[nn.Module, int]:
        """(the convolutions `(N, 3, H, W) -> (N, C, h, w)` of pixels in [-1, 1], C)."""
        import torchvision  # seconds, which a policy from state need not wait for

        norm: Any = torchvision.ops.FrozenBatchNorm2d if self.norm == "frozen" else _groups
        net = getattr(torchvision.models, self.name)(
            weights=None, norm_layer=norm, replace_stride_with_dilation=[False, False, self.dilated]
        )
        return nn.Sequential(Colours(), *list(net.children())[:-2]), net.fc.in_features


def _groups(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels)


class Colours(nn.Module):
    """Pixels in [-1, 1] to `(value - mean) / deviation` of values in 0..1, which are ImageNet's at first."""

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        deviation: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return ((pixels + 1) / 2 - self.mean) / self.deviation
