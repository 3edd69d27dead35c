"""Factorised diffusion policies (Patil et al. 2025, arXiv 2509.16830)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import STATE, Features, image_keys, state_keys
from ..backbones.factorised import Factorised
from ..encoders.apart import Apart
from ..recipe import Recipe
from .flow import flow


def fdp(features: Features) -> Recipe:
    """FDP, factorised diffusion policies (Patil et al. 2025, arXiv 2509.16830): a policy of what can be
    relied on, and corrections to it by the rest, so that the rest cannot break it.

    Faithful: base and residual, block by block, through layers that begin at zero; which observations are
    prioritised is a choice (`--encoder.first`, here the joints). Not: see `Factorised`; flow matching in the
    place of diffusion, as in `flow`. The fair rival is `flow` with `--encoder Apart --encoder.drop 0.3`,
    modality drop-out. In one training on the planar task gates (study fdp_gates) it did as well as `flow`,
    and no better once the camera failed: the residual is told its nonsense, too. The base alone
    (`--backbone.scale 0`) kept what it did."""
    keys = [*state_keys(features), *image_keys(features)]
    first = STATE if STATE in keys else keys[0]
    return replace(
        flow(features),
        name="fdp",
        paper="Patil et al. 2025, Factorizing diffusion policies for observation modality prioritization"
        " (arXiv 2509.16830)",
        encoder=Apart(first=(first,)),
        backbone=Factorised(),
    )
