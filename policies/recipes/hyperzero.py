"""HyperZero (Rezaei-Shoshtari et al. 2023, arXiv 2211.15457)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features, state_keys
from ..backbones.hyperzero import HyperZero
from ..conditions.label import Label
from ..conditions.task import Task
from ..recipe import Recipe
from .mip import regression_mlp
from .user_conditioned import COMMAND


def hyperzero(features: Features) -> Recipe:
    """HyperZero (Rezaei-Shoshtari et al. 2023, arXiv 2211.15457): a network makes the weights of another of
    the parameters of the task, so that there is a policy for parameters that nobody has shown.

    The parameters are `observation.command` of the data, a vector; without it the task, by its number.
    Faithful: see `HyperZero`; squared error of the action that near-optimal demonstrations did. Not: the
    critic, which is generated alike and ties the two by a temporal-difference loss, is reinforcement learning
    and is not here; a chunk, not one action. Rivals: the parameters beside the observation
    (`regression_mlp`), and scaling and shifting one network (`user_conditioned`). Study: hyperzero_gates."""
    base = regression_mlp(features)
    return replace(
        base,
        name="hyperzero",
        paper="Rezaei-Shoshtari et al. 2023, Hypernetworks for zero-shot transfer in reinforcement learning "
        "(arXiv 2211.15457)",
        conditions=(Label(COMMAND, drop=0.0),) if COMMAND in state_keys(features) else (Task(),),
        backbone=HyperZero(),
    )
