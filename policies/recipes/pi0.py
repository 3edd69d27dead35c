"""pi0 (Black et al. 2024, arXiv 2410.24164): a vision-language model and a flow expert for actions."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..adapters.language import Language
from ..adapters.vision import SigLIP
from ..adapters.vision_language import VisionLanguage
from ..backbones.action_expert import ActionExpert
from ..codec import Absolute, Padded
from ..conditions.instruction import Instruction
from ..contexts.cached_prefix import CachedPrefix
from ..objectives.flow import Flow
from ..recipe import Recipe, Training

PAPER = "Black et al. 2024, pi0 (arXiv 2410.24164)"

SMALL = VisionLanguage(
    vision=SigLIP(width=128, depth=3, heads=4, ffn=512, patch=8, side=64, resize="centre"),
    language=Language(width=128, depth=4, heads=4, kv_heads=1, head_dim=32, ffn=512, vocabulary=2048),
)
SMALL_EXPERT = ActionExpert(width=96, ffn=384)
SMALL_TRAINING = Training(
    steps=5000, batch_size=32, learning_rate=5e-4, betas=(0.9, 0.95), weight_decay=1e-4, warmup=200
)


def writing(encoder: object) -> VisionLanguage:
    """The same, whose language model can go on from what it reads."""
    assert isinstance(encoder, VisionLanguage)
    return replace(encoder, language=replace(encoder.language, gives="words"))


def pi0(features: Features) -> Recipe:
    """pi0 (Black et al. 2024, arXiv 2410.24164), in the size of the released weights: 3.1 billion
    that are read.

    PaliGemma reads pictures and words once a decision; a flow expert of 300 million attends to each layer's
    keys and values and to its own tokens, 10 Euler steps, chunks of 50.

    Faithful, and equal to LeRobot 0.6.1's code on the same weights to 1e-4 (`benchmarks/vla.py`): the
    networks, the masks, the places of the tokens, pictures of 224 pixels, padded, state and actions padded to
    32, the velocity and its Beta(1.5, 1) time. As in openpi the padding counts in the loss; in LeRobot it
    does not. Not: bfloat16 is up to `accelerate`. Published weights: `--encoder.weights FOLDER
    --conditions.Instruction.tokenizer FOLDER`; a model of this size begun from random ones learns nothing in
    a lifetime: `pi0_small` is for that."""
    return Recipe(
        name="pi0",
        paper=PAPER,
        encoder=VisionLanguage(),
        conditions=(Instruction(),),
        context=CachedPrefix("apart"),
        backbone=ActionExpert(),
        objective=Flow(),
        codec=Padded(Absolute("meanstd")),
        sampling_steps=10,
        n_obs_steps=1,
        horizon=50,
        n_action_steps=50,
        normalise_state="meanstd",
        training=Training(
            steps=30000,
            batch_size=32,
            learning_rate=2.5e-5,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            warmup=1000,
            ema_max=0.99,
        ),
    )


def pi0_small(features: Features) -> Recipe:
    """pi0's parts (Black et al. 2024, arXiv 2410.24164) in a size of about two million, which trains from
    random weights.

    Not published: the sizes, pictures of 64 pixels, chunks of 16, AdamW at 5e-4. Words are known by hashes
    (`Instruction`): those that training did not have mean nothing."""
    return replace(
        pi0(features),
        name="pi0_small",
        encoder=SMALL,
        backbone=SMALL_EXPERT,
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
