"""Universal visual decomposer (Zhang et al. 2023, arXiv 2310.08581)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.mlp import ResidualMLP
from ..conditions.uvd import UVD
from ..recipe import Recipe
from .flow import flow


def uvd(features: Features) -> Recipe:
    """UVD, universal visual decomposer (Zhang et al. 2023, arXiv 2310.08581): imitation of episodes that come
    apart into subgoals by themselves, of which the policy is told the next one; it follows a demonstration
    subgoal by subgoal.

    Faithful: see `UVD`; pieces of more than 18 ticks, which fits 15 to 30 Hz: choose `--conditions.UVD.least`
    by what a phase lasts. Not: vectors, not pictures; flow matching with an MLP, not regression with a
    transformer or an MLP. Study: uvd_stages."""
    return replace(
        flow(features),
        name="uvd",
        paper="Zhang et al. 2023, Universal visual decomposer: long-horizon manipulation made easy"
        " (arXiv 2310.08581)",
        conditions=(UVD(),),
        backbone=ResidualMLP(),
    )
