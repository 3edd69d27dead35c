"""A language model that writes actions beside an expert that draws them, for knowledge insulation (Driess et
al. 2025, arXiv 2505.23705).

Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..contexts.context import Context
from .action_expert import ActionExpert
from .action_tokens import Writing
from .backbone import Backbone, Head, Sizes
from .fast_tokens import FAST


@dataclass(frozen=True)
class Insulated:
    """The `inner` network acts; `words` are what the language model writes, which only training asks for.
    For the objective `KnowledgeInsulation`, and a language model that `gives` words. With another objective,
    this is the inner network."""

    inner: Backbone = ActionExpert()
    """What gives the chunk that is executed."""
    words: Backbone = FAST()
    """In which tokens the language model learns to write it: FAST, or ActionTokens."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        inner = self.inner.build(sizes, replace(head, words=False))
        return InsulatedNet(inner, self.words.build(sizes, Head("tokens"))) if head.words else inner


class InsulatedNet(nn.Module):
    def __init__(self, inner: nn.Module, words: nn.Module) -> None:
        super().__init__()
        self.inner, self.words = inner, words
        self.evaluations = int(getattr(inner, "evaluations", 1))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.inner(x_BHA, s, t, context)

    def writes(self, x_BHA: Tensor, t: Tensor, context: Context) -> Writing:
        """What the language model says of the context."""
        return self.words(x_BHA, t, t, context)
