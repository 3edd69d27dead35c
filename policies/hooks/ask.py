"""Asking a policy for something else than the request does, or for several things at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditions.condition import require_dropped
from ..contexts.context import Context
from ..field import Field
from ..pred import Pred
from ..request import TASK, Request
from .hook import Hook, Steered


@dataclass(frozen=True)
class Ask(Hook):
    """Set what the conditions are told, whatever the request says: a return, a label, a command, the words;
    or leave out what is optional."""

    set: tuple[str, ...] = ()
    """KEY=VALUE each, as `return=0.5` or `observation.label=1`: the value of all elements of the key."""
    task: str = ""
    """The words; empty: those of the request."""
    leave_out: tuple[str, ...] = ()
    """Keys that the policy is not told, such as task or goal.observation.state."""

    def __post_init__(self) -> None:
        for text in self.set:
            assignment(text)

    def condition(self, field: Field, rng: torch.Generator) -> Context:
        return field.context_of(self.asked(field.request))

    def asked(self, request: Request) -> Request:
        observation = {k: v for k, v in request.observation.items() if k not in self.leave_out}
        observation = asking(observation, self.set)
        task = request.task
        if self.task or TASK in self.leave_out:
            task = [self.task] * len(next(iter(observation.values())))
        return replace(request, observation=observation, task=task)


@dataclass(frozen=True)
class Compose(Hook):
    """Ask for several things at once, each of which was learned alone (Decision Diffuser, Ajay et al. 2023,
    arXiv 2211.15657): the belief of nothing told, plus the weight times what each thing, told alone, adds to
    it. One evaluation for each, and one more. For policies whose conditions were dropped in training."""

    asks: tuple[str, ...] = ()
    """KEY=VALUE each, as in `Ask.set`."""
    weight: float = 1.2
    """0: as if not told, 1: as told, more: beyond."""

    def __post_init__(self) -> None:
        for text in self.asks:
            assignment(text)

    def require(self, recipe: Steered) -> None:
        require_dropped(recipe.conditions)

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        request, w = field.request, self.weight
        told = [
            field.context_of(replace(request, observation=asking(request.observation, (ask,))))
            for ask in self.asks
        ]
        contexts = [field.unconditional(), *told]
        weights = [1 - w * len(told), *[w] * len(told)]

        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            each = contexts if rows is None else [c.take(rows) for c in contexts]
            return Pred.mix([field(a, i, c, rows=rows) for c in each], weights)

        return field.with_belief(belief)


def assignment(text: str) -> tuple[str, float]:
    """(key, value) of `KEY=VALUE`. ValueError where it is none."""
    key, _, value = text.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise ValueError(f"what is asked for is KEY=NUMBER, such as return=0.5, not {text!r:.60}") from None


def asking(observation: Any, texts: Sequence[str]) -> dict[str, Any]:
    """`observation` of B rows with the keys of the assignments set. A key that is not there is one of one
    element, told for the row as a whole."""
    asked = dict(observation)
    like = next(iter(asked.values()))
    for key, value in map(assignment, texts):
        there = asked.get(key)
        if there is None:
            there = torch.zeros(len(like), 1, device=like.device)
        asked[key] = torch.full_like(there, value)
    return asked
