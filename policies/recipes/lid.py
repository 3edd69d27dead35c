"""LID: a language model's weights as where a policy begins (Li et al. 2022, arXiv 2202.01771)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..codec import Relative
from ..conditions.lid import LID
from ..encoders.vector import MLP, Encoder, SmallCNN
from ..recipe import ParamGroup, Recipe
from .mip import regression_mlp


def lid(features: Features) -> Recipe:
    """LID (Li et al. 2022, arXiv 2202.01771): words and what is seen are one sequence, which a language model
    reads that begins with its published weights and is trained whole; a head acts on the mean of what it
    makes of them.

    Faithful: the goal and the observation as one sequence, all weights trained, the mean, cloning. Not:
    all-MiniLM-L6-v2, which reads both ways and whose weights a package ships, in the place of GPT-2; vectors
    as tokens through a small network in the place of things said in words; chunks; the head sees the state
    beside, and pictures, which the language model does not read. Its rate is a twentieth of the rest's.
    Active data gathering is `ulna collect`. What the sequence gives and what the weights give are told apart
    by `--conditions.LID.pretrained false`. Study: lid_pairs."""
    base = regression_mlp(features)
    return replace(
        base,
        name="lid",
        paper="Li et al. 2022, LID (arXiv 2202.01771)",
        encoder=Encoder(state=MLP(64, 1), image=SmallCNN(crop=1.0)),
        conditions=(LID(),),
        codec=Relative("quantile"),
        n_obs_steps=1,
        training=replace(base.training, groups=(ParamGroup("conditions.0.model.*", 0.05),)),
    )
