"""The language model writes a chunk in few tokens, of its cosine transform (pi0-FAST, Pertsch et al. 2025,
arXiv 2501.09747).

Legend: B batch, N chunks, H horizon, A action dimensions, S tokens of a chunk at most, V tokens that there
are."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.language import Reader
from ..contexts.context import Context
from ..tokens import SCALE, VOCABULARY
from ..tokens import ActionTokens as Tokens
from .action_tokens import Choose, GoesOn, begin_row, writing_model
from .backbone import Head, Sizes, require_head

REACH = 2.0  # of an action, in normalised units, that the tokens are fitted to; what is beyond is cut
KEPT = 100_000  # chunks whose tokens are remembered: a training meets each of its windows many times


@dataclass(frozen=True)
class FAST:
    """A chunk is the tokens of `policies.tokens`, which are fitted on the chunks of the training data when
    the training begins, and each token one of the last words of the language model's vocabulary. It writes
    them in a row, each told those before it, until they make a whole chunk: a word that would make more is
    never chosen, so that every decision is a chunk. For the context `CachedPrefix` and a language model that
    `gives` words."""

    vocabulary: int = VOCABULARY
    """Tokens, at most: each value of one coefficient, then pairs."""
    scale: float = SCALE
    """How finely coefficients are rounded, to 1 / scale of a normalised action."""
    skip: int = 0
    """Words at the end of the language model's vocabulary that are left alone; published: 128."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, head, Head("tokens"))
        language = writing_model(self, sizes)
        words, least = language.part.vocabulary, unfitted(self, sizes).alphabet
        if not least <= self.vocabulary < words - self.skip:
            raise ValueError(
                f"FAST has {self.vocabulary} tokens: at least {least}, one for each value of a coefficient, "
                f"and fewer than the language model's words, {words} less {self.skip}: set "
                "--backbone.vocabulary, or a smaller --backbone.scale"
            )
        return FASTNet(self, sizes, language)


def unfitted(c: FAST, sizes: Sizes) -> Tokens:
    """No pairs yet: a token for each coefficient."""
    return Tokens(sizes.horizon, sizes.action_dim, c.scale, REACH)


class FASTNet(nn.Module):
    evaluations = 0  # what is written says how many, see `Writing`

    def __init__(self, c: FAST, sizes: Sizes, language: Reader) -> None:
        super().__init__()
        self.part, self.sizes = c, sizes
        self._language = (language,)  # in a tuple: its weights are the encoder's
        self.pairs: Tensor  # those of the tokens, -1 where there are no more
        self.register_buffer("pairs", torch.full((c.vocabulary, 2), -1, dtype=torch.int32))
        self.register_load_state_dict_pre_hook(_forget)
        self._tokens: Tokens | None = None
        self._known: dict[bytes, list[int]] = {}

    @property
    def tokens(self) -> Tokens:
        if self._tokens is None:
            bare, pairs = unfitted(self.part, self.sizes), self.pairs.tolist()
            there = tuple((a, b) for a, b in pairs if a >= 0)
            self._tokens, self._known = Tokens(bare.horizon, bare.width, bare.scale, bare.reach, there), {}
        return self._tokens

    @property
    def learned(self) -> bool:
        return bool((self.pairs >= 0).any())

    def learn(self, chunks_NHA: np.ndarray) -> str:
        """Fit the tokens to chunks as the network sees them; says in a sentence what came of it."""
        bare = unfitted(self.part, self.sizes)
        fitted = Tokens.fit(chunks_NHA.clip(-REACH, REACH), self.part.vocabulary, bare.scale, REACH)
        self.pairs.fill_(-1)
        if fitted.pairs:
            self.pairs[: len(fitted.pairs)] = torch.tensor(fitted.pairs, dtype=torch.int32)
        self._tokens = None
        mean = np.mean([len(self.tokens.encode(chunk)) for chunk in chunks_NHA])
        numbers = bare.horizon * bare.width
        return (
            f"a chunk of {numbers} numbers is {mean:.1f} action tokens, of {fitted.vocabulary} that there are"
        )

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> WrittenFAST:
        """What there is to say of B chunks; x is not used."""
        return WrittenFAST(self, context)

    def words(self, tokens: Tensor) -> Tensor:
        """The words that mean these tokens, from the vocabulary's end."""
        return self._language[0].part.vocabulary - 1 - self.part.skip - tokens

    def of(self, a_BHA: Tensor) -> tuple[Tensor, Tensor]:
        """(the tokens of chunks `(B, S)` int, which of them there are `(B, S)` bool)."""
        rows = [self._encoded(chunk) for chunk in a_BHA.detach().float().cpu().numpy()]
        most = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (most - len(row))] for row in rows], device=a_BHA.device)
        counts = torch.tensor([len(row) for row in rows], device=a_BHA.device)
        return padded, torch.arange(most, device=a_BHA.device) < counts[:, None]

    def _encoded(self, chunk_HA: np.ndarray) -> list[int]:
        tokens, key = self.tokens, blake2b(chunk_HA.tobytes(), digest_size=16).digest()
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = tokens.encode(chunk_HA)
        return self._known[key]


def _forget(net: FASTNet, *_: object) -> None:
    net._tokens = None


class WrittenFAST(GoesOn):
    """See `Writing`; computed when it is asked for."""

    def __init__(self, net: FASTNet, context: Context) -> None:
        super().__init__(net._language[0], net.sizes.layers, context)
        self.net = net

    def error(self, a_BHA: Tensor) -> Tensor:
        tokens, there = self.net.of(a_BHA)
        words = self.net.words(tokens)
        nats = F.cross_entropy(self.told(words).flatten(0, 1), words.flatten(), reduction="none")
        of_rows = (nats.view_as(there) * there).sum(1) * (len(there) / there.sum())
        return of_rows[:, None, None].expand(a_BHA.shape)

    def write(self, choose: Choose) -> tuple[Tensor, Tensor]:
        """Until each row is a chunk. What was read, and written, is not read again."""
        tokens, device = self.net.tokens, self.context.tokens.device
        (before, mask), ids = self._read, begin_row(self.context)
        lengths_V = torch.tensor(tokens.lengths, device=device)
        every = self.net.words(torch.arange(len(lengths_V), device=device))
        left = torch.full((len(ids),), tokens.horizon * tokens.width, device=device)
        passes, written = torch.zeros_like(left), []
        while (open_ := left > 0).any():
            hidden, before = self.language.further(self.language.embed(ids), before, mask, causal=True)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            logits = self.language.logits(hidden[:, -1:])[:, 0, every]
            fits = lengths_V <= torch.where(open_, left, 1)[:, None]  # a row that is whole says whatever
            token = choose(logits.masked_fill(~fits, -torch.inf), len(written))
            written.append(torch.where(open_, token, -1))
            left, passes = left - torch.where(open_, lengths_V[token], 0), passes + open_
            ids = self.net.words(token)[:, None]
        rows = torch.stack(written, dim=1).tolist()
        chunks = np.stack([tokens.decode([t for t in row if t >= 0]) for row in rows])
        return torch.from_numpy(chunks).to(device), passes
