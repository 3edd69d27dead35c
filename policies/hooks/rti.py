"""Real-time iteration (RTI-DP, Duan, Yin and Kragic 2025, arXiv 2508.05396)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..field import Field, Start
from .hook import Hook, Steered
from .previous import previous_of, require_actions


@dataclass(frozen=True)
class RTI(Hook):
    """Begin a chunk from what is left of the last one, shifted to now and its last action repeated, as if it
    were the chunk at one of the last levels, and take the steps from there: a few evaluations in place of
    all. An episode's first chunk is drawn as ever.

    Faithful: the shifted chunk is taken for a noisy one without noise on it. Not: it is scaled by the level's
    alpha, which in their last of a hundred diffusion steps is all but 1 and on a straight path is not; where
    several candidates are drawn, the others begin with noise on it, or all would be alike; and discrete
    actions are neither snapped nor scaled. Study: rtc_catch."""

    steps: int = 3
    """Steps that are taken, the last of the sampler's; published: 3 to 19 of 100."""
    noise: bool = False
    """Draw the level's noise onto the last chunk."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"RTI takes at least 1 step, not {self.steps}")

    def require(self, recipe: Steered) -> None:
        if not any(recipe.objective.path(recipe.sampling_steps).sigma):
            raise ValueError(
                f"RTI begins on the way from noise to a chunk, and the {type(recipe.objective).__name__} of "
                f"the recipe {recipe.name} has no such way: it is as fast as can be"
            )
        require_actions(self, recipe)

    def initialise(self, start: Start, field: Field, rng: torch.Generator) -> Start:
        level = len(field.path) - self.steps
        previous = previous_of(field, start.a.shape[1])
        if previous is None or level <= start.level:
            return start
        at = field.path[level]
        share = torch.full_like(start.a[:, :1, :1], float(self.noise))
        share.unflatten(0, (-1, field.candidates))[:, 1:] = 1
        return Start(at.alpha * previous.chunk + share * at.sigma * start.noise, start.noise, level)
