"""Chains of action (OpenHA, Wang et al. 2025, arXiv 2509.13347)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.chain_of_action import ChainOfAction
from ..backbones.mlp import ResidualMLP
from ..objectives.cvae import CVAE
from ..objectives.regression import Regression
from ..recipe import Recipe
from .mip import regression_mlp


def openha(features: Features) -> Recipe:
    """OpenHA's chain of action (Wang et al. 2025, arXiv 2509.13347): an abstract action as a thought, then
    the action, by one network that learns both.

    Faithful: p(b | o) p(a | o, b), both learned from demonstrations alone, with b read off them; thoughts
    that are motions or points, or one after the other. Not: an MLP instead of a vision-language model, so a
    thought is a word of a small vocabulary rather than a phrase, a point is one of the action's own space
    rather than of a picture, the chunk is regressed, and a policy has one format of thought instead of
    several by a tag.

    Not shown yet: of the study `openha_fork` three trainings of five are done. Round a disc, left or right,
    300 of 300 passed that say a motion, a point, or both, 2 that say nothing. Words mistaken for their
    opposites did little harm, 271 passed, since either side will do."""
    return replace(
        regression_mlp(features),
        name="openha",
        paper="Wang et al. 2025, OpenHA (arXiv 2509.13347)",
        backbone=ChainOfAction(ResidualMLP()),
        objective=CVAE(Regression("l2"), kl_weight=0.1),
    )
