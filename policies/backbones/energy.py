"""An energy from any network of chunks (EBT-Policy, arXiv 2510.27545). Legend: B batch, H horizon, A action
dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Sizes, require_head
from .mlp import ResidualMLP


@dataclass(frozen=True)
class Energy:
    """The mean of what another network says of a chunk, as the chunk's energy: low where the chunk fits what
    was observed. It is not told a time."""

    inner: Backbone = ResidualMLP()
    """The network of which it is the mean."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("energy", 1, forward_mode=True, second_order=True))
        inner_head = Head("chunk", 1, head.forward_mode, head.second_order)
        return EnergyNet(self.inner.build(sizes, inner_head))


class EnergyNet(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        """The energy `(B,)` of x; s and t are not used."""
        zero = torch.zeros_like(t)
        return self.inner(x_BHA, zero, zero, context).flatten(1).mean(1, dtype=x_BHA.dtype)
