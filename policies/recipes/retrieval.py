"""Retrieval (Goyal et al. 2022, arXiv 2202.08417)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..conditions.store import Store
from ..contexts.retrieval import Retrieval
from ..recipe import Recipe
from .mip import regression_mlp


def retrieval(features: Features) -> Recipe:
    """Retrieval-augmented reinforcement learning (Goyal et al. 2022, arXiv 2202.08417), as a clone: at each
    decision it looks up what was done where it is now, so that a demonstration more helps without training.

    Reconstructed from the abstract, since no code was found. Theirs: a store of experience beside the
    network, from which a learned process gets what is of use. Ours: the nearest ticks by the encodings of
    what is seen, through which no gradient goes, read in two passes of attention; ticks of the window's own
    episode are never among them. Not: values and rewards (imitation only), keys that are refreshed now and
    then (here they are always new), a store of all data: of each request it is a few demonstrations of the
    task. The action is a chunk by regression. Study: retrieval_words."""
    return replace(
        regression_mlp(features),
        name="retrieval",
        paper="Goyal et al. 2022, Retrieval-Augmented Reinforcement Learning (arXiv 2202.08417)",
        conditions=(Store(),),
        context=Retrieval(),
    )
