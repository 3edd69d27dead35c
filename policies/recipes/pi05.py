"""pi0.5 (Black et al. 2025, arXiv 2504.16054): pi0 that is told its state in words."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.action_expert import ActionExpert
from ..codec import Absolute, Padded
from ..conditions.instruction import Instruction
from ..contexts.cached_prefix import CachedPrefix
from ..recipe import Recipe
from .pi0 import SMALL, SMALL_EXPERT, SMALL_TRAINING, pi0

PAPER = "Black et al. 2025, pi0.5 (arXiv 2504.16054)"


def pi05(features: Features) -> Recipe:
    """The low-level policy of pi0.5 (Black et al. 2025, arXiv 2504.16054), in the size of the released
    weights.

    As `pi0`, but the state is told in words, each element as one of 256 numbers, and the level of noise by
    the norms of the expert.

    Faithful, and equal to LeRobot 0.6.1's code on the same weights to 1e-4 (`benchmarks/vla.py`): the
    networks, the text, quantile normalisation. Not: the high-level half, which writes a subtask before it
    acts, and the co-training with words, of which no code was released."""
    base = pi0(features)
    return replace(
        base,
        name="pi05",
        paper=PAPER,
        conditions=(Instruction(most=200, state=True),),
        context=CachedPrefix("unsaid"),
        backbone=ActionExpert(time="norm"),
        codec=Padded(Absolute("quantile")),
        normalise_state="quantile",
    )


def pi05_small(features: Features) -> Recipe:
    """pi0.5's parts (Black et al. 2025, arXiv 2504.16054) in a size of about two million, which trains from
    random weights. Not published: as of `pi0_small`."""
    return replace(
        pi05(features),
        name="pi05_small",
        encoder=SMALL,
        backbone=replace(SMALL_EXPERT, time="norm"),
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
