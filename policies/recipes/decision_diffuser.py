"""Decision Diffuser (Ajay et al. 2023, arXiv 2211.15657)."""

from __future__ import annotations

from ...datasets.features import Features, image_keys
from ..backbones.unet1d import UNet1D
from ..conditions.returns import Return
from ..encoders.vector import MLP, Encoder, ResNet18
from ..hooks.guidance import CFG
from ..hooks.low_temperature import LowTemperature
from ..inverse_dynamics import InverseDynamics
from ..objectives.diffusion import Diffusion
from ..recipe import Recipe, Training
from ..solvers.ddim import DDIM


def decision_diffuser(features: Features) -> Recipe:
    """Decision Diffuser (Ajay et al. 2023, arXiv 2211.15657): plans of states that lead to the return that is
    asked for, of data of which little need be good, and actions read out of the plan.

    Faithful: states alone are diffused, actions come of an inverse model of two hidden layers that is learned
    beside with the same weight, the return is not told for a quarter of the rows, guided by 1.2, asked for
    0.9, and noise is halved, at the start and at every step. A constraint or a skill is a `Label` in the
    place of `Return` (`--conditions Label`), several at once are `Compose` in the place of `CFG`. Not: the
    state now is held as the origin of a plan of differences, not as its first element; 16 states of which 8
    actions are executed, not 100 and one; 20 ancestral steps, not 200; min-max in the place of quantile
    scaling; the widths of Diffusion Policy. Study: dd_places."""
    images = bool(image_keys(features))
    return Recipe(
        name="decision_diffuser",
        paper="Ajay et al. 2023, Is conditional generative modeling all you need (arXiv 2211.15657)",
        encoder=Encoder(state=MLP(depth=0), image=ResNet18()),
        conditions=(Return(),),
        backbone=UNet1D(widths=(256, 512, 1024), time_width=256),
        objective=Diffusion(),
        codec=InverseDynamics(),
        solver=DDIM(eta=1.0, clip=1.0, noise=0.5),
        sampling_steps=20,
        steering=(CFG(1.2), LowTemperature(0.5)),
        n_obs_steps=1,
        training=Training(steps=20000, batch_size=64 if images else 256, learning_rate=2e-4),
    )
