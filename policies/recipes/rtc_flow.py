"""Training-time real-time chunking (Black et al. 2025, arXiv 2512.05964)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.mlp import ResidualMLP
from ..backbones.token_times import TokenTimes
from ..objectives.prefixed import Prefixed
from ..recipe import Recipe
from .flow import flow


def rtc_flow(features: Features) -> Recipe:
    """Flow matching that was trained to go on from the actions that are executed while it thinks; to be run
    by `--strategy rtc-trained`, and by any other as `flow` is.

    Faithful: prefixes of 0 to 8 actions, drawn evenly, clean and with a time of their own; the loss on the
    rest. Not: see `Prefixed`; the network is a residual MLP, and gives the clean chunk, as in `flow`. Study:
    rtc_catch."""
    return replace(
        flow(features),
        name="rtc_flow",
        paper="Black et al. 2025, Training-Time Action Conditioning (arXiv 2512.05964)",
        objective=Prefixed(),
        backbone=TokenTimes(ResidualMLP()),
    )
