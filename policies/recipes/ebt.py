"""Policies that are the minimum of an energy."""

from __future__ import annotations

from ...datasets.features import Features
from ..backbones.energy import Energy
from ..backbones.mlp import ResidualMLP
from ..encoders.vector import MLP, Encoder
from ..objectives.ebt import EBT
from ..recipe import Recipe, Training
from ..solvers.energy_descent import EnergyDescent


def ebt(features: Features) -> Recipe:
    """EBT-Policy (arXiv 2510.27545): a chunk by descent on a learned energy, for as many steps as it takes.

    Faithful: the energy is the mean of a chunk-shaped output without a time input; training through the last
    of several steps with Nesterov's momentum, disturbed less and less, by steps of drawn size along the
    gradient; squared error; at most 20 steps of sampling; horizons 2/16/8. Not: a residual MLP for
    the transformer (`--backbone.inner Transformer`), 2 or 3 steps in training (6 to 10), learning rate 1e-3
    (3e-5), no RMSNorm between the steps and so E, not exp(E), is descended, momentum 0.5 (0.9), and each row
    stops by its own gradient, not the batch by all (see `EBT`).

    Trained so it averages where there are several ways; `--objective.start path --objective.steps 1
    --objective.more-steps 0 --solver.momentum 0` does not. Not shown yet: the study `ebt_fork`
    is to be run."""
    return Recipe(
        name="ebt",
        paper="EBT-Policy, 2025 (arXiv 2510.27545)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=Energy(ResidualMLP(256, 3)),
        objective=EBT(steps=2, more_steps=1, momentum=0.5),
        solver=EnergyDescent(momentum=0.5),
        sampling_steps=20,
        training=Training(
            steps=2500, batch_size=128, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, warmup=100
        ),
    )
