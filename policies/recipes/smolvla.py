"""SmolVLA (Shukor et al. 2025, arXiv 2506.01844): a small vision-language-action model."""

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
from .pi0 import SMALL_TRAINING

PAPER = "Shukor et al. 2025, SmolVLA (arXiv 2506.01844)"


def smolvla(features: Features) -> Recipe:
    """SmolVLA (Shukor et al. 2025, arXiv 2506.01844), in the size of the released weights: 394 million
    that are read.

    The first 16 layers of SmolVLM2-500M read pictures, words and state once a decision; a flow expert of 3/4
    of their width attends in turn to them alone, and to them and the actions before each; 10 Euler steps,
    chunks of 50.

    Faithful, and equal to LeRobot 0.6.1's code on the same weights to 1e-4 (`benchmarks/vla.py`): the
    networks, the masks, the places of the tokens, 64 tokens of a picture of 512 pixels padded at its left and
    top, state and actions padded to 32, the velocity and its Beta(1.5, 1) time; the vision-language model is
    frozen. The padding of an action counts in the loss; in LeRobot it does not. Not: gradients are clipped at
    1, not 10. Published weights: `--encoder.weights FOLDER --conditions.Instruction.tokenizer FOLDER`;
    `smolvla_small` trains from random ones."""
    return Recipe(
        name="smolvla",
        paper=PAPER,
        encoder=VisionLanguage(
            vision=SigLIP(768, 12, 12, 3072, patch=16, side=512, shuffle=4, resize="corner", scaled=True),
            language=Language("llama", 960, 16, 15, 5, 64, 2560, vocabulary=49280),
        ),
        conditions=(Instruction(),),
        context=CachedPrefix("token"),
        backbone=ActionExpert(width=720, ffn=2048, attention="interleaved"),
        objective=Flow(),
        codec=Padded(Absolute("meanstd")),
        sampling_steps=10,
        n_obs_steps=1,
        horizon=50,
        n_action_steps=50,
        normalise_state="meanstd",
        mask_padding=True,
        training=Training(
            steps=20000,
            batch_size=64,
            learning_rate=1e-4,
            betas=(0.9, 0.95),
            weight_decay=1e-10,
            warmup=1000,
            freeze=("encoder.*",),
        ),
    )


def smolvla_small(features: Features) -> Recipe:
    """SmolVLA's parts (Shukor et al. 2025, arXiv 2506.01844) in a size of about two million, which trains
    from random weights.

    Not published: the sizes, pictures of 64 pixels, chunks of 16, AdamW at 5e-4, nothing is frozen. Words are
    known by hashes (`Instruction`): those that training did not have mean nothing."""
    return replace(
        smolvla(features),
        name="smolvla_small",
        encoder=VisionLanguage(
            vision=SigLIP(128, 3, 4, 512, patch=8, side=64, shuffle=2, resize="corner", scaled=True),
            language=Language("llama", 128, 4, 4, 2, 32, 512, vocabulary=2048),
        ),
        backbone=ActionExpert(width=96, ffn=384, attention="interleaved"),
        horizon=16,
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
