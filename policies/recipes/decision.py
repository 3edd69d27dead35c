"""Policies told by state-space models of the episode."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..contexts.decision_mamba import DecisionMamba
from ..contexts.decision_s4 import DecisionS4
from ..recipe import Recipe
from .bc_rnn import bc_rnn


def decision_s4(features: Features) -> Recipe:
    """Decision S4 (Bar-David et al. 2023, arXiv 2306.05167), as a clone: a long history at one cost a tick.

    Theirs: structured state spaces over the episode, trained on whole trajectories at once and run as a
    recurrence. Not: S4D, whose poles are diagonal, for S4; no returns and no past actions among what it
    reads; the second phase, an actor-critic on-policy; the action is a chunk by flow matching. Reconstructed
    from the abstract, since no code was released. Not shown yet: the study `state_spaces_cue` is to be
    run."""
    return replace(
        bc_rnn(features),
        name="decision_s4",
        paper="Bar-David et al. 2023, Decision S4 (arXiv 2306.05167)",
        context=DecisionS4(),
    )


def decision_mamba(features: Features) -> Recipe:
    """Decision Mamba (Lv et al. 2024, arXiv 2406.05427), as a clone: selective state spaces of two grains.

    Faithful: Mamba over all tokens, and added to it Mamba over steps, each a convolution of its tokens as
    long as its stride. Not: what a step's tokens are, here those of the observations of a decision, there
    return, state and action; the losses of states and returns; the regulariser of self-evolution, which the
    released code has switched off; the action is a chunk by flow matching. In that code a token sees the
    fine grain of other steps, later ones among them; here only of its own and those before it. Not shown
    yet: the study `state_spaces_cue` is to be run."""
    return replace(
        decision_s4(features),
        name="decision_mamba",
        paper="Lv et al. 2024, Decision Mamba (arXiv 2406.05427)",
        context=DecisionMamba(),
    )
