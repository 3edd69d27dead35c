"""RoboDual (Bu et al. 2024, arXiv 2410.08001)."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.mlp import ResidualMLP
from ..backbones.referenced import Referenced
from ..conditions.slow import Slow
from ..encoders.vector import MLP, Encoder
from ..hooks.guidance import CFG
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe
from ..solvers.ddim import DDIM
from .minutes import training_in_minutes


def robodual(features: Features) -> Recipe:
    """RoboDual (Bu et al. 2024, arXiv 2410.08001): a slow generalist, asked now and then, and a fast
    specialist that acts at every tick on what the generalist said last and on what is seen now.

    The generalist is any policy here, such as a vision-language-action model, trained before: name its
    checkpoint, `--conditions.Slow.slow FOLDER`; it is frozen, and the new checkpoint holds it whole.
    Faithful: its chunk beside the noisy one on the action axis, what is over of it shifted out and filled up
    with zeros, its latent told, asked anew after 8 ticks and in training at random ages; chunks of 8 at
    every tick, averaged; noise predicted on a cosine schedule of 100 levels, 5 steps of DDIM, a tenth of the
    rows not told, guidance of 3. Not: an MLP with FiLM (a transformer: `--backbone.inner Transformer`); the
    latent is the slow policy's pooled context, not each of its tokens; guidance here truly compares with what
    is done when reference and latent are hidden, which in the released code its second pass still sees.
    Study: robodual_catch."""
    images = bool(image_keys(features))
    return Recipe(
        name="robodual",
        paper="Bu et al. 2024, Towards synergistic, generalized and efficient dual-system for robotic"
        " manipulation (arXiv 2410.08001)",
        encoder=Encoder(state=MLP(128, 1)),
        conditions=(Slow(drop=0.1),),
        backbone=Referenced(ResidualMLP()),
        objective=Diffusion(),
        solver=DDIM(clip=1.0),
        sampling_steps=5,
        steering=(CFG(3.0),),
        horizon=8,
        n_action_steps=1,
        decoder="ensemble",
        training=training_in_minutes(images),
    )
