"""OpenVLA (Kim et al. 2024, arXiv 2406.09246): a vision-language model that writes actions."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..adapters.language import Language
from ..adapters.vision import SigLIP
from ..adapters.vision_language import VisionLanguage
from ..backbones.action_tokens import ActionTokens
from ..codec import Absolute
from ..conditions.instruction import Instruction
from ..contexts.cached_prefix import CachedPrefix
from ..objectives.next_token import NextToken
from ..recipe import Recipe, Training
from .pi0 import SMALL_TRAINING

PAPER = "Kim et al. 2024, OpenVLA (arXiv 2406.09246)"

SMALL = VisionLanguage(
    vision=SigLIP(128, 3, 4, 512, patch=8, side=64, resize="centre"),
    language=Language("llama", 128, 4, 4, 4, 32, 512, vocabulary=2048, gives="words"),
)


def openvla(features: Features) -> Recipe:
    """OpenVLA (Kim et al. 2024, arXiv 2406.09246), in the size of Llama 2's 7 billion.

    A language model reads picture and words and writes the next action, one word for each element: 256 even
    parts of the range between its 1 % and 99 % quantiles, which are the last 256 words of the vocabulary. It
    learns by cross-entropy over all words, and decides by the likeliest word that means an action. The state
    is not told.

    Faithful: the words and their order, the loss, causal attention, one action a decision; more, in a row, by
    `--horizon`. Not: pictures go through SigLIP alone and one linear layer, where published ones go through
    DINOv2, too, and three; the words are the task alone, after the pictures; the head is the table of words,
    where Llama 2's is its own; 256 parts, as in the paper, where the released code makes 255; every element
    is scaled, a gripper, too; a word that means no action is never chosen, where published ones become the
    nearest. Published weights are not read, for these reasons; one of this size begun from random ones learns
    nothing in a lifetime: `openvla_small` is for that."""
    return Recipe(
        name="openvla",
        paper=PAPER,
        encoder=VisionLanguage(
            language=Language("llama", 4096, 32, 32, 32, 128, 11008, vocabulary=32000, gives="words")
        ),
        conditions=(Instruction(),),
        context=CachedPrefix("unsaid", causal=True),
        backbone=ActionTokens(),
        objective=NextToken(),
        codec=Absolute("quantile"),
        sampling_steps=1,
        n_obs_steps=1,
        horizon=1,
        n_action_steps=1,
        normalise_state="quantile",
        training=Training(steps=30000, batch_size=32, learning_rate=2e-5, weight_decay=0.0),
    )


def openvla_small(features: Features) -> Recipe:
    """OpenVLA's parts (Kim et al. 2024, arXiv 2406.09246) in a size of about two million, which trains from
    random weights.

    Not published: the sizes, pictures of 64 pixels, chunks of 8 in a row, the state in a token, AdamW at
    5e-4. Words are known by hashes (`Instruction`): those that training did not have mean nothing, and some
    share their row with an action's."""
    return replace(
        openvla(features),
        name="openvla_small",
        encoder=SMALL,
        context=CachedPrefix("among", causal=True),
        horizon=8,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
