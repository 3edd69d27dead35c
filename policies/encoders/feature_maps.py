"""Feature maps as tokens (ACT, Zhao et al. 2023, arXiv 2304.13705): what is where in a picture, for networks
that attend to it.

Legend: B batch, T = n_obs_steps, N = B·T frames, K tokens of a step, C H W image, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...datasets.features import Feature, image_keys, state_keys
from .vector import ResNet18, cropped, side

MOST_TOKENS = 1536  # of a picture: what ResNet18 makes of 1024 x 1536 pixels


class MapEncoder(Protocol):
    """A frozen dataclass: the convolutions over the frames of one camera."""

    @property
    def crop(self) -> float:
        """As `encoders.vector.ImageEncoder` has it."""
        ...

    def trunk(self) -> tuple[nn.Module, int]:
        """(a network `(N, 3, H, W) -> (N, C, h, w)` of pixels in [-1, 1], C)."""
        ...


@dataclass(frozen=True)
class FeatureMaps:
    """Each vector of an observation is one token, and so is each place of each camera's feature map, which
    has 1/32 of the picture's sides with ResNet18. Backbones are told the places (`Sizes.places`)."""

    width: int = 512
    """Of a token."""
    image: MapEncoder = ResNet18(crop=1.0)
    """Convolutions over each camera's frames, with weights of their own for each camera."""

    def build(self, features: dict[str, Feature]) -> FeatureMapEncoder:
        return FeatureMapEncoder(self, features)


class FeatureMapEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, K, D)`; images are uint8 HWC and are scaled
    here. places: of each token, see `backbones.backbone.Sizes`."""

    def __init__(self, config: FeatureMaps, features: dict[str, Feature]) -> None:
        super().__init__()
        self.state_keys, self.image_keys = state_keys(features), image_keys(features)
        self.crop, self.width = config.image.crop, config.width
        self.states = nn.ModuleList(nn.Linear(features[k].shape[0], self.width) for k in self.state_keys)
        self.trunks, self.projections = nn.ModuleList(), nn.ModuleList()
        self.places: tuple[tuple[float, float] | None, ...] = (None,) * len(self.state_keys)
        for key in self.image_keys:
            trunk, channels = config.image.trunk()
            self.trunks.append(trunk)
            self.projections.append(nn.Conv2d(channels, self.width, 1))
            height, width = (side(n, self.crop) for n in features[key].shape[:2])
            with torch.no_grad():
                h, w = trunk(torch.zeros(1, 3, height, width)).shape[2:]
            if h * w > MOST_TOKENS:
                raise ValueError(
                    f"FeatureMaps makes {h * w} tokens of a picture of {key}, {h} rows of {w}, and attention "
                    f"is for up to {MOST_TOKENS}: use --encoder.image ResNet18, or smaller pictures"
                )
            self.places += tuple(((i + 1) / h, (j + 1) / w) for i in range(h) for j in range(w))
        self.tokens_per_frame = len(self.places)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        tokens = [
            net(observation[k])[:, :, None] for k, net in zip(self.state_keys, self.states, strict=True)
        ]
        dtype = tokens[0].dtype if tokens else torch.float32
        for key, trunk, project in zip(self.image_keys, self.trunks, self.projections, strict=True):
            b, t = observation[key].shape[:2]
            pixels = observation[key].permute(0, 1, 4, 2, 3).to(dtype) / 127.5 - 1.0
            seen = project(trunk(cropped(pixels, self.crop, self.training).flatten(0, 1)))
            tokens.append(seen.flatten(2).transpose(1, 2).unflatten(0, (b, t)))
        return torch.cat(tokens, dim=2)
