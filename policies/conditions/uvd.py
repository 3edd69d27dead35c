"""The next subgoal, as a demonstration shows it (universal visual decomposer, UVD, Zhang et al. 2023, arXiv
2310.08581)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ...datasets.features import Features, state_keys
from ...datasets.uvd import Decompose
from .condition import ConditionNet
from .goal import GOAL, VectorGoal, require_vectors


@dataclass(frozen=True)
class UVD:
    """The policy is told the next subgoal, which in training is one of the episode's own, and in use one of a
    demonstration that it is shown; or whoever asks says `goal.<key>`. Subgoals are found in vectors as they
    are: choose such whose distance tells how far the way is. What jumps, as a mark of what is done, hides the
    shifts.

    Faithful: the rule by which subgoals are found, backwards, its smoothing and shortest piece; when one is
    reached. Not: vectors of the data in the place of what a frozen network makes of pictures; their
    unit and scale are yours."""

    of: tuple[str, ...] = ()
    """Vectors in which subgoals are found, and whose values at the subgoal are told; empty: all."""
    rule: Literal["uvd", "uniform", "end"] = "uvd"
    """At phase shifts of the distance to what comes after; into equal pieces; or only the end."""
    smooth: float = 0.08
    """γ of the kernel exp(-γ Δt²) over ticks by which distances are smoothed."""
    least: int = 18
    """Ticks that a piece has more than."""
    pieces: int = 3
    """Of equal length, where the rule is uniform."""
    reached: float = 0.15
    """A subgoal is reached within this share of the distance at which it was set."""
    dwell: int = 2
    """Ticks for which a subgoal stays at least."""
    drop: float = 0.0
    """Share of the training rows that are not told, 0 to 1."""

    def needs(self) -> dict[str, Any]:
        how = Decompose(self.rule, self.smooth, self.least, self.pieces, self.reached, self.dwell)
        return {"goal": "subgoal", "goal_keys": self.of, "decompose": how}

    def keys(self, features: Features) -> tuple[str, ...]:
        require_vectors(self, self.of, features)
        return tuple(GOAL + k for k in self.of or state_keys(features))

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        keys = self.keys(features)
        return VectorGoal(keys, sum(features[k.removeprefix(GOAL)].shape[0] for k in keys), width)
