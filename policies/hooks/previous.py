"""What is left of the last chunk, as the network would see it in the place of the one that is drawn: for
hooks that make a new chunk go on from it. Legend: B observations, N candidates each, H horizon, A action
dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..field import Field
from ..inverse_dynamics import InverseDynamics
from .hook import Hook, Steered


@dataclass(frozen=True)
class Previous:
    """chunk: `(B·N, H, A)`, normalised; it is known from the action `first` up to `last`, which is excluded,
    and repeats its last action after that. Before `first`, that is before now, are the actions that were
    sent, where the request has them; `has_past` says so."""

    chunk: Tensor
    first: int
    last: int
    has_past: bool

    def ahead(self, delay: int | None) -> int:
        """The action after the last one that will be executed before the chunk is used, counted from the
        chunk's beginning."""
        return min(self.first + (delay or 0), self.last)


def previous_of(field: Field, horizon: int) -> Previous | None:
    """None where the request has nothing of a last chunk, as at an episode's first decision."""
    previous, past, n_past = field.request.previous, field.request.past, field.n_past_actions
    if previous is None or not previous.shape[1]:
        return None
    ahead = previous[:, : horizon - n_past]
    last = n_past + ahead.shape[1]
    has_past = past is not None or not n_past
    before = ahead[:, :1].expand(-1, n_past, -1) if past is None else past
    after = ahead[:, -1:].expand(-1, horizon - last, -1)
    whole = torch.cat([before.to(ahead), ahead, after], dim=1)
    return Previous(field.normalise(whole.repeat_interleave(field.candidates, 0)), n_past, last, has_past)


def require_actions(hook: Hook, recipe: Steered) -> None:
    """ValueError in one sentence where the network draws no actions, which a last chunk is of."""
    if type(recipe.codec) is InverseDynamics:
        raise ValueError(
            f"{type(hook).__name__} goes on from the actions of the last chunk, and the recipe {recipe.name} "
            "plans states (InverseDynamics): use the strategy overlap or ensemble"
        )
