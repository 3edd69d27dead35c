"""The minimal iterative policy and the regression that it is measured by."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..encoders.vector import MLP, Encoder
from ..objectives.mip import MIP
from ..objectives.regression import Regression
from ..recipe import Recipe

PAPER = "Pan et al. 2025, Much Ado About Noising (arXiv 2512.01809)"
from .minutes import training_in_minutes


def mip(features: Features) -> Recipe:
    """MIP: a chunk by regression, and once more from its own first answer; two passes, no noise.

    Faithful: the loss of the paper with t* = 0.9, the deterministic two passes, an MLP over the whole chunk
    (one of the paper's three networks, and the one that trains in a minute on a CPU), two observations, 8
    actions executed of a chunk, absolute actions. Not: the MLP is residual and takes time and
    observation by FiLM, 256 wide with 3 blocks instead of 512 with 8 layers; AdamW at 1e-3 in batches of 128
    for some thousand steps, instead of 1e-4 in batches of 1024 for 300 000.

    The paper's other networks: `--backbone UNet1D`, `--backbone Transformer`. The loss of the authors' code:
    `--objective.form code`. The steps between regression and MIP: `--objective StraightFlow
    --sampling-steps 1`, `--objective TSD`. Study `mip_fork`: where it should fail; `mip_peg`: where not."""
    return _deterministic(features, "mip", PAPER, MIP(), 2)


def regression_mlp(features: Features) -> Recipe:
    """Regression of the chunk by an MLP, squared error: the baseline of behaviour cloning, as in MIP's paper,
    with all but the objective as `mip` has it."""
    return _deterministic(features, "regression_mlp", PAPER, Regression("l2"), 1)


def _deterministic(
    features: Features, name: str, paper: str, objective: MIP | Regression, steps: int
) -> Recipe:
    images = bool(image_keys(features))
    return Recipe(
        name=name,
        paper=paper,
        encoder=Encoder(state=MLP(128, 1)),
        backbone=ResidualMLP(),
        objective=objective,
        sampling_steps=steps,
        training=training_in_minutes(images),
    )
