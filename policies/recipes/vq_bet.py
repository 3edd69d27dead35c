"""Codes of chunks, classified (Lee et al. 2024, arXiv 2403.03181)."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.codes import Codes
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.vq_bet import VQBeT
from ..recipe import Recipe, Training


def vq_bet(features: Features) -> Recipe:
    """VQ-BeT (Lee et al. 2024, arXiv 2403.03181): residual codes of chunks, learned first; then a transformer
    over the observations that classifies them, and offsets.

    Faithful: 5 observations, chunks of 5 actions that are all executed, two codebooks of 16 codes, min-max
    normalisation, one pass; what `VQBeT` says of the losses. Not: the transformer decodes one query for the
    chunk that is executed, where the published one is causal over all observations and also predicts the
    chunks of the past and of the future; 4 layers of width 256, and codes 64 wide (LeRobot 0.6: 8 of 512, and
    256); the codes are learned in the first fifth of one training, at its learning rate; AdamW at 5e-4.
    Not shown yet: the study `vq_bet_fork` is to be run."""
    return Recipe(
        name="vq_bet",
        paper="Lee et al. 2024, Behavior Generation with Latent Actions (arXiv 2403.03181)",
        encoder=Encoder(state=MLP(256, 1), image=ResNet18()),
        backbone=Codes(),
        objective=VQBeT(),
        sampling_steps=1,
        n_obs_steps=5,
        horizon=5,
        n_action_steps=5,
        training=Training(steps=10000, batch_size=64, learning_rate=5e-4),
    )
