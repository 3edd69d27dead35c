"""OpenVLA-OFT (Kim, Finn and Liang 2025, arXiv 2502.19645): OpenVLA that gives whole chunks at once."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.parallel_decoding import ParallelDecoding
from ..contexts.cached_prefix import CachedPrefix
from ..objectives.regression import Regression
from ..recipe import Recipe, Training
from .openvla import SMALL, openvla
from .pi0 import SMALL_TRAINING

PAPER = "Kim, Finn and Liang 2025, OpenVLA-OFT (arXiv 2502.19645)"


def openvla_oft(features: Features) -> Recipe:
    """OpenVLA-OFT (Kim, Finn and Liang 2025, arXiv 2502.19645), in the size of Llama 2's 7 billion.

    `openvla`'s model is given an empty token for each element of a chunk of 8, all in one pass in which every
    token sees every other; of what it makes of an action's, residual blocks give the action, by its L1 error.
    All cameras, and the state through two layers into a token.

    Faithful: parallel decoding, the empty tokens, attention both ways, the head, the error, 8 actions a
    decision (25 for two arms, `--horizon 25 --n-action-steps 25`). Not: pictures, words and state see each
    other and not the empty tokens, so that they are read once for all candidates; FiLM of the vision by the
    words (OFT+) is left out, since here an encoder is not told what is asked; the rest as of `openvla`.
    `--objective Flow --sampling-steps 10` gives its variant that begins with noise, which the tokens then
    hold. Published ones are OpenVLA tuned by adapters of rank 32 (`--training.start CHECKPOINT
    --training.lora encoder.* --training.lora-rank 32 --training.unfreeze net.* context_net.*
    --training.learning-rate 5e-4`); their weights are not read."""
    return replace(
        openvla(features),
        name="openvla_oft",
        paper=PAPER,
        context=CachedPrefix("among"),
        backbone=ParallelDecoding(),
        objective=Regression("l1"),
        horizon=8,
        n_action_steps=8,
        training=Training(steps=30000, batch_size=32, learning_rate=2e-5, weight_decay=0.0),
    )


def openvla_oft_small(features: Features) -> Recipe:
    """OpenVLA-OFT's parts (Kim, Finn and Liang 2025, arXiv 2502.19645) in a size of about two million, which
    trains from random weights. Not published: the sizes, pictures of 64 pixels, AdamW at 5e-4."""
    return replace(
        openvla_oft(features),
        name="openvla_oft_small",
        encoder=SMALL,
        backbone=ParallelDecoding(width=256),
        training=SMALL_TRAINING,
    )
