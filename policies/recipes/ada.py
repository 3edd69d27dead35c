"""AdA: a memory that reaches over the trials of a task (Adaptive Agent Team 2023, arXiv 2301.07608)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..contexts.ada import AdA
from ..recipe import Recipe
from .bc_rnn import bc_rnn


def ada(features: Features) -> Recipe:
    """AdA (Adaptive Agent Team 2023, arXiv 2301.07608), as a clone: what a task's earlier trials showed is
    remembered in its later ones, by a transformer over all of them.

    Theirs: attention over many decisions, across trials, in context, without a change of weights. Not: it is
    cloned from a demonstrator that tries and remembers, where theirs learns by reinforcement from a
    curriculum of tasks at the frontier; some tens of decisions, where Transformer-XL reaches over thousands;
    the action is a chunk by flow matching. Reconstructed from the paper, since no code was released. One
    training of 6000 steps did 41 of 50 episodes of `trials`, whose chance is 1 in 4; the study `ada_trials`
    is to be run."""
    return replace(
        bc_rnn(features),
        name="ada",
        paper="Adaptive Agent Team 2023, Human-Timescale Adaptation (arXiv 2301.07608)",
        context=AdA(),
    )
