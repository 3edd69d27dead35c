"""A chain of action (OpenHA, Wang et al. 2025, arXiv 2509.13347): the network first says in a word or two
what it is about to do, then does that.

Legend: B batch, H horizon, A action dimensions, Z width of a word, E elements that words are about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contexts.context import Context, Shown
from .backbone import Backbone, Head, Output, Sizes, outputs
from .mlp import ResidualMLP

Thought = Literal["motion", "point"]


@dataclass(frozen=True)
class ChainOfAction:
    """The `inner` network is told an abstract action b beside what is observed: p(b | o) p(a | o, b). In
    training b is read off the demonstrated chunk; when acting it is the likeliest word by a network of its
    own, which sees the pooled context. Several are a chain, each told those before it.

    It takes the place of the latent of `CVAE`, whose divergence, of a word that the chunk fixes, is the
    cross-entropy of that word. With an objective that has none, this is the inner network."""

    inner: Backbone = ResidualMLP()
    """The network that is told what is about to be done."""
    thoughts: tuple[Thought, ...] = ("motion",)
    """In which words, one after the other. motion: for each element, whether it falls, stays or rises from
    the first action to the last. point: where the last action lies."""
    elements: int = 3
    """E, which words are about: the first ones of an action; fewer where it has fewer."""
    still: float = 0.1
    """How far an element may move, in normalised units, and be said to stay."""
    bins: int = 5
    """Into how many parts of -1.5 to 1.5, in normalised units, a point divides an element."""
    width: int = 128
    """Of the hidden layer of the network that finds the words."""
    shuffled: bool = False
    """A control: when acting, each word is mistaken for another, always the same. A policy that minds what it
    says fails then."""

    def __post_init__(self) -> None:
        if not self.thoughts or not set(self.thoughts) <= set(get_args(Thought)):
            raise ValueError(f"ChainOfAction's thoughts are one or more of {', '.join(get_args(Thought))}")
        if min(self.elements, self.width) < 1 or self.bins < 2 or self.still < 0:
            raise ValueError(
                "ChainOfAction's elements and width are at least 1, its bins at least 2, still not negative"
            )

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        if not head.latent:
            return self.inner.build(sizes, head)
        n = len(self.thoughts)
        told = replace(sizes, tokens=sizes.tokens + n, pooled_width=sizes.pooled_width + n * head.latent)
        return ChainOfActionNet(self, self.inner.build(told, replace(head, latent=0)), sizes, head)


class ChainOfActionNet(nn.Module):
    def __init__(self, c: ChainOfAction, inner: nn.Module, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.inner, self.part, self.first = inner, c, sizes.n_past_actions
        self.evaluations = int(getattr(inner, "evaluations", 1))
        self.elements = min(c.elements, sizes.action_dim)
        words = [(3 if kind == "motion" else c.bins) ** self.elements for kind in c.thoughts]
        self.prior = nn.ModuleList(
            nn.Sequential(
                nn.Linear(sizes.pooled_width + i * head.latent, c.width), nn.Mish(), nn.Linear(c.width, n)
            )
            for i, n in enumerate(words)
        )
        self.words = nn.ModuleList(nn.Embedding(n, head.latent) for n in words)
        self.token = nn.Linear(head.latent, sizes.token_width)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.inner(x_BHA, s, t, self.told(context)[0])

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        told, surprise = self.told(context)[:2]
        output = outputs(self.inner, x_BHA, s, t, told)
        return output if surprise is None else replace(output, extras={**output.extras, "kl": surprise})

    def told(self, context: Context) -> tuple[Context, Tensor | None, Tensor]:
        """(the context with the words; where a chunk is shown, the mean over the rows of what the words
        surprise by, in nats; the words `(B, n)` int)."""
        shown, surprise = context.shown, None
        seen, tokens, said = context.pooled, [], []
        for kind, prior, words in zip(self.part.thoughts, self.prior, self.words, strict=True):
            logits = prior(seen)
            if shown is not None:
                word = self.read(kind, shown)
                nats = shown.mean(F.cross_entropy(logits.float(), word, reduction="none"))
                surprise = nats if surprise is None else surprise + nats
            else:
                word = logits.argmax(1)
                if self.part.shuffled:
                    word = logits.shape[1] - 1 - word  # of a motion, its opposite
            z = words(word)
            seen = torch.cat([seen, z], dim=-1)
            tokens.append(self.token(z))
            said.append(word)
        pooled = seen[:, context.pooled.shape[1] :]
        told = replace(context.first(torch.stack(tokens, dim=1), pooled), shown=None)
        return told, surprise, torch.stack(said, dim=1)

    def read(self, kind: Thought, shown: Shown) -> Tensor:
        """The word `(B,)` int that a chunk is, of the actions that count from now on: its digits, the first
        element's the highest, are 0, 1, 2 for falls, stays and rises, or the part that the point lies in."""
        a, counts = shown.actions[:, self.first :, : self.elements].float(), shown.mask[:, self.first :]
        last = (counts * torch.arange(1, counts.shape[1] + 1, device=a.device)).argmax(1)
        end = a.take_along_dim(last[:, None, None], dim=1)[:, 0]
        if kind == "motion":
            moved = end - a[:, 0]
            digits, base = 1 + (moved > self.part.still).long() - (moved < -self.part.still).long(), 3
        else:
            base = self.part.bins
            digits = ((end + 1.5) / 3 * base).floor().long().clamp(0, base - 1)
        places = base ** torch.arange(self.elements - 1, -1, -1, device=a.device)
        return (digits * places).sum(1)
