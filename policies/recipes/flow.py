"""Flow-matching recipes."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.unet1d import UNet1D
from ..encoders.vector import MLP, Encoder
from ..objectives.flow import Flow
from ..recipe import Recipe
from .minutes import training_in_minutes


def flow(features: Features) -> Recipe:
    """Conditional flow matching (the action head of pi0, Black et al. 2024; Lipman et al. 2023).

    Faithful: the straight path, pi0's Beta(1.5, 1) time, 10 Euler steps. Not: the network gives the clean
    chunk, from which the velocity follows (Li and He 2025), which leaves less noise in a small network's
    actions; the loss is that chunk's, which learns in fewer steps than the velocity's (study `flow_loss`);
    the backbone is Diffusion Policy's UNet instead of a vision-language model with an action expert; the
    sizes are chosen to train in minutes on two CPU cores; actions are absolute and scaled by their range,
    where openpi's are relative to the state and scaled by quantiles (study `codec_lift`)."""
    images = bool(image_keys(features))
    return Recipe(
        name="flow",
        paper="Black et al. 2024, pi0 (arXiv 2410.24164); Lipman et al. 2023 (arXiv 2210.02747)",
        encoder=Encoder(state=MLP(128, 1)),
        backbone=UNet1D(widths=(64, 128, 256), time_width=64),
        objective=Flow(predict="x", loss="x"),
        training=training_in_minutes(images),
    )
