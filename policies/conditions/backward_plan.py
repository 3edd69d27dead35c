"""A plan from the end to now: what the words ask for, and what lies on the way to it, each time half as far
ahead (LBP, Liu et al. 2025, arXiv 2505.06861).

Legend: B batch, N subgoals, R of them that the policy is told, E elements of a state, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...datasets.features import Features, state_keys
from ..request import TASK
from .condition import ConditionNet
from .words import Words, WordsNet, split

SUBGOAL = "subgoal."


@dataclass(frozen=True)
class BackwardPlan:
    """From what is seen now and the words, one network tells the state at the end, and another, over and
    over, of a state ahead the one half way to it. The policy is told the first few, joined by attention that
    asks with what is seen.

    Faithful: the targets, halving down to now; in half of the batches the chain goes on from its own
    predictions, gradients and all, else from the truth with noise of 0.1; three layers of attention. Not:
    vectors in the place of latents of a picture; words by hashes; planner and policy learn side by side,
    where the policy's loss does not move the plan."""

    of: tuple[str, ...] = ()
    """Vectors that are planned; empty: all."""
    subgoals: int = 4
    """N, at least 1."""
    told: int = 2
    """R, 1 to N: the first of them in the order of planning."""
    order: Literal["backward", "forward", "parallel"] = "backward"
    """Plan from the end, from the nearest subgoal on, or all at once."""
    hidden: int = 256
    """Width of the hidden layers of the planner."""
    width: int = 64
    """Of the attention; a multiple of 4."""
    noise: float = 0.1
    """Deviation of the noise on true subgoals from which the chain goes on, normalised."""
    own: float = 0.5
    """Share of the training rows whose chain goes on from its own predictions, 0 to 1."""
    weight: float = 1.0
    """Of the plan's squared error in the loss."""
    most: int = 16
    """Words that an instruction may have; a longer one is refused."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        return {"task": True, "subgoals": self.subgoals}

    def keys(self, features: Features) -> tuple[str, ...]:
        if unknown := [k for k in self.of if k not in state_keys(features)]:
            raise ValueError(
                f"what is planned is {unknown[0]}, and the vectors of the data are "
                f"{', '.join(state_keys(features)) or 'none'}: choose from them "
                "(--conditions.BackwardPlan.of)"
            )
        return (TASK,)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def split(self, task: str) -> list[str]:
        """The words of an instruction. BadRequest where there are too many."""
        return split(task, self.most, "BackwardPlan")

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        if not 1 <= self.told <= self.subgoals or not 0 <= self.own <= 1:
            raise ValueError(f"BackwardPlan's told lies in 1..{self.subgoals}, and its own in 0..1")
        keys = self.of or tuple(state_keys(features))
        return BackwardPlanNet(self, keys, sum(features[k].shape[0] for k in keys), width)


class BackwardPlanNet(ConditionNet):
    n_tokens = 1
    learns_from_future = True

    def __init__(self, part: BackwardPlan, keys: tuple[str, ...], elements: int, width: int) -> None:
        super().__init__()
        self.part, self.keys = part, keys
        h = part.hidden
        self.words = WordsNet(Words(most=part.most), part.width, "BackwardPlan")
        all_at_once = part.subgoals if part.order == "parallel" else 1
        self.first = _planner(elements + part.width, h, all_at_once * elements)
        self.next = _planner(2 * elements + part.width, h, elements)
        self.enter = nn.Linear(elements, part.width)
        self.places = nn.Parameter(0.1 * torch.randn(part.told, part.width))
        self.layers = nn.ModuleList(nn.MultiheadAttention(part.width, 4, batch_first=True) for _ in range(3))
        self.leave = nn.Linear(part.width, width)

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        now, words, spoken = self._now(observation), *self._words(observation)
        with torch.no_grad():  # the plan is told as it is
            plan_BNE = self.plan(now, words)[:, : self.part.told]
        subgoals, asks = self.enter(plan_BNE) + self.places, self.enter(now)[:, None]
        for layer in self.layers:
            asks = asks + layer(asks, subgoals, subgoals, need_weights=False)[0]
        return self.leave(asks), spoken[:, None]

    def plan(
        self, now: Tensor, words: Tensor, truth_BNE: Tensor | None = None, own_B: Tensor | None = None
    ) -> Tensor:
        """The subgoals `(B, N, E)` in the order of planning, from their own predecessors; or with the truth,
        where `own_B` is False, from the true ones."""
        first, n = self.first(torch.cat([now, words], dim=-1)), self.part.subgoals
        if self.part.order == "parallel":
            return first.unflatten(-1, (n, -1))
        chain, before = [first], first
        for i in range(1, n):
            if truth_BNE is not None and own_B is not None:
                shaken = truth_BNE[:, i - 1] + self.part.noise * torch.randn_like(before)
                before = torch.where(own_B[:, None], before, shaken)
            before = self.next(torch.cat([now, before, words], dim=-1))
            chain.append(before)
        return torch.stack(chain, dim=1)

    def losses(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        words, spoken = self._words(observation)
        truth = torch.cat([observation[SUBGOAL + k] for k in self.keys], dim=-1)
        truth = truth.flip(1) if self.part.order == "forward" else truth
        own = torch.rand(len(truth), device=truth.device) < self.part.own
        error = (self.plan(self._now(observation), words, truth, own) - truth) ** 2
        rows = spoken.to(error.dtype)
        mean = (error.mean((1, 2)) * rows).sum() / rows.sum().clamp(min=1)
        return {"plan": self.part.weight * mean}

    def _now(self, observation: Mapping[str, Any]) -> Tensor:
        return torch.cat([observation[k][:, -1] for k in self.keys], dim=-1)

    def _words(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(the words `(B, D)`, which rows have any)."""
        tokens, mask = self.words({TASK: observation[TASK]})
        share = mask.to(tokens.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        return (tokens * share[..., None]).sum(1), mask.any(1)


def _planner(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        nn.Mish(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.Mish(),
        nn.Linear(hidden, outputs),
    )
