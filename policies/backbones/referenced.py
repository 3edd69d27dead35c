"""A network that sees what another policy would do beside the noisy chunk (RoboDual, Bu et al. 2024, arXiv
2410.08001). Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Output, Sizes, outputs, require_head
from .mlp import ResidualMLP


@dataclass(frozen=True)
class Referenced:
    """The `inner` network sees of each tick the action that another policy would send, as A more elements of
    the action, 0 where it does not say; of what it gives there nothing is used. For a condition with actions
    to refer to, such as `Slow`."""

    inner: Backbone = ResidualMLP()
    """Any network of chunks."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, replace(head, output="chunk"))
        return ReferencedNet(self.inner.build(replace(sizes, action_dim=2 * sizes.action_dim), head))


class ReferencedNet(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.evaluations = int(getattr(inner, "evaluations", 1))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.inner(self._beside(x_BHA, context), s, t, context)[..., x_BHA.shape[-1] :]

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        output, width = outputs(self.inner, self._beside(x_BHA, context), s, t, context), x_BHA.shape[-1]
        views = tuple((chunk[..., width:], mask) for chunk, mask in output.views)
        return replace(output, chunk=output.chunk[..., width:], views=views)

    def _beside(self, x_BHA: Tensor, context: Context) -> Tensor:
        if context.reference is None:
            raise ValueError(
                "Referenced sees the actions of another policy, and no condition gives any: use --conditions "
                "Slow"
            )
        return torch.cat([context.reference.to(x_BHA.dtype), x_BHA], dim=-1)
