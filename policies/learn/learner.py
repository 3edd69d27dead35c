"""The contract of learners, the second loop beside `policies.train`: methods of several networks and
optimisers that learn from reward. Each has a file of its own beside this one; `loop.learn` runs one on a
dataset.

A learner that acts does so in a `gymnasium.vector.VectorEnv` whose observations are a dict of arrays `(B,
*shape)` by feature, in which `terminated` (no value follows) is kept apart from `truncated` (the time was up,
the value of what came next follows). `policies` never imports `sim`: who calls brings the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..train.record import TrainingRecord

Move = Callable[[Any, Any, Any], None]  # (averages, weights, updates so far): how averages follow weights


@dataclass(frozen=True)
class Target:
    """A module that follows another: its weights are a moving average, its buffers copies."""

    of: str
    """Name of the module that it follows."""
    move: Move
    """`polyak(rate)`, or `policies.train.optimiser.warmed_up(power, most)`."""


class Learner(Protocol):
    """Everything random in `update` comes from torch's global generator, which the loop seeds anew before
    each; all that is to be resumed is in `modules` and `optimizers`."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Every network by name, targets among them. A weight is in one module only."""
        ...

    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...

    @property
    def targets(self) -> Mapping[str, Target]:
        """Which modules follow which, by name. The loop moves them after each update; no other module is
        averaged."""
        ...

    def act(self, observation: Mapping[str, Tensor], rng: np.random.Generator) -> Tensor:
        """Actions `(B, n, A)` from now on, in their units, for observations `{key: (B, T, *shape)}`."""
        ...

    def update(self, batch: Mapping[str, Any], progress: float) -> dict[str, float]:
        """One step of every optimiser whose turn it is; the metrics by name, the same names at every step.
        batch: windows as tensors (`datasets.reading.spec`). progress: share of the updates that are over."""
        ...

    def save(self, out: Path, record: TrainingRecord) -> dict[str, str]:
        """Write its checkpoints; their content hashes by what they are, such as `policy` and `critic`."""
        ...


def polyak(rate: float) -> Move:
    """average ← (1 - rate)·average + rate·weight."""

    @torch.no_grad()
    def move(averages: Any, weights: Any, n: Any) -> None:
        torch._foreach_lerp_(averages, weights, rate)  # pyright: ignore[reportPrivateImportUsage]

    return move


@torch.no_grad()
def move_targets(learner: Learner, updates: int) -> None:
    """Let every target follow, after the update that `updates` came before."""
    for name, target in learner.targets.items():
        follower, leader = learner.modules[name], learner.modules[target.of]
        target.move(list(follower.parameters()), list(leader.parameters()), updates)
        for mine, theirs in zip(follower.buffers(), leader.buffers(), strict=True):
            mine.copy_(theirs)
