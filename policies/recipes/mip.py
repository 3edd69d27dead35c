"""The minimal iterative policy and the regression that it is measured by."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..codec import Absolute, Relative
from ..encoders.vector import MLP, Encoder
from ..objectives.mip import MIP
from ..objectives.regression import Regression
from ..recipe import Recipe, Training

PAPER = "Pan et al. 2025, Much Ado About Noising (arXiv 2512.01809)"


def mip(features: Features) -> Recipe:
    """MIP: a chunk by regression, and once more from its own first answer; two passes, no noise.

    Faithful: the loss of the paper with t* = 0.9, the deterministic two passes, an MLP over the whole chunk as
    for the paper's tasks from state, two observations, chunks of 16 of which 8 are executed, absolute actions.
    Not: the MLP is residual and takes time and observation by FiLM, 256 wide with 3 blocks instead of 512 with
    8 layers; AdamW at 1e-3 in batches of 128 for minutes instead of 1e-4 in batches of 1024 for 300 000 steps;
    with images actions are relative to the state. The paper's UNet and transformer: `--backbone UNet1D`,
    `--backbone Transformer`; the authors' code's loss: `--objective.form code`; the steps between regression
    and MIP: `--objective StraightFlow --sampling-steps 1`, `--objective TSD`. The study `mip_fork` shows where
    it fails, `mip_peg` where it should not."""
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
        codec=Relative("quantile") if images else Absolute("minmax"),
        training=Training(
            steps=2500,
            batch_size=64 if images else 128,
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            warmup=100,
        ),
    )
