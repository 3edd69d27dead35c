"""A change: the policy is told by words, or by a start and a goal, how things shall come to differ, and both
say it in one space (GRIF, Myers et al. 2023, arXiv 2307.00117).

Legend: B batch, L rows whose words are known, Z width of the common space, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...datasets.features import Features, state_keys
from ..request import TASK
from .condition import ConditionNet
from .goal import GOAL
from .words import Words, WordsNet, split

START = "start."


@dataclass(frozen=True)
class Change:
    """One token, of words or of what has changed between an episode's start and its end. In training both are
    drawn together where they belong to one episode, and apart where they do not (InfoNCE both ways), so that
    a few episodes with words teach the policy to read words, while all of them teach it to act. A request may
    hold the words, or `goal.<key>` and perhaps `start.<key>`, which else is what is seen now; where it holds
    both, the words count.

    Faithful: the loss, its learned temperature, one policy told by either, words that know nothing of the
    start. Not: vectors through a small network, told the difference besides, in the place of two pictures
    through CLIP; words by hashes in the place of CLIP's text; the three losses are learned together from the
    start. Pairs of one instruction are not pushed apart, where the published loss does."""

    optional: ClassVar[bool] = True
    of: tuple[str, ...] = ()
    """Vectors whose change counts; empty: all."""
    space: int = 64
    """Z, width of the space in which both are of length 1."""
    hidden: int = 128
    """Width of the hidden layers of the network that reads the change."""
    told: Literal["change", "goal"] = "change"
    """Whether it sees the start beside the goal, or the goal alone."""
    align: float = 1.0
    """Weight of the loss that draws words and changes together; 0: each is learned by itself."""
    by_words: float = 0.5
    """Share of the training rows with words that are told by them, 0 to 1; the others are told by the change,
    as are all rows without words."""
    most: int = 16
    """Words that an instruction may have; a longer one is refused."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"task": True, "goal": "last", "goal_keys": self.of, "start": True}

    def keys(self, features: Features) -> tuple[str, ...]:
        of = self.of or tuple(state_keys(features))
        if unknown := [k for k in of if k not in state_keys(features)]:
            raise ValueError(
                f"the change is of {unknown[0]}, and the vectors of the data are "
                f"{', '.join(state_keys(features)) or 'none'}: choose from them (--conditions.Change.of)"
            )
        return (TASK, *(GOAL + k for k in of), *(START + k for k in of))

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def split(self, task: str) -> list[str]:
        """The words of an instruction. BadRequest where there are too many."""
        return split(task, self.most, "Change")

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if not 0 <= self.by_words <= 1 or self.align < 0:
            raise ValueError("Change's by_words lies in 0..1, and its align is not negative")
        of = self.of or tuple(state_keys(features))
        return ChangeNet(self, of, sum(features[k].shape[0] for k in of), width)


class ChangeNet(ConditionNet):
    n_tokens = 1

    def __init__(self, part: Change, of: tuple[str, ...], inputs: int, width: int) -> None:
        super().__init__()
        self.part, self.of = part, of
        self.words = WordsNet(Words(most=part.most), part.hidden, "Change")
        self.words_out = nn.Linear(part.hidden, part.space)
        self.change = nn.Sequential(
            nn.Linear(3 * inputs if part.told == "change" else inputs, part.hidden),
            nn.Mish(),
            nn.Linear(part.hidden, part.hidden),
            nn.Mish(),
            nn.Linear(part.hidden, part.space),
        )
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.leave = nn.Linear(part.space, width)

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        words, spoken = self.of_words(observation[TASK])
        change, shown = self.of_change(observation)
        if self.training:
            by_words = torch.rand(len(spoken), device=spoken.device) < self.part.by_words
            spoken = spoken & (by_words | ~shown)
        z = torch.where(spoken[:, None], words, change)
        told = spoken | shown
        # of unit length each element is small; scaled, they are of size 1
        token = self.leave(z * self.part.space**0.5)
        return torch.where(told[:, None], token, torch.zeros_like(token))[:, None], told[:, None]

    def of_words(self, tasks: list[str]) -> tuple[Tensor, Tensor]:
        """(where the words lie `(B, Z)`, of length 1; which rows have words `(B,)` bool)."""
        tokens, mask = self.words({TASK: tasks})
        share = mask.to(tokens.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        return _unit(self.words_out((tokens * share[..., None]).sum(1))), mask.any(1)

    def of_change(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(where the changes lie `(B, Z)`, of length 1; which rows have a goal `(B,)` bool)."""
        goal = torch.cat([observation[GOAL + k] for k in self.of], dim=-1)
        there = goal.isfinite().all(-1)
        goal = torch.nan_to_num(goal)
        if self.part.told == "goal":
            return _unit(self.change(goal)), there
        start = torch.cat([self._start(observation, k) for k in self.of], dim=-1)
        # a step of a few centimetres is little of the range: it is told larger, too
        return _unit(self.change(torch.cat([start, goal, 4 * (goal - start)], dim=-1))), there

    def _start(self, observation: Mapping[str, Any], key: str) -> Tensor:
        start, now = observation[START + key], observation[key][:, -1]
        return torch.where(start.isfinite(), start, now)

    def losses(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self.part.align:
            return {}
        words, spoken = self.of_words(observation[TASK])
        change, shown = self.of_change(observation)
        tasks = observation[TASK]
        numbers = torch.tensor([tasks.index(task) for task in tasks], device=words.device)
        rows = spoken & shown
        loss = alignment(change, words, numbers, rows, self.log_temperature.exp().clamp(0.01, 100.0))
        return {"alignment": self.part.align * loss}


def alignment(f_BZ: Tensor, e_BZ: Tensor, kind_B: Tensor, rows_B: Tensor, temperature: Tensor) -> Tensor:
    """InfoNCE both ways (van den Oord et al. 2018, arXiv 1807.03748) between what is of unit length, among
    the rows that count: of each row its own partner against those of rows of another kind. 0 where none
    counts."""
    logits = f_BZ.float() @ e_BZ.float().T / temperature
    one = torch.eye(len(f_BZ), dtype=torch.bool, device=f_BZ.device)
    against = rows_B[:, None] & rows_B[None] & (kind_B[:, None] != kind_B[None])
    logits = logits.masked_fill(~(against | one), -torch.inf)
    both = -(logits.log_softmax(1).diagonal() + logits.T.log_softmax(1).diagonal()) / 2
    return torch.where(rows_B, both, 0.0).sum() / rows_B.sum().clamp(min=1)


def _unit(z: Tensor) -> Tensor:
    return nn.functional.normalize(z, dim=-1)
