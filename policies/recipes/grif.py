"""Goal representations for instruction following (Myers et al. 2023, arXiv 2307.00117)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..conditions.change import Change
from ..recipe import Recipe
from .mip import regression_mlp


def grif(features: Features) -> Recipe:
    """GRIF (Myers et al. 2023, arXiv 2307.00117): words aligned with the change from start to goal, so that
    few episodes with words steer a policy that learned to act from all. Told by words or by goals.

    Faithful: one policy told by either, on all data by the change and on those with words by them, beside the
    alignment with the weight 1; a squared error, as of a Gaussian of fixed width. Not: see `Change`; no
    pictures; words are learned from nothing, where CLIP's text was frozen; a chunk in the place of one
    action. `--objective Flow` draws chunks instead of averaging them. Study: grif_words."""
    return replace(
        regression_mlp(features),
        name="grif",
        paper="Myers et al. 2023, Goal representations for instruction following (arXiv 2307.00117)",
        conditions=(Change(),),
    )
