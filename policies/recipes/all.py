"""Every recipe by its published name."""

from __future__ import annotations

from collections.abc import Callable

from ...datasets.features import Features
from ..recipe import Recipe
from .act import act
from .diffusion import diffusion_transformer, diffusion_unet
from .flow import flow

RECIPES: dict[str, Callable[[Features], Recipe]] = {
    "flow": flow,
    "diffusion_unet": diffusion_unet,
    "diffusion_transformer": diffusion_transformer,
    "act": act,
}
