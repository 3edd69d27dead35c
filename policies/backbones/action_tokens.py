"""The language model itself writes the actions, as tokens (RT-2, Brohan et al. 2023, arXiv 2307.15818;
OpenVLA, Kim et al. 2024, arXiv 2406.09246).

Legend: B batch, H horizon, A action dimensions, N = H·A tokens, S tokens of the prefix, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.language import KeysValues, Reader
from ..contexts.context import Context, Layers
from .backbone import Head, Sizes, require_head

BEGIN = 0  # the row of the table after which the actions begin; no text has it

Choose = Callable[[Tensor, int], Tensor]
"""Of the logits of those tokens that may come next `(B, C)`, and how many were written before: which one,
`(B,)`."""


class Writing(Protocol):
    """What a language model writes after B contexts: the output of a head of tokens."""

    def error(self, a_BHA: Tensor) -> Tensor:
        """How much chunks surprise it, in nats, so that the mean over all `(B, H, A)` is that of their
        tokens."""
        ...

    def write(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """(chunks `(B, H, A)` float32, how many passes each took `(B,)` int), a token after the other."""
        ...


def begin_row(context: Context, begin: int = BEGIN) -> Tensor:
    """`(B, 1)` int, the token before the first one that is written; by default of a chunk."""
    tokens = context.tokens
    return torch.full((len(tokens), 1), begin, dtype=torch.long, device=tokens.device)


@dataclass(frozen=True)
class ActionTokens:
    """Each element of an action is one of `bins` even parts of [-1, 1], and each part a word of the language
    model, the last ones of its vocabulary; it writes the elements of the chunk in a row, each told those
    before it. It has no weights of its own. For the context `CachedPrefix` and a language model that `gives`
    words."""

    bins: int = 256
    """Parts of an element's range."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("tokens"))
        language = writing_model(self, sizes)
        if not 2 <= self.bins < language.part.vocabulary:
            raise ValueError(
                f"ActionTokens has {self.bins} bins: at least 2, and fewer than the language model's "
                f"vocabulary of {language.part.vocabulary}"
            )
        return ActionTokensNet(self, sizes, language)


def writing_model(backbone: object, sizes: Sizes) -> Reader:
    """The encoder's language model, for a backbone in which it goes on from what it read."""
    name = type(backbone).__name__
    if sizes.layers is None or not isinstance(sizes.language, Reader):
        raise ValueError(
            f"{name} lets the language model go on from what it read: use --encoder VisionLanguage --context "
            "CachedPrefix"
        )
    if sizes.language.part.gives != "words":
        raise ValueError(
            f"{name} needs a language model that gives words, and this one gives "
            f"{sizes.language.part.gives}: set --encoder.language.gives words"
        )
    return sizes.language


def what_was_read(context: Context, layers: Layers | None) -> tuple[KeysValues, Tensor]:
    """(the keys and values of each layer, which tokens there are `(B, S)`)."""
    assert layers is not None
    before = [(k.transpose(1, 2), v.transpose(1, 2)) for k, v in layers.of(context.tokens)]
    mask = context.mask
    if mask is None:
        mask = torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=context.tokens.device)
    return before, mask


class ActionTokensNet(nn.Module):
    evaluations = 0  # what is written says how many, see `Writing`

    def __init__(self, c: ActionTokens, sizes: Sizes, language: Reader) -> None:
        super().__init__()
        self.bins, self.sizes, self.shape = c.bins, sizes, (sizes.horizon, sizes.action_dim)
        self._language = (language,)  # in a tuple: its weights are the encoder's

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Written:
        """What there is to say of B chunks; x is not used."""
        return Written(self, context)


class GoesOn:
    """A language model after B contexts, which are looked at when it is asked."""

    def __init__(self, language: Any, layers: Layers | None, context: Context) -> None:
        self.language, self.layers, self.context = language, layers, context

    @cached_property
    def _read(self) -> tuple[KeysValues, Tensor]:
        return what_was_read(self.context, self.layers)

    def told(self, words_BS: Tensor, begin: int = BEGIN) -> Tensor:
        """`(B, S, words)` float32 of each word, given those before it and first of all `begin`; in one
        pass."""
        ids = torch.cat([begin_row(self.context, begin), words_BS[:, :-1]], dim=1)
        before, mask = self._read
        hidden, _ = self.language.further(self.language.embed(ids), before, mask, causal=True)
        return self.language.logits(hidden)


class Written(GoesOn):
    """See `Writing`; computed when it is asked for."""

    def __init__(self, net: ActionTokensNet, context: Context) -> None:
        super().__init__(net._language[0], net.sizes.layers, context)
        self.net = net

    def ids(self, bins: Tensor) -> Tensor:
        """The words that mean these bins: the lowest bin is the last word of the vocabulary."""
        return self.language.part.vocabulary - 1 - bins

    def logits(self, bins_BHA: Tensor) -> Tensor:
        """`(B, H, A, V)` float32 of each element's word, given the chunk's elements before it; in one
        pass."""
        return self.told(self.ids(bins_BHA.flatten(1))).unflatten(1, self.net.shape)

    def error(self, a_BHA: Tensor) -> Tensor:
        bins = bins_of(a_BHA.float(), self.net.bins)
        error = F.cross_entropy(self.logits(bins).flatten(0, 2), self.ids(bins).flatten(), reduction="none")
        return error.reshape(a_BHA.shape)

    def write(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Each element by the middle of its bin; the lowest bin is the first choice. What was read, and
        written, is not read again."""
        (before, mask), ids, bins = self._read, begin_row(self.context), []
        passes = self.net.shape[0] * self.net.shape[1]
        for n in range(passes):
            hidden, before = self.language.further(self.language.embed(ids), before, mask, causal=True)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            logits = self.language.logits(hidden)[:, -1, -self.net.bins :].flip(-1)
            bins.append(choose(logits, n))
            ids = self.ids(bins[-1])[:, None]
        chunk = middles(torch.stack(bins, dim=1).unflatten(1, self.net.shape), self.net.bins)
        return chunk, torch.full((len(chunk),), passes)


def bins_of(x: Tensor, bins: int) -> Tensor:
    """In which of so many even parts of [-1, 1] each number lies, from 0; beyond them: in the outermost."""
    return ((x + 1) * (bins / 2)).floor().clamp(0, bins - 1).long()


def middles(which: Tensor, bins: int) -> Tensor:
    """float32, the middle of each part."""
    return (2 * which.float() + 1) / bins - 1
