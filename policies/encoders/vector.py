"""Observation encoders: one observation step, of state and images, to one vector. Time is folded into the
batch.

Parts: `MLP` (state), `ResNet18` and `SmallCNN` (images, each ending in a spatial softmax), `Encoder` (all of
them). Legend: B batch, T = n_obs_steps, N = B·T frames, C H W image, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...datasets.features import Feature, image_keys, state_keys


class EncoderPart(Protocol):
    """A frozen dataclass: the encoder of whole observations. One that learns beside the policy from what the
    policy does not see has a method `targets`, from the policy's features to the keys of that, see
    `WindowSpec.targets`; its network then has `learned(observation, targets)`, which gives what a call gives
    and scalars by name, weighted, for the training's loss."""

    def build(self, features: dict[str, Feature]) -> nn.Module:
        """A network from normalised observations `{key: (B, T, *shape)}` to `(B, T, width)`, or with
        `tokens_per_frame` K to `(B, T, K, width)`; it has the attribute `width`."""
        ...


class StateEncoder(Protocol):
    """A frozen dataclass: the encoder of all vectors of an observation, side by side."""

    def build(self, inputs: int) -> tuple[nn.Module, int]:
        """(a network `(..., inputs) -> (..., width)`, its width)."""
        ...


class ImageEncoder(Protocol):
    """A frozen dataclass: the encoder of the frames of one camera."""

    @property
    def crop(self) -> float:
        """Share of each side that the network sees, 0 to 1: a random window in training, else the centre."""
        ...

    def build(self) -> tuple[nn.Module, int]:
        """(a network `(N, 3, H, W) -> (N, width)` of pixels in [-1, 1], its width)."""
        ...


@dataclass(frozen=True)
class MLP:
    """State encoder: layers with Mish."""

    width: int = 256
    """Of each layer."""
    depth: int = 2
    """Number of layers; 0 passes the state through, as Diffusion Policy's low-dimensional variant does."""

    def build(self, inputs: int) -> tuple[nn.Module, int]:
        if self.depth == 0:
            return nn.Identity(), inputs
        layers: list[nn.Module] = []
        for i in range(self.depth):
            layers += [nn.Linear(inputs if i == 0 else self.width, self.width), nn.Mish()]
        return nn.Sequential(*layers), self.width


