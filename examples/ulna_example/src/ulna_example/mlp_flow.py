"""A recipe with a backbone of this package."""

from __future__ import annotations

from ulna.datasets.features import Features
from ulna.policies.encoders.vector import MLP, Encoder
from ulna.policies.objectives.flow import Flow
from ulna.policies.recipe import Recipe, Training

from .whole_chunk_mlp import WholeChunkMLP


def mlp_flow(features: Features) -> Recipe:
    """Conditional flow matching with an MLP over the whole chunk (Lipman et al. 2023): an example.

    Faithful: the loss and the Euler steps. Not: no paper uses this backbone; it shows how one is added."""
    return Recipe(
        name="mlp_flow",
        paper="Lipman et al. 2023 (arXiv 2210.02747)",
        encoder=Encoder(state=MLP(64, 1)),
        backbone=WholeChunkMLP(),
        objective=Flow(predict="x"),
        training=Training(steps=1000, batch_size=128, learning_rate=1e-3, warmup=100),
    )
