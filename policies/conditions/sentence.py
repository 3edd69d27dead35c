"""An instruction by its meaning: the policy is told the vector of a sentence encoder, so that it also
understands sentences which training did not have.

Legend: B batch, W width of the sentence encoder, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import Features
from ..adapters.sentences import SentenceEncoder, take_published
from ..adapters.tokens import SENTENCES
from ..request import TASK
from .condition import ConditionNet, OfTask
from .tokenized import TokenizedNet, padded

KNOWN = 4096  # sentences whose vectors are kept


@dataclass(frozen=True)
class Sentence(OfTask):
    """The task as one token: what a sentence encoder makes of it, through a learned layer. The encoder stays
    as it is, and reads each sentence once. The defaults are the sizes of all-MiniLM-L6-v2, 22.7 million
    weights, which a package of `ulna[vla]` holds, so that nothing is fetched."""

    weights: str = SENTENCES
    """Folder, installed package or hub name of a published sentence encoder (its tokenizer.json and
    model.safetensors), which the checkpoint keeps; empty: random weights and the words' hashes, to which two
    sentences of one meaning are strangers."""
    width: int = 384
    """Of the encoder's vectors."""
    depth: int = 6
    """Number of its layers."""
    heads: int = 12
    """Of its attention, in each layer."""
    ffn: int = 1536
    """Hidden units of a layer."""
    vocabulary: int = 30522
    """Rows of its table of tokens."""
    positions: int = 512
    """Rows of its table of places."""
    most: int = 64
    """Tokens that an instruction may have, up to positions; a longer one is refused."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.most > self.positions:
            raise ValueError(
                f"Sentence reads at most {self.positions} tokens (--conditions.Sentence.positions), not "
                f"{self.most}"
            )
        return SentenceNet(self, width)


class SentenceNet(TokenizedNet):
    n_tokens = 1

    def __init__(self, part: Sentence, width: int) -> None:
        super().__init__("Sentence", part.weights, part.most, "--conditions.Sentence.vocabulary")
        self.part = part
        self.model = SentenceEncoder(
            part.width, part.depth, part.heads, part.ffn, part.vocabulary, part.positions
        ).requires_grad_(False)
        self.project = nn.Linear(part.width, width)
        self._known: dict[str, Tensor] = {}
        self.register_load_state_dict_pre_hook(_forget)

    def vocabulary(self) -> int:
        return self.part.vocabulary

    def begin(self) -> str:
        if not self.published_as or len(self.published):
            return ""
        count = take_published(self.model, self.published_as)
        self._known.clear()
        super().begin()
        return f"reads words by the sentence encoder of {self.published_as}, {count} weights"

    def vectors(self, tasks: list[str]) -> Tensor:
        """`(B, W)`, of variance 1 where an element is like another; differentiable where weights of the
        encoder are trained, such as adapters."""
        different = list(dict.fromkeys(tasks))
        if any(p.requires_grad for p in self.model.parameters()):
            of = dict(zip(different, self._read(different), strict=True))
        else:
            if new := [task for task in different if task not in self._known]:
                if len(self._known) + len(new) > KNOWN:
                    self._known, new = {}, different
                with torch.no_grad():
                    self._known |= zip(new, self._read(new), strict=True)
            of = self._known
        return torch.stack([of[task] for task in tasks]) * self.part.width**0.5

    def _read(self, tasks: list[str]) -> Tensor:
        rows, mask = padded([self.ids(task) for task in tasks])
        device = self.project.weight.device
        return self.model(rows.to(device), mask.to(device))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        tasks = list(observation[TASK])
        told = self.project(self.vectors(tasks).to(self.project.weight))
        mask = torch.tensor([bool(task.strip()) for task in tasks], device=told.device)
        return told[:, None], mask[:, None]


def _forget(net: Any, *_: Any) -> None:
    """Vectors of other weights."""
    net._known = {}
