"""Neural Dynamic Policies (Bahl et al. 2020, arXiv 2012.02788)."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.mlp import ResidualMLP
from ..backbones.ndp import NeuralDynamics
from ..encoders.vector import MLP, Encoder
from ..objectives.regression import Regression
from ..recipe import Recipe, Training


def ndp(features: Features) -> Recipe:
    """Neural Dynamic Policies, imitation: squared error of a chunk that a second-order system integrates.

    Faithful: the system and its numbers (alpha 25), the squared error on the whole chunk, replanned from the
    state as it is. Not: a chunk is 64 Euler steps, four an action, where digits were 300; 14 basis functions, not 30;
    a residual MLP; the velocity at the start is the network's own, from two observations. Actions must be
    targets of state elements. Study: benchmarks/ndp_strokes.py, ndp_peg."""
    return Recipe(
        name="ndp",
        paper="Bahl et al. 2020, Neural Dynamic Policies (arXiv 2012.02788)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=NeuralDynamics(ResidualMLP()),
        objective=Regression("l2"),
        sampling_steps=1,
        training=Training(
            steps=2500, batch_size=128, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, warmup=100
        ),
    )
