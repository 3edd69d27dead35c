"""What the conditions that read a text by a tokenizer have in common. A published tokenizer is kept in the
checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..adapters.tokens import HashedPieces, PublishedPieces, Tokenizer, tokenizer_text
from ..serving.protocol import BadRequest
from .condition import ConditionNet


class TokenizedNet(ConditionNet):
    """name: of the part, for what is said of it. published: folder, package or hub name of the tokenizer;
    empty: the words' hashes. most: tokens that a text may have. vocabulary_is: the option that says how many
    tokens there are."""

    def __init__(self, name: str, published: str, most: int, vocabulary_is: str) -> None:
        super().__init__()
        self.name, self.most, self.vocabulary_is = name, most, vocabulary_is
        self.published_as = published
        self._tokenizer: Tokenizer | None = None
        if published:
            # the text of the tokenizer: a checkpoint needs no other file, and has it in its content hash
            self.published: Tensor
            self.register_buffer("published", torch.zeros(0, dtype=torch.uint8))
            self.register_load_state_dict_pre_hook(_make_room)

    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        raise NotImplementedError

    def begin(self) -> str:
        """Read what is published, where it is named and is not here yet; says in a sentence what was read,
        "" where there is nothing to say."""
        if self.published_as and not len(self.published):
            text = tokenizer_text(self.published_as).encode()
            self.published = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return ""

    def require(self, task: str) -> None:
        """BadRequest where the instruction cannot be read."""
        self.ids(task)

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            if self.published_as:
                self.begin()
                self._tokenizer = pieces_of(bytes(self.published.cpu().numpy()))
            else:
                self._tokenizer = HashedPieces(self.vocabulary())
        return self._tokenizer

    def ids(self, text: str) -> list[int]:
        """BadRequest where the text has too many tokens, or ones that the model does not know."""
        ids = self.tokenizer()(text)
        if len(ids) > self.most:
            raise BadRequest(
                f"the instruction has {len(ids)} tokens, and the policy reads at most {self.most} "
                f"({text[:60]!r} ...): say it shorter, or train with --conditions.{self.name}.most {len(ids)}"
            )
        rows = self.vocabulary()
        if ids and max(ids) >= rows:
            raise BadRequest(
                f"the tokenizer gives the token {max(ids)}, and the model's vocabulary has {rows}: they do "
                f"not belong together ({self.vocabulary_is})"
            )
        return ids


def padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of tokens, 0 where a row is over, and which of them there are: `(B, S)` int64 and bool, S the
    longest row's length and at least 1."""
    ids = torch.zeros(len(rows), max(map(len, rows), default=0) or 1, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask


def _make_room(net: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """For the tokenizer of a checkpoint, whose length is its own."""
    if (text := state.get(f"{prefix}published")) is not None:
        net.published, net._tokenizer = torch.empty_like(text), None


@lru_cache(maxsize=4)
def pieces_of(text: bytes) -> Tokenizer:
    return PublishedPieces(text.decode())
