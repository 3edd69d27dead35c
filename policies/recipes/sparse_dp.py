"""Sparse Diffusion Policy (Wang et al. 2024, arXiv 2407.01531)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.sparse_transformer import SparseTransformer
from ..conditions.task import Task
from ..recipe import ParamGroup, Recipe
from .diffusion import diffusion_transformer


def sparse_dp(features: Features) -> Recipe:
    """Sparse Diffusion Policy (Wang et al. 2024, arXiv 2407.01531): one policy of several tasks whose
    feed-forward layers are experts, picked by a router for each task, so that a new task is learned by its
    router without forgetting.

    Faithful: 8 experts of half the feed-forward width of which 2 are picked, routers of two layers that begin
    at zero, gates that are not renormalised, the mutual information of task and expert in the loss (5e-4),
    8 layers of 256, horizons 2/10/8, AdamW at 1e-4 (0.9, 0.95). Not: experts in the image encoder; a
    normaliser for each task; batches of one task each; every expert is computed; 16 DDIM steps, not 100; a
    new task's router begins at zero, not at the mean of the others. Continual modes: `--training.start`,
    `--training.freeze "*"` and `--training.unfreeze "net.*router_*" "conditions.*"`, with `"encoder.*"` the
    default of the paper. Study: sparse_dp_words."""
    base = diffusion_transformer(features)
    return replace(
        base,
        name="sparse_dp",
        paper="Wang et al. 2024, Sparse Diffusion Policy (arXiv 2407.01531)",
        conditions=(Task(),),
        backbone=SparseTransformer(),
        # a router that is not used has no gradient, and must not decay either
        training=replace(
            base.training,
            groups=(ParamGroup("net.*router_*", 1.0, 0.0), ParamGroup("conditions.*", 1.0, 0.0)),
        ),
    )
