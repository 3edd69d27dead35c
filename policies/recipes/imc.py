"""Mixtures of experts that choose what to learn."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.mixture import Mixture
from ..backbones.mlp import ResidualMLP
from ..encoders.vector import MLP, Encoder
from ..objectives.imc import IMC
from ..recipe import Recipe, Training


def imc(features: Features) -> Recipe:
    """Information Maximizing Curriculum (Blessing et al. 2023, arXiv 2303.15349): experts by one network with
    C heads, each with a curriculum of its own over the data, and a gate; one pass, one expert a decision.

    Faithful: the curricula, their compounding from round to round, eta 2, 50 rounds, unit Gaussians, the
    gate's soft cross-entropy. Not: chunks of 16 actions (single actions), 8 experts (50), a residual MLP
    3x256 (6x128) that is told the observation by FiLM, a gate of 2x64 (6x256) that learns beside the experts
    (after them), and one learning rate. Not shown yet: the study `imc_fork` is
    to be run."""
    return Recipe(
        name="imc",
        paper="Blessing et al. 2023, Information Maximizing Curriculum (arXiv 2303.15349)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=Mixture(ResidualMLP(256, 3), components=8),
        objective=IMC(),
        sampling_steps=1,
        training=Training(
            steps=2500, batch_size=128, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, warmup=100
        ),
    )
