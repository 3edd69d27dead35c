"""A time for each action of the chunk (Black et al. 2025, arXiv 2512.05964; Chen et al. 2024, Diffusion
Forcing, arXiv 2407.01392). Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Output, Sizes, outputs, require_head
from .mlp import ResidualMLP


@dataclass(frozen=True)
class TokenTimes:
    """The `inner` network sees of each action how noisy it is, as one more element of the action, from -1
    (noise) to 1 (data); the time of the chunk is that of its last action."""

    inner: Backbone = ResidualMLP()
    """Any network of chunks."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        offers = Head("chunk", 1, forward_mode=head.forward_mode, second_order=head.second_order)
        require_head(self, replace(head, token_times=False), offers)
        if type(self.inner) is TokenTimes:
            raise ValueError("TokenTimes wraps a plain network, not another TokenTimes")
        wider = replace(sizes, action_dim=sizes.action_dim + 1)
        return TokenTimesNet(self.inner.build(wider, replace(head, token_times=False)))


class TokenTimesNet(nn.Module):
    """t: `(B,)`, one for all actions, or `(B, H)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.evaluations = int(getattr(inner, "evaluations", 1))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.inner(*self._inputs(x_BHA, s, t), context)[..., :-1]

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        output = outputs(self.inner, *self._inputs(x_BHA, s, t), context)
        views = tuple((chunk[..., :-1], mask) for chunk, mask in output.views)
        return replace(output, chunk=output.chunk[..., :-1], views=views)

    def _inputs(self, x_BHA: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each = t if t.ndim == 2 else t[:, None].expand(x_BHA.shape[:2])
        time = each[:, -1]
        return torch.cat([x_BHA, 2 * each[..., None].to(x_BHA) - 1], dim=-1), time, time
