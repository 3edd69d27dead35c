"""The contract of a backbone: the network that turns a noisy chunk, its time and what was observed into a
chunk. Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Backbone(Protocol):
    """A frozen dataclass whose fields are the settings of the network that `build` makes."""

    def build(self, action_dim: int, horizon: int, token_width: int, pooled_width: int) -> nn.Module:
        """A network `(x (B, H, A), s (B,), t (B,), context: Context) -> (B, H, A)`; s = t but for flow maps.
        token_width, pooled_width: last dimensions of `context.tokens` and `context.pooled`. ValueError says
        what does not fit, such as a horizon that the network cannot have."""
        ...
