"""Contexts that are a sequence model over the decisions of an episode, run step by step when acting and all
at once in training.

Legend: L links of a chain, B batch, T = n_obs_steps, K tokens of a frame, D width of the encodings, W inner
width, M memory width."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, carried
from .stack import stacked
from .state_space import StateSpace


class SequenceNet(ContextNet):
    """The last `n_obs_steps` encodings, and one more token that a stack of layers gives of all decisions."""

    def __init__(
        self,
        layers: list[StateSpace],
        width: int,
        seen: int,
        inner: int,
        conditions: int,
        condition_tokens: int,
        parts: int = 1,
    ) -> None:
        """seen: tokens of the observations, T·K. inner: W. parts: into how many a decision is divided, which
        are side by side in the layers' width: 1, or `seen`."""
        super().__init__()
        self.token_width, self.tokens = width, seen + condition_tokens + 1
        self.pooled_width = width * (seen + conditions) + inner
        self.parts, self.inner = parts, inner
        self.enter, self.token = nn.Linear(width * seen // parts, inner), nn.Linear(inner, width)
        self.norm, self.blocks = nn.LayerNorm(inner), nn.ModuleList(layers)
        self.states = [layer.state for layer in layers]
        self.memory_width = sum(self.states)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        u = self._entered(z_BTKD)
        before, _ = carried(memory, fresh, u.new_zeros(len(u), self.memory_width))
        after = []
        for layer, state in zip(self.blocks, before.split(self.states, dim=1), strict=True):
            u, state = layer.step(u, state)  # type: ignore[operator]
            after.append(state)
        return replace(self._context(z_BTKD, conditions, u), memory=torch.cat(after, dim=1))

    def along(self, z: Tensor, conditions: Conditions | None, fresh: Tensor) -> Context:
        u = self._entered(z).unflatten(0, fresh.shape)
        for layer in self.blocks:
            u = layer(u)
        return self._context(z, conditions, u.flatten(0, 1))

    def _entered(self, z_BTKD: Tensor) -> Tensor:
        return self.enter(z_BTKD.flatten(1).unflatten(1, (self.parts, -1))).flatten(1)

    def _context(self, z_BTKD: Tensor, conditions: Conditions | None, u: Tensor) -> Context:
        read = self.norm(u[:, -self.inner :])  # of the last part, which has seen the others
        return stacked(z_BTKD, conditions).first(self.token(read)[:, None], read)
