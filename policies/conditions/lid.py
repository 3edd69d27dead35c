"""A language model's weights as where a policy begins (LID, Li et al. 2022, arXiv 2202.01771).

Legend: B batch, T = n_obs_steps, S tokens of the text, N tokens of what is seen, W width of the language
model, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import Features, state_keys
from ..adapters.sentences import SentenceEncoder, take_published
from ..adapters.tokens import SENTENCES
from ..request import TASK
from .condition import ConditionNet, OfTask
from .tokenized import TokenizedNet, padded


@dataclass(frozen=True)
class LID(OfTask):
    """A language model reads the instruction, and after it what is seen, as if that were more of the text:
    each `size` elements of a vector are one token, made by a small network. The mean of what it makes of all
    of them is one token for the policy. All of its weights are trained. The defaults are the sizes of
    all-MiniLM-L6-v2, which a package of `ulna[vla]` holds."""

    weights: str = SENTENCES
    """Folder, installed package or hub name of a published language model of BERT's kind (its tokenizer.json
    and model.safetensors); empty: random weights and the words' hashes."""
    pretrained: bool = True
    """Begin with its published weights; else with random ones, and its tokenizer alone: what is read is the
    same."""
    size: int = 2
    """Elements of a token of what is seen; a vector's last token may have fewer."""
    width: int = 384
    """Of the language model."""
    depth: int = 6
    """Layers, of a published model the first so many."""
    heads: int = 12
    """Of its attention, in each layer."""
    ffn: int = 1536
    """Hidden units of a layer."""
    vocabulary: int = 30522
    """Rows of its table of tokens."""
    positions: int = 512
    """Rows of its table of places."""
    most: int = 64
    """Tokens that an instruction may have; a longer one is refused."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1: neither words nor what is seen."""

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if self.size < 1:
            raise ValueError(f"LID's size is {self.size}: a token of what is seen has at least one element")
        return LIDNet(self, {k: features[k].shape[0] for k in state_keys(features)}, width)


class LIDNet(TokenizedNet):
    n_tokens = 1

    def __init__(self, part: LID, elements: dict[str, int], width: int) -> None:
        super().__init__("LID", part.weights, part.most, "--conditions.LID.vocabulary")
        self.part, self.elements = part, elements
        self.model = SentenceEncoder(
            part.width, part.depth, part.heads, part.ffn, part.vocabulary, part.positions
        )
        parts = sum(-(-n // part.size) for n in elements.values())
        self.seen = nn.Sequential(
            nn.Linear(part.size, part.width), nn.GELU(), nn.Linear(part.width, part.width)
        )
        self.names = nn.Parameter(0.02 * torch.randn(parts, part.width))  # which part of what it is
        self.project = nn.Linear(part.width, width)

    def vocabulary(self) -> int:
        return self.part.vocabulary

    def begin(self) -> str:
        if not self.published_as or len(self.published):
            return ""
        super().begin()
        if not self.part.pretrained:
            return f"reads by the tokenizer of {self.published_as}, with a language model of random weights"
        count = take_published(self.model, self.published_as)
        return f"began with the language model of {self.published_as}, {count} weights"

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        device, most = self.project.weight.device, self.part.most
        ids, there = (v.to(device) for v in padded([self.ids(task) for task in observation[TASK]]))
        words, seen = self.model.embeddings["word_embeddings"](ids), self.of_what_is_seen(observation)
        last = most + seen.shape[1]
        if last > self.part.positions:
            raise ValueError(
                f"LID reads {most} tokens of words and {seen.shape[1]} of what is seen, and the language "
                f"model knows {self.part.positions} places: set a larger --conditions.LID.size, or a smaller "
                "--conditions.LID.most"
            )
        # what is seen has its own places, however long the other rows' words are
        places = torch.cat([torch.arange(ids.shape[1]), torch.arange(most, last)]).to(device)
        mask = torch.cat([there, torch.ones(seen.shape[:2], dtype=torch.bool, device=device)], dim=1)
        read = self.model.read(torch.cat([words, seen], dim=1), places, mask)
        return self.project(read)[:, None], torch.ones(len(ids), 1, dtype=torch.bool, device=device)

    def of_what_is_seen(self, observation: Mapping[str, Any]) -> Tensor:
        """`(B, N, W)`, the vectors of each observation step in the features' order."""
        rows = []
        for key, n in self.elements.items():
            rest = -n % self.part.size
            rows.append(nn.functional.pad(observation[key], (0, rest)).unflatten(-1, (-1, self.part.size)))
        return (self.seen(torch.cat(rows, dim=2)) + self.names).flatten(1, 2)
