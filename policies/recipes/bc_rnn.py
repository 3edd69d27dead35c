"""Cloning by a recurrent network."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..contexts.recurrent import Recurrent
from ..encoders.vector import MLP, Encoder
from ..objectives.flow import Flow
from ..recipe import Recipe
from .minutes import training_in_minutes


def bc_rnn(features: Features) -> Recipe:
    """BC-RNN (Mandlekar et al. 2021, arXiv 2108.03298), the baseline of memories: a gated recurrent unit over
    the decisions of an episode.

    Faithful: a recurrent memory trained on pieces of 10 decisions that begin anywhere. Not: a GRU (two layers
    of LSTM), whose memory goes on to the episode's end (emptied every 10 steps); the action is a chunk by
    flow matching (one, by a mixture of Gaussians); sizes that train in minutes. It is an arm of the studies
    of memories, which are to be run, and differs from theirs in its context alone."""
    images = bool(image_keys(features))
    return Recipe(
        name="bc_rnn",
        paper="Mandlekar et al. 2021, What Matters in Learning from Offline Human Demonstrations "
        "(arXiv 2108.03298)",
        encoder=Encoder(state=MLP(64, 1)),
        context=Recurrent(memory=64, chain=10),
        backbone=ResidualMLP(256, 3),
        objective=Flow(predict="x"),
        training=training_in_minutes(images, chains=True),
    )
