"""AURA-Mem (Chen 2026, arXiv 2606.02775)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..contexts.aura_mem import AuraMem
from ..recipe import Recipe
from .bc_rnn import bc_rnn


def aura_mem(features: Features) -> Recipe:
    """AURA-Mem (Chen 2026, arXiv 2606.02775): a memory of 4224 bytes that is written where that changes what
    is done.

    Reconstructed from the abstract, since no code was released. Theirs: one matrix of fast weights of fixed
    size, a learned gate that sees the surprise of what is seen now, trained by the error of the action.
    Ours: the delta rule, a gate of two layers that is straight through in training, a price for each write
    that grows over the training. Not: an encoder that is frozen, of a large model; here it is small and
    trained along. The action is a chunk by flow matching. Its rivals at an equal share of writes:
    `--context.gate periodic` and `surprise`; and `always`. Not shown yet: the study `aura_recall` is to be
    run."""
    return replace(
        bc_rnn(features),
        name="aura_mem",
        paper="Chen 2026, AURA: Action-Gated Memory for Robot Policies at Constant VRAM (arXiv 2606.02775)",
        context=AuraMem(),
    )
