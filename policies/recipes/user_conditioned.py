"""Policies that a user commands while they run (Bauersfeld et al. 2022, arXiv 2211.12181)."""

from __future__ import annotations

from dataclasses import replace

from ...datasets.features import Features, state_keys
from ..conditions.label import Label
from ..recipe import Recipe
from .mip import regression_mlp

COMMAND = "observation.command"


def user_conditioned(features: Features) -> Recipe:
    """User-conditioned control (Bauersfeld et al. 2022, arXiv 2211.12181): a command, such as how fast to go,
    scales and shifts every hidden layer (FiLM), so that one network spans what else takes one for each
    command.

    The command is `observation.command` of the data, a vector that only FiLM sees; without it this is
    `regression_mlp`. Faithful: FiLM of the hidden layers by the command. Not: published for reinforcement
    learning of a quadrotor, here imitation; what is observed enters by FiLM, too. The published rival, the
    command beside the observation, is `--backbone.film False`. Study: film_gates."""
    told = COMMAND in state_keys(features)
    return replace(
        regression_mlp(features),
        name="user_conditioned",
        paper="Bauersfeld et al. 2022, User-conditioned neural control policies (arXiv 2211.12181)",
        conditions=(Label(COMMAND, drop=0.0),) if told else (),
    )