@dataclass(frozen=True)
class ResNet18:
    """Diffusion Policy's image encoder: ResNet18 from scratch, GroupNorm (channels / 16 groups; EMA weights
    and BatchNorm's running statistics do not go together), spatial softmax."""

    keypoints: int = 32
    """Points that the spatial softmax finds in a frame; each gives two numbers."""
    crop: float = 0.9
    """Share of each side that is seen, 0 to 1: a random window in training, else the centre; 1: all."""

    def build(self) -> tuple[nn.Module, int]:
        return found_in(*self.trunk(), self.keypoints)

    def trunk(self) -> tuple[nn.Module, int]:
        """(the convolutions `(N, 3, H, W) -> (N, C, H/32, W/32)`, C)."""
        import torchvision  # seconds, which a policy from state need not wait for

        net = torchvision.models.resnet18(weights=None, norm_layer=lambda c: nn.GroupNorm(c // 16, c))
        return nn.Sequential(*list(net.children())[:-2]), 512


@dataclass(frozen=True)
class SmallCNN:
    """Strided convolutions and a spatial softmax: about 1/50 of ResNet18's arithmetic, for two CPU
    cores."""

    channels: tuple[int, ...] = (32, 64, 64)
    """Of each convolution but the last; each a multiple of 8, and each halves the frame."""
    keypoints: int = 32
    """Points that the spatial softmax finds in a frame; each gives two numbers."""
    crop: float = 0.9
    """Share of each side that is seen, 0 to 1: a random window in training, else the centre; 1: all."""

    def build(self) -> tuple[nn.Module, int]:
        layers, points = self._layers(), nn.Conv2d(self.channels[-1], self.keypoints, 1)
        return Planes(*layers, points, SpatialSoftmax()), 2 * self.keypoints

    def trunk(self) -> tuple[nn.Module, int]:
        """(the convolutions `(N, 3, H, W) -> (N, C, h, w)`, C); each of them halves the sides."""
        return nn.Sequential(*self._layers()), self.channels[-1]

    def _layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i, c in enumerate(self.channels):
            before = 3 if i == 0 else self.channels[i - 1]
            kernel, pad = (5, 2) if i == 0 else (3, 1)
            layers += [nn.Conv2d(before, c, kernel, stride=2, padding=pad), nn.GroupNorm(8, c), nn.ReLU()]
        return layers


@dataclass(frozen=True)
class Encoder:
    """State through one part, every camera through its own copy of the other; the outputs side by side."""

    state: StateEncoder = MLP()
    """Encoder of all vectors together."""
    image: ImageEncoder = SmallCNN()
    """Encoder of each camera's frames, with weights of its own for each camera."""

    def build(self, features: dict[str, Feature]) -> ObservationEncoder:
        return ObservationEncoder(self, features)


class Planes(nn.Sequential):
    """Layers over frames whose channels are planes in memory, for which a CPU normalises groups several times
    as fast as it does where each pixel's channels lie together, as a camera gives them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous() if input.device.type == "cpu" else input)


def found_in(trunk: nn.Module, channels: int, keypoints: int) -> tuple[nn.Module, int]:
    """(a network from frames to where the spatial softmax finds so many points in the maps of `trunk`, which
    have so many channels; its width)."""
    return nn.Sequential(trunk, nn.Conv2d(channels, keypoints, 1), SpatialSoftmax()), 2 * keypoints


class SpatialSoftmax(nn.Module):
    """The expected image coordinates in [-1, 1] of each channel: `(N, K, h, w)` to `(N, 2K)`. (Levine et al.
    2016)"""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        p = torch.softmax(x.reshape(n, k, h * w) / self.temperature, dim=-1).reshape(n, k, h, w)
        rows = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
        return torch.cat([(p.sum(2) * columns).sum(-1), (p.sum(3) * rows).sum(-1)], dim=-1)


class ObservationEncoder(nn.Module):
    """Normalised observations `{key: (B, T, ...)}` to `(B, T, D)`; images are uint8 HWC and are scaled
    here."""

    def __init__(self, config: Encoder, features: dict[str, Feature]) -> None:
        super().__init__()
        self.state_keys, self.image_keys = state_keys(features), image_keys(features)
        self.crop = config.image.crop
        self.width = 0
        inputs = sum(features[k].shape[0] for k in self.state_keys)
        if inputs:
            self.state, width = config.state.build(inputs)
            self.width += width
        self.images = nn.ModuleList()
        for _ in self.image_keys:
            net, width = config.image.build()
            self.images.append(net)
            self.width += width

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        parts = []
        if self.state_keys:
            parts.append(self.state(torch.cat([observation[k] for k in self.state_keys], dim=-1)))
        for key, net in zip(self.image_keys, self.images, strict=True):
            image = observation[key]
            b, t = image.shape[:2]
            pixels = image.permute(0, 1, 4, 2, 3).to(parts[0].dtype if parts else torch.float32) / 127.5 - 1.0
            parts.append(net(cropped(pixels, self.crop, self.training).flatten(0, 1)).reshape(b, t, -1))
        return torch.cat(parts, dim=-1)


def side(pixels: int, crop: float) -> int:
    """Of a picture's side of so many pixels those that are seen."""
    return round(pixels * crop)


def cropped(pixels_BTCHW: Tensor, crop: float, random: bool) -> Tensor:
    """One random window per row (the same over its T frames), or the centre one. crop: its share of each
    side."""
    b, _, _, height, width = pixels_BTCHW.shape
    h, w = side(height, crop), side(width, crop)
    if (h, w) == (height, width):
        return pixels_BTCHW
    if not random:
        top, left = (height - h) // 2, (width - w) // 2
        return pixels_BTCHW[..., top : top + h, left : left + w]
    if (device := pixels_BTCHW.device).type == "cuda":  # the numbers stay there, for CUDA graphs
        rows = torch.randint(0, height - h + 1, (b, 1), device=device) + torch.arange(h, device=device)
        columns = torch.randint(0, width - w + 1, (b, 1), device=device) + torch.arange(w, device=device)
        each = torch.arange(b, device=device)[:, None, None]
        seen = pixels_BTCHW.permute(0, 3, 4, 1, 2)[each, rows[:, :, None], columns[:, None]]
        return seen.permute(0, 3, 4, 1, 2)
    tops = torch.randint(0, height - h + 1, (b,)).tolist()
    lefts = torch.randint(0, width - w + 1, (b,)).tolist()
    return torch.stack(
        [p[..., t : t + h, x : x + w] for p, t, x in zip(pixels_BTCHW, tops, lefts, strict=True)]
    )
