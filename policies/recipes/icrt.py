"""In-context robot transformer (Fu et al. 2024, arXiv 2408.15980)."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..codec import LAST, Delta
from ..conditions.demonstrations import Demonstrations
from ..contexts.icrt import ICRT
from ..encoders.apart import Apart
from ..objectives.regression import Regression
from ..recipe import Recipe
from .minutes import training_in_minutes


def icrt(features: Features) -> Recipe:
    """ICRT, in-context robot transformer (Fu et al. 2024, arXiv 2408.15980): a task that was never trained
    on is done after demonstrations of it, without an update of the weights.

    Faithful: commands and observations are tokens in turn, of demonstrations and of the present alike, in one
    causal transformer as Llama's; at each observation a small MLP gives the next 16 commands as differences;
    L1, of the present only; demonstrations of the same task in a random order, a random number of them; their
    keys and values are computed once; overlapping chunks are averaged, the newest heaviest (exp(0.05 i));
    what was really sent is what is read. Not: a vision transformer pretrained on robots' pictures, here a
    small network of each group of observations; 4 layers of 128, not 12 of 768; up to 2 demonstrations of 32
    ticks and 40 of the present, not 512 in all; no noise on the state, no weight on the first ticks. Study:
    icrt_words."""
    return Recipe(
        name="icrt",
        paper="Fu et al. 2024, In-Context Imitation Learning via Next-Token Prediction (arXiv 2408.15980)",
        encoder=Apart(first=(LAST,)),
        conditions=(Demonstrations(),),
        context=ICRT(),
        backbone=ResidualMLP(128, 1),
        objective=Regression("l1"),
        sampling_steps=1,
        codec=Delta(),
        n_obs_steps=1,
        n_past_actions=1,
        horizon=17,
        n_action_steps=1,
        decoder="ensemble",
        ensemble_decay=-0.05,
        loss_on_past=False,
        mask_padding=True,
        training=training_in_minutes(bool(image_keys(features)), chains=True),
    )
