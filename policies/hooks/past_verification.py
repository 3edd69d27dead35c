"""Self-verification by past actions (Torne et al. 2025, arXiv 2505.09561)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..field import Field
from .hook import Hook


@dataclass(frozen=True)
class PastVerification(Hook):
    """Draw several chunks and keep the one whose past actions are nearest to what was really sent.

    A policy trained on past tokens gives the actions before now along with those ahead; a chunk that is wrong
    about the past goes on from another history than the true one. The score is minus `past_error`, of
    normalised actions. Until the episode has sent n_past_actions actions there is nothing to compare, and the
    first chunk is taken, which is what would be drawn without this hook. Source: Torne et al. 2025, who draw
    only one chunk until then. It can only choose what the policy draws: regression, whose chunks of one
    observation are all the same, is refused."""

    candidates: int = 10
    """Chunks drawn for each observation."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"PastVerification draws at least 1 candidate, not {self.candidates}")

    @property
    def wants_candidates(self) -> int:
        return self.candidates

    @property
    def needs_past(self) -> bool:
        return True

    def require(self, recipe: Any) -> None:
        if recipe.n_past_actions < 1:
            raise ValueError(
                "PastVerification compares the past actions of a chunk with those that were sent, and the "
                f"recipe {recipe.name} has n_past_actions {recipe.n_past_actions}: use one that predicts "
                "past actions, such as ptp"
            )
        if not any(recipe.objective.path(recipe.sampling_steps).sigma):
            raise ValueError(
                "PastVerification chooses among different chunks, and the "
                f"{type(recipe.objective).__name__} of the recipe {recipe.name} gives one observation one "
                "chunk only: use it with an objective that draws from noise"
            )

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor | None:
        past = field.past()
        if past is None:
            return None
        return -past_error(chunks_BNHA, past.unflatten(0, chunks_BNHA.shape[:2]))


def past_error(chunks: Tensor, past: Tensor) -> Tensor:
    """Mean squared difference `(...)` of the first d actions of chunks `(..., H, A)` to the d actions
    `(..., d, A)` that were sent before now."""
    d = past.shape[-2]
    return ((chunks[..., :d, :] - past.to(chunks)) ** 2).mean((-2, -1))
