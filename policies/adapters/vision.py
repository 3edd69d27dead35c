"""Pictures to tokens: SigLIP's vision transformer (Zhai et al. 2023, arXiv 2303.15343), and how pictures of
any size are brought to its own.

Legend: N pictures, C H W, P patches, K tokens of a picture, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resize = Literal["centre", "corner"]


@dataclass(frozen=True)
class SigLIP:
    """A vision transformer over patches, and the projection of its outputs to a language model's tokens. The
    defaults are those of PaliGemma's at 224 pixels."""

    width: int = 1152
    """Of a patch's vector; a multiple of heads."""
    depth: int = 27
    """Number of layers."""
    heads: int = 16
    """Of the attention, in each layer."""
    ffn: int = 4304
    """Hidden units of a layer."""
    patch: int = 14
    """Pixels of a patch's side."""
    side: int = 224
    """Pixels of a picture's side, as the network sees it."""
    shuffle: int = 1
    """Patches of a square's side that make one token (Idefics3's pixel shuffle); 1: each patch is a token."""
    resize: Resize = "centre"
    """Where a picture that is not square lies, shrunk without distortion: in the centre, as in openpi, or in
    the lower right corner, as in SmolVLA; the rest is black."""
    scaled: bool = False
    """Multiply the tokens by the root of their width, as SmolVLA does."""

    def build(self, out: int) -> Vision:
        """out: width of the language model's tokens. ValueError where the sizes do not fit."""
        per_side = self.side // self.patch
        if self.width % self.heads or not per_side or per_side % self.shuffle:
            raise ValueError(
                f"SigLIP's width {self.width} must be a multiple of its heads {self.heads}, and a side of "
                f"{self.side} pixels must hold patches of {self.patch} in groups of {self.shuffle}"
            )
        return Vision(self, out)


class Vision(nn.Module):
    """Pictures `(N, 3, side, side)` in [-1, 1] to `(N, K, out)`."""

    def __init__(self, c: SigLIP, out: int) -> None:
        super().__init__()
        self.part, self.per_side = c, c.side // c.patch
        self.tokens = (self.per_side // c.shuffle) ** 2
        self.patch_embedding = nn.Conv2d(3, c.width, c.patch, stride=c.patch)
        self.position_embedding = nn.Embedding(self.per_side**2, c.width)
        nn.init.normal_(self.position_embedding.weight, std=c.width**-0.5)
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.depth))
        self.post_layernorm = nn.LayerNorm(c.width, eps=1e-6)
        self.projector = nn.Linear(c.width * c.shuffle**2, out, bias=c.shuffle == 1)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        x = self.patch_embedding(pixels_NCHW).flatten(2).transpose(1, 2) + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        x = self.projector(self.grouped(self.post_layernorm(x)))
        return x * x.shape[-1] ** 0.5 if self.part.scaled else x

    def grouped(self, x_NPD: Tensor) -> Tensor:
        """Squares of patches as one vector each, rows first."""
        if (s := self.part.shuffle) == 1:
            return x_NPD
        side = self.per_side // s
        squares = x_NPD.unflatten(1, (side, s, side, s)).transpose(2, 3)  # (N, row, column, s, s, D)
        return squares.flatten(3).flatten(1, 2)


class VisionLayer(nn.Module):
    def __init__(self, c: SigLIP) -> None:
        super().__init__()
        self.heads = c.heads
        self.layer_norm1 = nn.LayerNorm(c.width, eps=1e-6)
        self.layer_norm2 = nn.LayerNorm(c.width, eps=1e-6)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(c.width, c.width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c.width, c.ffn), "fc2": nn.Linear(c.ffn, c.width)})

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm1(x)
        q, k, v = (
            self.self_attn[n](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for n in ("q_proj", "k_proj", "v_proj")
        )
        x = x + self.self_attn["out_proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        hidden = F.gelu(self.mlp["fc1"](self.layer_norm2(x)), approximate="tanh")
        return x + self.mlp["fc2"](hidden)


def pictures(frames_NHWC: Tensor, side: int, resize: Resize, dtype: torch.dtype) -> Tensor:
    """uint8 frames of any size as `(N, 3, side, side)` in [-1, 1]: shrunk or enlarged without distortion, by
    bilinear interpolation without antialiasing, the rest black."""
    pixels = frames_NHWC.permute(0, 3, 1, 2).to(dtype) / 255.0
    height, width = pixels.shape[-2:]
    if (height, width) != (side, side):
        ratio = max(width / side, height / side)
        h, w = int(height / ratio), int(width / ratio)
        pixels = F.interpolate(pixels, size=(h, w), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
        top, left = side - h, side - w
        if resize == "centre":
            top, left = top // 2, left // 2
        pixels = F.pad(pixels, (left, side - w - left, top, side - h - top))
    return pixels * 2.0 - 1.0
