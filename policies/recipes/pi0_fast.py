"""pi0-FAST (Pertsch et al. 2025, arXiv 2501.09747): a vision-language model that writes in few tokens."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.fast_tokens import FAST
from ..codec import Absolute
from ..conditions.instruction import Instruction
from ..contexts.cached_prefix import CachedPrefix
from ..objectives.next_token import NextToken
from ..recipe import Recipe
from .pi0 import SMALL, SMALL_TRAINING, pi0, writing

PAPER = "Pertsch et al. 2025, FAST (arXiv 2501.09747)"


def pi0_fast(features: Features) -> Recipe:
    """pi0-FAST (Pertsch et al. 2025, arXiv 2501.09747), in the size of the released weights: 2.9 billion.

    PaliGemma reads pictures, words and the state in words, and writes the chunk itself: its cosine transform,
    rounded, in byte pairs, each token one of the last words of the vocabulary but 128. It learns by
    cross-entropy, and decides by the likeliest token.

    Faithful, and its loss equal to LeRobot 0.6.1's on the same weights and tokens to 1e-4
    (`tests/policies/adapters/`): the network, the masks, the state in words, which words mean a token,
    quantile normalisation. Not: the pairs are fitted on the chunks of the training, where the released
    tokeniser's were on a million of many robots; a chunk ends when it is whole, and so has no mark of its
    end, and a token that would make more is never chosen, where the released code gives zeros for what it
    cannot read; the words "Action:" are read with the instruction. Published weights mean the released
    tokens, which are not read."""
    return replace(
        pi0(features),
        name="pi0_fast",
        paper=PAPER,
        encoder=writing(pi0(features).encoder),
        conditions=(Instruction(most=200, state=True),),
        context=CachedPrefix("unsaid"),
        backbone=FAST(skip=128),
        objective=NextToken(),
        codec=Absolute("quantile"),
        sampling_steps=1,
        normalise_state="quantile",
    )


def pi0_fast_small(features: Features) -> Recipe:
    """pi0-FAST's parts (Pertsch et al. 2025, arXiv 2501.09747) in a size of about two million, which trains
    from random weights. Not published: as of `pi0_small`; and the state is a token among those read, since
    words known by hashes say no numbers."""
    return replace(
        pi0_fast(features),
        name="pi0_fast_small",
        encoder=writing(SMALL),
        conditions=(Instruction(),),
        context=CachedPrefix("among"),
        backbone=FAST(vocabulary=512),
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
