"""Words: the policy is told what to do by an instruction.

Legend: B batch, K words, D width."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import Features
from ..request import TASK
from ..serving.protocol import BadRequest
from .condition import ConditionNet, OfTask


@dataclass(frozen=True)
class Words(OfTask):
    """The task's words, each a token. Neither a vocabulary nor a language model: a word is known by hashes of
    its letters in lower case, each the row of a table of learned vectors, and its token is their sum (hash
    embeddings, Svenstrup et al. 2017, arXiv 1709.03933), so that two words are the same to the policy only
    where all their hashes agree. Right for the few words of a robot's tasks; words that training did not have
    mean nothing. A task without words counts as one that is not told."""

    rows: int = 256
    """Of the table of vectors."""
    hashes: int = 2
    """Rows of the table that make a word."""
    most: int = 16
    """Words that an instruction may have; a longer one is refused."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def split(self, task: str) -> list[str]:
        """The words of an instruction. BadRequest where there are too many."""
        return split(task, self.most, "Words")

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        return WordsNet(self, width)


class WordsNet(ConditionNet):
    def __init__(self, part: Words, width: int, of: str = "Words") -> None:
        """of: the part whose `most` says how many words there may be."""
        super().__init__()
        self.part, self.n_tokens, self.of = part, part.most, of
        self.table = nn.Embedding(part.rows, width)
        self.positions = nn.Parameter(0.1 * torch.randn(part.most, width))
        # beyond a sum of word and place, or the mean over the tokens would not know their order
        self.mix = nn.Sequential(nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        device = self.positions.device
        # a batch holds few different tasks, and splitting words costs more than the network does
        different: dict[str, int] = {}
        which = [different.setdefault(task, len(different)) for task in observation[TASK]]
        part = self.part
        rows = torch.zeros(len(different), part.most, part.hashes, dtype=torch.long)
        mask = torch.zeros(len(different), part.most, dtype=torch.bool)
        for i, task in enumerate(different):
            for j, word in enumerate(split(task, part.most, self.of)):
                rows[i, j] = torch.tensor(word_rows(word, part.rows, part.hashes))
                mask[i, j] = True
        rows, mask = rows[which], mask[which]
        words = self.table(rows.to(device)).sum(2)
        return self.mix(words + self.positions), mask.to(device)


def split(task: str, most: int, part: str) -> list[str]:
    """The words of an instruction. BadRequest where there are more than `most`, a field of `part`."""
    words = re.findall(r"\w+", task.lower())
    if len(words) > most:
        raise BadRequest(
            f"the instruction has {len(words)} words, and the policy reads at most {most} "
            f"({task[:60]!r} ...): say it shorter, or train with --conditions.{part}.most {len(words)}"
        )
    return words


@lru_cache(maxsize=4096)
def word_rows(word: str, rows: int, hashes: int) -> tuple[int, ...]:
    """Rows of the table for a word: the same on every machine and in every version."""
    return tuple(
        int.from_bytes(hashlib.sha256(f"{i} {word}".encode()).digest()[:6], "big") % rows
        for i in range(hashes)
    )
