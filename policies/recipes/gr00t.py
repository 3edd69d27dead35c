"""GR00T N1 (Bjorck et al. 2025, arXiv 2503.14734): a vision-language model and a diffusion transformer that
crosses its tokens."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..adapters.language import Language
from ..adapters.vision import SigLIP
from ..adapters.vision_language import VisionLanguage
from ..backbones.dit import DiT
from ..codec import Absolute, Padded
from ..conditions.instruction import Instruction
from ..contexts.read_tokens import ReadTokens
from ..objectives.flow import Flow
from ..recipe import Recipe, Training
from .pi0 import SMALL_TRAINING

PAPER = "Bjorck et al. 2025, GR00T N1 (arXiv 2503.14734)"


def gr00t(features: Features) -> Recipe:
    """GR00T N1 (Bjorck et al. 2025, arXiv 2503.14734), in about the size of the released weights: 2.4
    billion.

    12 layers of a language model of SmolLM2's size read pictures and words once a decision; a transformer of
    16 layers crosses their tokens in every other layer, told the level of noise by its norms; 4 Euler steps,
    chunks of 16. Encoders of state and actions, and the decoder, are each embodiment's own
    (`--backbone.embodiment`); a training is of one. The language model is frozen, and the vision is not, as
    in the paper; N1.5 freezes both (`--training.freeze encoder.*`).

    Faithful: the transformer and its encoders, equal to LeRobot 0.6.1's head of GR00T N1.7 on the same
    weights to 1e-4, where that does not take turns between pictures and words (`benchmarks/gr00t.py`); the 4
    layers of self-attention over the model's tokens, of N1.5; the velocity and its Beta(1.5, 1) time with s
    0.999; 64 tokens a picture. Not: the vision-language model is in the style of Eagle 2 and not its code,
    which is not installed with LeRobot, so published weights are not read; N1.5's tokens of the future and
    its loss on them are left out; the state is not left untold in training (`--backbone.state-dropout`)."""
    return Recipe(
        name="gr00t",
        paper=PAPER,
        encoder=VisionLanguage(
            vision=SigLIP(shuffle=2),
            language=Language("llama", 2048, 12, 32, 32, 64, 8192, vocabulary=49152, gives="tokens"),
            state=64,
        ),
        conditions=(Instruction(),),
        context=ReadTokens(),
        backbone=DiT(),
        objective=Flow(),
        codec=Padded(Absolute("minmax")),
        sampling_steps=4,
        n_obs_steps=1,
        horizon=16,
        n_action_steps=16,
        normalise_state="minmax",
        mask_padding=True,
        training=Training(
            steps=30000,
            batch_size=32,
            learning_rate=1e-4,
            betas=(0.95, 0.999),
            weight_decay=1e-5,
            warmup=1500,
            freeze=("encoder.language.*",),
        ),
    )


def gr00t_small(features: Features) -> Recipe:
    """GR00T's parts (Bjorck et al. 2025, arXiv 2503.14734) in a size of about two million, which trains from
    random weights.

    Not published: the sizes, pictures of 64 pixels, no dropout, AdamW at 5e-4, nothing is frozen. Words are
    known by hashes (`Instruction`): those that training did not have mean nothing."""
    return replace(
        gr00t(features),
        name="gr00t_small",
        encoder=VisionLanguage(
            vision=SigLIP(128, 3, 4, 512, patch=8, side=64, shuffle=2),
            language=Language("llama", 128, 3, 4, 4, 32, 512, vocabulary=2048, gives="tokens"),
        ),
        context=ReadTokens(layers=1, heads=4, dropout=0.0),
        backbone=DiT(depth=4, heads=4, head_dim=24, width=96, embodiments=1, dropout=0.0),
        n_action_steps=8,
        training=SMALL_TRAINING,
    )
