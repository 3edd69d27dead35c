"""Mixture of Horizons (Jing et al. 2025, arXiv 2511.19433)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.horizons import Horizons
from ..backbones.mlp import ResidualMLP
from ..recipe import Recipe
from .flow import flow


def moh(features: Features) -> Recipe:
    """Mixture of Horizons on flow matching.

    Faithful: one network for all horizons, a loss for each and for their gated mixture, the noisy gate and its
    balance loss, 10 Euler steps with the mixture. Not: the network is a residual MLP, to which the actions
    beyond a horizon are zeros, instead of a transformer in which they are masked (`--backbone.inner
    Transformer` masks them); four horizons of a chunk of 16, not ten of 30; the network gives the clean chunk,
    as in `flow`. Each network evaluation is four passes, and is counted so. How much of a chunk is executed is
    fixed; `--steer Consensus` lets the horizons decide. Study: moh_peg."""
    return replace(
        flow(features),
        name="moh",
        paper="Jing et al. 2025, Mixture of Horizons in Action Chunking (arXiv 2511.19433)",
        backbone=Horizons(ResidualMLP(), horizons=(4, 8, 12, 16)),
    )
