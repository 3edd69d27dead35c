"""HyperPPO's networks of every size, by imitation (Hegde et al. 2023, arXiv 2309.16663)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.hyperppo import HyperPPO
from ..encoders.vector import MLP, Encoder
from ..recipe import Recipe
from .mip import regression_mlp


def hyperppo(features: Features) -> Recipe:
    """HyperPPO's graph hypernetwork (Hegde et al. 2023, arXiv 2309.16663): one training gives small networks
    of many sizes, of which the user takes the smallest that does (`--steer Hidden`, `ulna export --hidden`).

    Faithful: see `HyperPPO`; vectors pass to the small networks as they are. Not: it learns by behaviour
    cloning, not by PPO, and a chunk, not one action; what its networks see of pictures comes from an encoder
    that all share. Rival: a training for each size (`--backbone SmallMLP`). Study: hyperppo_catch."""
    base = regression_mlp(features)
    return replace(
        base,
        name="hyperppo",
        paper="Hegde et al. 2023, HyperPPO: a scalable method for finding small policies for robotic control "
        "(arXiv 2309.16663)",
        encoder=Encoder(state=MLP(depth=0)),
        backbone=HyperPPO(),
    )
