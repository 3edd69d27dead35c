"""Several chunks and a gate that says which, from any network of chunks (Information Maximizing Curriculum,
arXiv 2303.15349). Legend: B batch, C components, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Sizes, require_head
from .mlp import ResidualMLP


@dataclass(frozen=True)
class Mixture:
    """One network with C chunks for its output, and a network of its own for the gate, which sees the pooled
    context.

    Nothing but their first weights tells the chunks apart before training, and the more alike they are, the
    longer they stay so: each has an offset of its own, drawn from a normal distribution."""

    inner: Backbone = ResidualMLP()
    """The network that gives the chunks, told an action of C times as many elements."""
    components: int = 8
    """C, at least 1."""
    spread: float = 0.5
    """Standard deviation of the first offsets, normalised: one for each element of the action."""
    gate_width: int = 256
    """Of the gate's hidden layers."""
    gate_depth: int = 2
    """Number of the gate's hidden layers."""

    def __post_init__(self) -> None:
        if self.components < 1 or self.spread < 0:
            raise ValueError("a mixture has at least 1 component, and a spread that is not negative")

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("mixture", 1, forward_mode=True, second_order=True))
        inner_head = Head("chunk", 1, head.forward_mode, head.second_order)
        inner_sizes = replace(sizes, action_dim=self.components * sizes.action_dim)
        return MixtureNet(self, self.inner.build(inner_sizes, inner_head), sizes)


class MixtureNet(nn.Module):
    def __init__(self, c: Mixture, inner: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.inner, self.components = inner, c.components
        self.offset = nn.Parameter(c.spread * torch.randn(c.components, 1, sizes.action_dim))
        layers: list[nn.Module] = []
        width = sizes.pooled_width
        for _ in range(c.gate_depth):
            layers += [nn.Linear(width, c.gate_width), nn.Mish()]
            width = c.gate_width
        self.gate = nn.Sequential(*layers, nn.Linear(width, c.components))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The chunks `(B, C, H, A)` and the logits `(B, C)`."""
        b, h, a = x_BHA.shape
        inner = self.inner(x_BHA.repeat(1, 1, self.components), s, t, context)
        chunks = inner.reshape(b, h, self.components, a).transpose(1, 2) + self.offset
        return chunks, self.gate(context.pooled)
