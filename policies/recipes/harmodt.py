"""HarmoDT (Hu et al. 2024, arXiv 2405.18080)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features
from ..backbones.harmodt import HarmoDT
from ..backbones.transformer import Transformer
from ..conditions.task import Task
from ..objectives.regression import Regression
from ..recipe import ParamGroup, Recipe
from .diffusion import diffusion_transformer


def harmodt(features: Features) -> Recipe:
    """HarmoDT (Hu et al. 2024, arXiv 2405.18080): one transformer of several tasks, each of which has the
    part of its weights that its mask says, so that tasks which disagree keep out of each other's way.

    Faithful: see `HarmoDT`; 6 layers of 256, squared error of the action at each of the last steps, causal.
    Not: no return is asked for, no prompt is shown; the transformer sees 8 observations, not 20, and not the
    actions between; instructions are numbered (`Task`), in the place of a task's own prompt. Study:
    harmodt_words."""
    base = diffusion_transformer(features)
    return replace(
        base,
        name="harmodt",
        paper="Hu et al. 2024, HarmoDT: harmony multi-task decision transformer (arXiv 2405.18080)",
        conditions=(Task(),),
        backbone=HarmoDT(Transformer(width=256, depth=6, heads=4, causal=True)),
        objective=Regression("l2"),
        sampling_steps=1,
        n_obs_steps=8,
        horizon=8,
        n_past_actions=7,
        n_action_steps=1,
        # a task that is not there has no gradient, and its vector must not decay either
        training=replace(base.training, groups=(ParamGroup("conditions.*", 1.0, 0.0),)),
    )
