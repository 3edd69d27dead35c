"""Flow maps as behaviour cloning."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..encoders.vector import MLP, Encoder
from ..objectives.flow_map import FlowMap
from ..recipe import Recipe
from .minutes import training_in_minutes


def flow_map(features: Features) -> Recipe:
    """A flow map learned by Eulerian self-distillation, as behaviour cloning: chunks in one jump, no teacher.

    Faithful: flow matching on the diagonal plus the Eulerian loss with a stopped gradient and one
    forward-mode product; velocities alone first, then intervals that grow to all of [0, 1]; the loss is that
    of the flow-map policies of offline RL, without their critic. Not: the shares of the training at which the
    intervals grow (0.1 to 0.5 of some thousand steps; published 0.005 to 0.05 of a million); the residual MLP
    with FiLM; no clipping of the jump (`--solver.clip 1`). More jumps: `--sampling-steps 2`. Study
    `flow_map_fork`."""
    images = bool(image_keys(features))
    return Recipe(
        name="flow_map",
        paper="Boffi et al. 2025, flow maps by self-distillation (arXiv 2505.18825)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=ResidualMLP(),
        objective=FlowMap(predict="x"),
        sampling_steps=1,
        training=training_in_minutes(images),
    )
