"""Candidates that the data do not support are dropped, by a guard (`policies.guard`, after OGSRL). Legend: B
observations, N candidates each, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...datasets.features import ACTION, require_same
from ..field import Field
from ..guard import Guard
from ..hashed import stamp_of
from ..policy import Policy
from .hook import Hook


@dataclass(frozen=True)
class Supported(Hook):
    """Draw N chunks, and rule out those whose first action, where the robot is now, lies outside of what the
    guard's data did. Of those that are left the first is executed, or the one that other hooks score highest.
    Where none is left, it is the one nearest to the data, and that is told: `unsupported` is among the flags
    of the decision, and of the server's reply.

    The chunk's later actions are not judged: where the robot will be then is not known."""

    by_request: ClassVar[bool] = False
    guard: str = ""
    """Folder that `ulna guard` made."""
    candidates: int = 8
    """N, chunks drawn at every decision."""

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError("candidates is at least 2: of one there is nothing to choose")

    @property
    def wants_candidates(self) -> int:
        return self.candidates

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor | None:
        policy = field.policy
        if not isinstance(policy, Policy):
            raise TypeError("Supported needs the policy behind the chunks: sample through Policy.sample")
        guard = self._guard()
        require_same(
            policy.features, {k: guard.features[k] for k in (*guard.keys, ACTION)}, "the policy", "the guard"
        )
        b, n = chunks_BNHA.shape[:2]
        chunks = field.unnormalise(chunks_BNHA.flatten(0, 1))
        actions = chunks[:, policy.recipe.n_past_actions].cpu().numpy().reshape(b, n, -1)
        observation = field.request.observation
        seen = {k: observation[k][:, -1:].cpu().numpy() for k in guard.keys}
        distance = guard.distance(seen, actions)
        inside = distance <= guard.radius
        lost = ~inside.any(axis=1)
        field.flags["unsupported"] = torch.from_numpy(lost)
        inside[lost, distance[lost].argmin(axis=1)] = True
        return torch.from_numpy(np.where(inside, 0.0, -np.inf)).to(chunks_BNHA)

    def _guard(self) -> Guard:
        if not self.guard:
            raise ValueError("Supported needs a guard: name its folder with --Supported.guard")
        return _loaded(self.guard, stamp_of(self.guard))


@lru_cache(maxsize=8)
def _loaded(folder: str, stamp: str) -> Guard:
    """Once for each folder and content (`stamp`)."""
    return Guard(folder)
