"""Temporal context: what the backbone is told about the past. One frame's encoding goes in per observation
step.

Legend: B batch, T = n_obs_steps, S tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """tokens `(B, S, D)` for attention; pooled `(B, G)` for FiLM; memory: what a recurrent context carries
    on."""

    tokens: Tensor
    pooled: Tensor
    memory: Tensor | None = None

    def repeat(self, n: int) -> Context:
        """Each row n times in a row: the context of n candidates per observation."""
        if n == 1:
            return self
        return Context(
            self.tokens.repeat_interleave(n, dim=0),
            self.pooled.repeat_interleave(n, dim=0),
            None if self.memory is None else self.memory.repeat_interleave(n, dim=0),
        )


class ContextPart(Protocol):
    """A frozen dataclass that makes the context of a policy from the encodings of its observations."""

    def pooled_width(self, width: int, n_obs_steps: int) -> int:
        """Last dimension of `Context.pooled` for encodings of `width`."""
        ...

    def __call__(self, z_BTD: Tensor, memory: Tensor | None = None) -> Context: ...


@dataclass(frozen=True)
class Stack:
    """The plain context of Diffusion Policy: the last `n_obs_steps` encodings as they are, side by side."""

    def pooled_width(self, width: int, n_obs_steps: int) -> int:
        return width * n_obs_steps

    def __call__(self, z_BTD: Tensor, memory: Tensor | None = None) -> Context:
        return Context(z_BTD, z_BTD.flatten(1), memory)
