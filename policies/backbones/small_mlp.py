"""A small multilayer perceptron: what `HyperZero` and `HyperPPO` generate the weights of, and the rival that
learns its own.

Legend: B batch, H horizon, A action dimensions, G what was observed, D width, O and I outputs and inputs of a
layer, E embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Head, Sizes, require_head

Layer = tuple[Tensor, Tensor]
"""Weights `(O, I)` and biases `(O,)`, or those of each row, `(B, O, I)` and `(B, O)`."""


@dataclass(frozen=True)
class SmallMLP:
    """Linear layers of the pooled context with ReLU between. The noisy chunk and the time enter the first
    hidden layer through a layer of their own; where an objective asks once, as `Regression` does, they are
    always 0."""

    widths: tuple[int, ...] = (64, 64)
    """Of each hidden layer; at least one."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError("SmallMLP's widths are one or more, each at least 1")

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("chunk", 2, forward_mode=True, second_order=True))
        return SmallMLPNet(self, sizes)


class SmallMLPNet(nn.Module):
    def __init__(self, c: SmallMLP, sizes: Sizes) -> None:
        super().__init__()
        chunk = sizes.horizon * sizes.action_dim
        self.enter = nn.Linear(chunk + 2, c.widths[0], bias=False)
        ends = [sizes.pooled_width, *c.widths, chunk]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(ends))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        layers = [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]
        own = self.enter(noisy(x_BHA, s, t))
        return through(layers, context.pooled, own).reshape(x_BHA.shape)  # type: ignore[arg-type]

    def hidden_units(self) -> list[list[tuple[str, int]]]:
        """See `policies.weights.hidden_units`."""
        layers = [
            [(f"layers.{i}.weight", 0), (f"layers.{i}.bias", 0), (f"layers.{i + 1}.weight", 1)]
            for i in range(len(self.layers) - 1)
        ]
        layers[0].append(("enter.weight", 0))
        return layers


def noisy(x_BHA: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The noisy chunk and its two times side by side, `(B, H·A + 2)`."""
    return torch.cat([x_BHA.flatten(1), s[:, None].to(x_BHA.dtype), t[:, None].to(x_BHA.dtype)], dim=-1)


def through(layers: Sequence[Layer], seen_BG: Tensor, own_BD: Tensor) -> Tensor:
    """What the layers make of what was observed, `(B, H·A)`. own_BD: added to the first one's output."""
    h = seen_BG
    for i, (weight, bias) in enumerate(layers):
        h = nn.functional.relu(h) if i else h
        h = nn.functional.linear(h, weight, bias) if weight.ndim == 2 else _each(weight, h) + bias
        h = h if i else h + own_BD
    return h


def _each(weight_BOI: Tensor, h_BI: Tensor) -> Tensor:
    return torch.bmm(weight_BOI, h_BI[..., None])[..., 0]


class GeneratedLayer(nn.Module):
    """The weights `(B, O, I)` and biases `(B, O)` of a linear layer, made of an embedding `(B, E)` whose
    entries have a mean square of 1. At first they are as large as those of an ordinary layer: half of their
    variance is the same for every embedding, half differs."""

    def __init__(self, embedding: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shape = (outputs, inputs)
        self.weight, self.bias = nn.Linear(embedding, outputs * inputs), nn.Linear(embedding, outputs)
        deviation = (6 * inputs) ** -0.5  # an ordinary layer's is 1 / sqrt(3 inputs)
        nn.init.normal_(self.weight.weight, std=deviation * embedding**-0.5)
        nn.init.normal_(self.weight.bias, std=deviation)
        for of_bias in self.bias.parameters():
            nn.init.zeros_(of_bias)

    def forward(self, z_BE: Tensor) -> Layer:
        return self.weight(z_BE).unflatten(-1, self.shape), self.bias(z_BE)
