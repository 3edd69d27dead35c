"""Objectives that keep a table with a row for every window of the data, such as curricula of experts. The
table is made anew in rounds, from the whole data; between them every batch has its rows of it.

Legend: B batch, N windows, H horizon, A action dimensions, C columns of the table."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...datasets.reading.loader import WindowSource
from ..contexts.context import Context
from ..objectives.objective import Objective
from ..policy import Policy
from ..recipe import Recipe
from .error import TrainingError

ROWS = 1024  # windows looked at together


class Curriculum(Protocol):
    """What an objective has besides, to keep a table. Its losses find their rows `(B, C)` in
    `Draw.more["table"]`, where there is a table."""

    @property
    def rounds(self) -> int:
        """How often in a training the table is made anew, from its start on at equal distances; 0: there is
        none."""
        ...

    def assess(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        """What the table is made of `(B, C)`. mask_BH: bool, the actions that count."""
        ...

    def refresh(self, values: Tensor, table: Tensor | None) -> Tensor:
        """The next table `(N, C)` from what `assess` says of every window, `(N, C)` float32, and the last
        table; None in the first round."""
        ...


def curriculum(objective: Objective) -> Curriculum | None:
    """The objective, where it keeps a table."""
    own: Any = objective
    keeps = callable(getattr(own, "assess", None)) and callable(getattr(own, "refresh", None))
    return cast(Curriculum, own) if keeps and own.rounds else None


def require_one_window(recipe: Recipe) -> None:
    """TrainingError where a window has no row of its own: with a memory it is another after every past."""
    if curriculum(recipe.objective) is not None and int(getattr(recipe.context, "chain", 1)) > 1:
        objective, context = type(recipe.objective).__name__, type(recipe.context).__name__
        raise TrainingError(
            f"{objective} keeps a weight for each window, and to the memory of {context} a window is another "
            "after every past: use --objective.rounds 0, which keeps none, or --context Stack"
        )


def begins(rounds: int, step: int, steps: int) -> bool:
    """Whether a round begins before step `step`, counted from 0, of `steps`: a function of the step alone, so
    that a training resumes; two rounds in one step are one."""
    return step == 0 or step * rounds // steps > (step - 1) * rounds // steps


@torch.no_grad()
def refreshed(part: Curriculum, policy: Policy, windows: WindowSource, table: Tensor | None) -> Tensor:
    """The table `(N, C)` of the next round, on the policy's device. Every process makes all of it."""
    training = policy.training
    policy.eval()
    values = []
    for rows in np.array_split(np.arange(len(windows)), -(-len(windows) // ROWS)):
        batch = {
            k: torch.from_numpy(v).to(policy.device) if v.dtype.kind not in "UO" else v
            for k, v in windows.batch(rows).items()
        }
        action, context, mask, _ = policy.examples(batch)
        values.append(part.assess(policy.net, action, context, mask).float())
    policy.train(training)
    return part.refresh(torch.cat(values), table)
