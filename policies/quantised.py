"""Weights as small whole numbers: the matrices of a network rounded to 8 or 4 bits, and turned back into
numbers whenever they are used. Less memory and accuracy; not faster, for what is computed stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .matrices import matrices

Kind = Literal["int8", "int4"]
KINDS: tuple[str, ...] = get_args(Kind)
GROUP = 64  # inputs that share a scale, of 4 bits


@dataclass(frozen=True)
class Memory:
    """Of all weights, bytes."""

    before: int
    after: int
    matrices: int
    """How many were rounded."""


def quantise(network: nn.Module, kind: Kind) -> Memory:
    """Round the matrices of `network`, whose weights must not be trained, in place, where that makes them
    smaller."""
    before, count = _bytes(network), 0
    for m in list(matrices(network)):
        form = Int8(m.value) if kind == "int8" else Int4(m.value)
        rounded = form.right_inverse(m.value)
        if sum(t.nbytes for t in rounded) < m.value.nbytes:
            parametrize.register_parametrization(m.module, m.name, form, unsafe=True)
            count += 1
    return Memory(before, _bytes(network), count)


class Int8(nn.Module):
    """A weight `(rows, ...)` as whole numbers from -127 to 127, and for each row, which makes one output, a
    scale: each number is off by half a scale at most."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = weight.detach().flatten(1)
        scale = _scale(rows, 127)
        return (rows / scale).round().to(torch.int8), scale

    def forward(self, whole: Tensor, scale: Tensor) -> Tensor:
        return (whole * scale).view(self.shape)


class Int4(nn.Module):
    """A weight `(rows, ...)` as whole numbers from -7 to 7, two to a byte, and a scale for each `GROUP` of a
    row's inputs, the last group filled up with zeros."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.columns = weight.shape, weight[0].numel()
        self.group = min(GROUP, self.columns + self.columns % 2)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = nn.functional.pad(weight.detach().flatten(1), (0, -self.columns % self.group))
        groups = rows.unflatten(1, (-1, self.group))
        scale = _scale(groups, 7)
        nibbles = ((groups / scale).round() + 8).to(torch.uint8)
        return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scale

    def forward(self, packed: Tensor, scale: Tensor) -> Tensor:
        nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        groups = (nibbles.to(scale.dtype) - 8) * scale
        return groups.flatten(1)[:, : self.columns].reshape(self.shape)


def _scale(rows: Tensor, most: int) -> Tensor:
    """Of the last axis, such that its largest number becomes `most`; 1 where all are 0."""
    largest = rows.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / most, torch.ones_like(largest))


def _bytes(network: nn.Module) -> int:
    return sum(p.nbytes for p in network.parameters())
