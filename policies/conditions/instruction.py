"""An instruction as a language model reads it: the policy is told what to do, and perhaps where the robot is,
by a text.

Legend: B batch, K tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.features import Features, state_keys
from ..request import TASK
from .condition import ConditionNet, OfTask
from .tokenized import TokenizedNet, padded

BINS = 256  # of a state's element, told in words


@dataclass(frozen=True)
class Instruction(OfTask):
    """The task and a line end, as tokens of the encoder's language model (`VisionLanguage`)."""

    tokenizer: str = ""
    """Folder or hub name of a published tokenizer (its tokenizer.json), which the checkpoint keeps; empty:
    the words' hashes, for models that begin from random weights."""
    most: int = 48
    """Tokens that a text may have; a longer one is refused."""
    state: bool = False
    """Tell the state, too, each element as one of 256 numbers, as pi0.5 does."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if not hasattr(encoder, "language"):
            raise ValueError(
                "Instruction is read by the encoder's language model, and this encoder has none: use "
                "--encoder VisionLanguage, or --conditions Words"
            )
        told = state_keys(features) if self.state else []
        return InstructionNet(self, encoder, told, sum(features[k].shape[0] for k in told))

    def text(self, task: str, state: Tensor | None) -> str:
        """What is read. state: all elements, normalised to [-1, 1]; None: they are not told."""
        if state is None:
            return task if task.endswith("\n") else f"{task}\n"
        bins = ((state.double() + 1) * (BINS / 2)).floor().clamp(-1, BINS - 1).long().tolist()
        words = task.strip().replace("_", " ").replace("\n", " ")
        return f"Task: {words}, State: {' '.join(map(str, bins))};\nAction: "


class InstructionNet(TokenizedNet):
    def __init__(self, part: Instruction, encoder: nn.Module, told: list[str], told_width: int) -> None:
        super().__init__("Instruction", part.tokenizer, part.most, "--encoder.language.vocabulary")
        self.part, self.n_tokens, self.told, self.told_width = part, part.most, told, told_width
        self._encoder = (encoder,)  # in a tuple, or its weights would count twice

    def vocabulary(self) -> int:
        language: Any = self._encoder[0].language
        return language.part.vocabulary

    def require(self, task: str) -> None:
        """BadRequest where the instruction cannot be read, whatever the state."""
        widest = torch.ones(self.told_width) if self.told else None
        self.ids(self.part.text(task, widest))

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        tasks = observation[TASK]
        if self.told:
            states = torch.cat([observation[k][:, -1] for k in self.told], dim=-1).cpu()
            texts = [self.part.text(task, state) for task, state in zip(tasks, states, strict=True)]
        else:
            texts = [self.part.text(task, None) for task in tasks]
        # a batch holds few different texts; an empty task is one that is not told
        different = {text: self.ids(text) for text in dict.fromkeys(texts)}
        rows, mask = padded([different[text] for text in texts])
        told = torch.tensor([[bool(task.strip())] for task in tasks], dtype=torch.bool).reshape(-1, 1)
        rows, mask = rows * told, mask & told
        language: Any = self._encoder[0].language
        device = language.embed_tokens.weight.device
        return language.embed(rows.to(device)), mask.to(device)
