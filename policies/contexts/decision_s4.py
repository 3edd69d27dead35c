"""Structured state spaces as a context (Decision S4, Bar-David et al. 2023, arXiv 2306.05167)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .context import ContextNet
from .sequence import SequenceNet
from .state_space import S4Block


@dataclass(frozen=True)
class DecisionS4:
    """The last `n_obs_steps` encodings, and one more token of S4D layers over the decisions of the episode:
    linear systems with diagonal poles, by FFT in training, as a recurrence when acting. Conditions are not
    remembered, since they may change."""

    width: int = 64
    """Channels of the layers."""
    depth: int = 2
    """Layers."""
    poles: int = 16
    """Complex poles of each channel; the memory is 2 · depth · width · poles numbers."""
    chain: int = 40
    """Decisions in a row that a training sees; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    What lies beyond a chain that is shorter than the episode is not learned then."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        layers = [S4Block(self.width, self.poles) for _ in range(self.depth)]
        seen = tokens_per_frame * n_obs_steps
        return SequenceNet([*layers], width, seen, self.width, conditions, condition_tokens)
