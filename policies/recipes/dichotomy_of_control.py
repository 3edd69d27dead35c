"""Dichotomy of Control (Yang et al. 2022, arXiv 2210.13435)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..conditions.dichotomy import Dichotomy
from ..recipe import Recipe
from .mip import regression_mlp


def dichotomy_of_control(features: Features) -> Recipe:
    """Dichotomy of Control (Yang et al. 2022, arXiv 2210.13435): a policy that is told what of the future is
    its own doing, and takes the best that it foresees, without asking for luck.

    Faithful: cloning given the latent, its value, its divergence from a trained prior, and the mutual
    information that is kept out of it, by a critic against which it learns (the released code lets both learn
    together). Not: see `Dichotomy`; a residual MLP in the place of a transformer over whole histories. Study:
    doc_places."""
    return replace(
        regression_mlp(features),
        name="dichotomy_of_control",
        paper="Yang et al. 2022, Dichotomy of control (arXiv 2210.13435)",
        conditions=(Dichotomy(),),
    )
