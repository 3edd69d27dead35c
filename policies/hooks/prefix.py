"""Conditional inference on the actions that are executed meanwhile (Black et al. 2025, arXiv 2512.05964)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..contexts.context import Context
from ..field import Field
from ..objectives.prefixed import Prefixed
from .hook import Hook, Steered
from .previous import previous_of, require_actions


@dataclass(frozen=True)
class Prefix(Hook):
    """Begin the chunk with what is left of the last one, as far as it will be executed before this one is
    used (the request's `delay`): for policies that were trained to go on from there, by the objective
    `Prefixed`. No more evaluations than without."""

    @property
    def needs_past(self) -> bool:
        return True

    def require(self, recipe: Steered) -> None:
        if type(recipe.objective) is not Prefixed:
            raise ValueError(
                "Prefix begins a chunk with actions that are given, and this policy was not trained to go on "
                f"from some: train the recipe rtc_flow, or {recipe.name} with --objective Prefixed "
                "--backbone TokenTimes; the strategy rtc needs no training"
            )
        require_actions(self, recipe)

    def condition(self, field: Field, rng: torch.Generator) -> Context:
        recipe = getattr(field.policy, "recipe", None)
        if recipe is None:
            raise ValueError("Prefix needs the policy behind the chunks: sample through Policy.sample")
        previous = previous_of(field, recipe.horizon)
        # before now lie actions that a chunk could only be given together with those after them
        if previous is None or not previous.has_past:
            return field.context
        known = min(previous.ahead(field.request.delay), recipe.horizon - 1)
        return replace(field.context, prefix=previous.chunk[:, :known]) if known else field.context
