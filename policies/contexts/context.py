"""Temporal context: what the backbone sees of the past, made of the encodings of the observation steps. Each
way to make it has a file of its own beside this one.

Legend: B batch, T = n_obs_steps, S tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """tokens `(B, S, D)` for attention; pooled `(B, G)` for FiLM."""

    tokens: Tensor
    pooled: Tensor

    def repeat(self, n: int) -> Context:
        """Each row n times in a row: the context of n candidates per observation."""
        if n == 1:
            return self
        return Context(
            self.tokens.repeat_interleave(n, dim=0),
            self.pooled.repeat_interleave(n, dim=0),
        )


class ContextPart(Protocol):
    """A frozen dataclass that makes the context of a policy from the encodings of its observations."""

    def pooled_width(self, width: int, n_obs_steps: int) -> int:
        """Last dimension of `Context.pooled` for encodings of `width`."""
        ...

    def __call__(self, z_BTD: Tensor) -> Context: ...
