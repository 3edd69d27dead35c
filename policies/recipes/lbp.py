"""Latent backward planning (Liu et al. 2025, arXiv 2505.06861)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.mlp import ResidualMLP
from ..conditions.backward_plan import BackwardPlan
from ..recipe import Recipe
from .flow import flow


def lbp(features: Features) -> Recipe:
    """LBP, latent backward planning (Liu et al. 2025, arXiv 2505.06861): from the words to the end of the
    task, from there half way back, and again; the policy goes to what is planned.

    Faithful: see `BackwardPlan`; 4 targets, of which 2 are told; a small network of chunks, drawn from noise.
    Not: vectors, not latents of pictures; flow matching in the place of DDPM, an MLP with FiLM. Study:
    lbp_stages."""
    return replace(
        flow(features),
        name="lbp",
        paper="Liu et al. 2025, Efficient robotic policy learning via latent space backward planning"
        " (arXiv 2505.06861)",
        conditions=(BackwardPlan(),),
        backbone=ResidualMLP(),
    )
