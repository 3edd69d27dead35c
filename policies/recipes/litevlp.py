"""LiteVLP (Li et al. 2025, arXiv 2503.10322): a small vision-language model that remembers a conversation."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..adapters.language import Language
from ..adapters.vision import SigLIP
from ..adapters.vision_language import VisionLanguage
from ..backbones.action_tokens import ActionTokens
from ..codec import Absolute
from ..conditions.instruction import Instruction
from ..contexts.turns import Turns
from ..objectives.next_token import NextToken
from ..recipe import Recipe, Training
from .openvla import SMALL
from .pi0 import SMALL_TRAINING

PAPER = "Li et al. 2025, LiteVLP (arXiv 2503.10322)"


def litevlp(features: Features) -> Recipe:
    """LiteVLP (Li et al. 2025, arXiv 2503.10322), in the size of a vision-language model of 0.8 billion
    (InternVL2-1B's).

    Of each picture few tokens are left; the words, then the compressed pictures and states of the last
    decisions, each a turn of a conversation, are read by a language model, which then writes the action in
    words. The turns are the memory that is carried from decision to decision.

    Reconstructed from the abstract and a summary, since no code was released: that pictures are compressed,
    that the past is told as turns, that actions are written. Ours: the compression, by averages; 4 tokens a
    picture, 4 turns; the words of actions, which are `openvla`'s; one action a decision. Not: what was done
    in past turns is not told, the state that came of it is; the layers are Llama's, of Qwen2's sizes.
    Published weights are not read."""
    return Recipe(
        name="litevlp",
        paper=PAPER,
        encoder=VisionLanguage(
            vision=SigLIP(1024, 24, 16, 4096, patch=14, side=448, shuffle=2),
            language=Language("llama", 896, 24, 14, 2, 64, 4864, vocabulary=151655, gives="words"),
        ),
        conditions=(Instruction(),),
        context=Turns(),
        backbone=ActionTokens(),
        objective=NextToken(),
        codec=Absolute("quantile"),
        sampling_steps=1,
        n_obs_steps=1,
        horizon=1,
        n_action_steps=1,
        normalise_state="quantile",
        training=Training(steps=30000, batch_size=8, learning_rate=4e-5, weight_decay=0.01),
    )


def litevlp_small(features: Features) -> Recipe:
    """LiteVLP's parts (Li et al. 2025, arXiv 2503.10322) in a size of about two million, which trains from
    random weights.

    Not published: the sizes, pictures of 64 pixels, chunks of 8 in a row, AdamW at 5e-4. Words are known by
    hashes (`Instruction`): those that training did not have mean nothing."""
    return replace(
        litevlp(features),
        name="litevlp_small",
        encoder=SMALL,
        horizon=8,
        n_action_steps=8,
        training=replace(SMALL_TRAINING, batch_size=16),
    )
