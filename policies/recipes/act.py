"""Action chunking by regression."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.transformer import Transformer
from ..codec import Absolute
from ..encoders.vector import MLP, Encoder, ResNet18
from ..objectives.regression import Regression
from ..recipe import Recipe, Training


def act(features: Features) -> Recipe:
    """ACT without its latent (Zhao et al. 2023, arXiv 2304.13705): L1 regression of a chunk, temporal
    ensembling.

    Faithful: one observation step, learned queries attending to the observation, masked L1, z-scored state
    and actions, ensemble weights exp(-0.01 i) with the oldest heaviest. Not: no CVAE (z = 0 is what the
    released policy runs with); one token per observation (spatial softmax) instead of the ResNet's feature
    map; no transformer encoder over the observation; no pretrained weights; shorter chunks, as 20 Hz control
    is usual here, not 50 Hz."""
    return Recipe(
        name="act",
        paper="Zhao et al. 2023, ACT (arXiv 2304.13705)",
        encoder=Encoder(state=MLP(256, 1), image=ResNet18()),
        backbone=Transformer(width=256, depth=4, heads=8, dropout=0.1),
        objective=Regression("l1"),
        sampling_steps=1,
        n_obs_steps=1,
        horizon=20,
        n_action_steps=1,
        decoder="ensemble",
        normalise_state="meanstd",
        codec=Absolute("meanstd"),
        mask_padding=True,
        training=Training(
            steps=10000, batch_size=64, learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=1e-4
        ),
    )
