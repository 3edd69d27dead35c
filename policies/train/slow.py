"""The slow policy that a new one asks: its checkpoint becomes part of the new one's recipe, and its weights
of the new one's weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ...datasets.features import ACTION, Features, features_to_json, require_same
from ..checkpoint import load_checkpoint
from ..conditions.slow import Kept, Slow, SlowNet
from ..inverse_dynamics import InverseDynamics
from ..policy import Policy
from ..recipe import Recipe
from .error import TrainingError

Weights = dict[str, Tensor]


def with_slow(recipe: Recipe, features: Features, start: Policy | None) -> tuple[Recipe, Weights]:
    """(`recipe`, whose condition `Slow` holds the policy that it names or, where it names none, the one that
    `start` has; the weights of the policy that was named). CheckpointError, FeatureMismatch or TrainingError
    in one sentence where the two do not go together."""
    part = _slow(recipe)
    if part is None:
        return recipe, {}
    weights: Weights = {}
    if part.slow:
        policy = load_checkpoint(part.slow)
        kept, weights = kept_of(policy), policy.state_dict()
    elif start is not None and (before := _slow(start.recipe)) is not None and before.kept is not None:
        kept = before.kept
    else:
        raise TrainingError(
            f"{recipe.name} asks a slow policy that is trained already: name its checkpoint, "
            "--conditions.Slow.slow FOLDER"
        )
    slow, its_features, _ = kept.parts()
    require_same(features, its_features, "the data", "the slow policy")
    if slow.n_obs_steps > recipe.n_obs_steps:
        raise TrainingError(
            f"the slow policy sees {slow.n_obs_steps} observations and {recipe.name} {recipe.n_obs_steps}: "
            f"set --n-obs-steps {slow.n_obs_steps}"
        )
    if isinstance(recipe.codec, InverseDynamics):
        raise TrainingError("a plan of states has no place for a slow policy's actions: use --codec Absolute")
    if unseen := [k for k in part.alone if k not in its_features]:
        raise TrainingError(
            f"nobody would see {unseen[0]}: the slow policy sees "
            f"{', '.join(k for k in its_features if k != ACTION)}: choose from them (--conditions.Slow.alone)"
        )
    whole = replace(part, slow="", kept=kept)
    conditions = tuple(whole if c is part else c for c in recipe.conditions)
    return replace(recipe, conditions=conditions), weights


def _slow(recipe: Recipe) -> Slow | None:
    return next((c for c in recipe.conditions if isinstance(c, Slow)), None)


def kept_of(policy: Policy) -> Kept:
    """All of a policy but its weights."""
    stats = {k: s.to_json() for k, s in policy.stats.items()}
    features = json.dumps(features_to_json(policy.features))
    return Kept(policy.recipe, features, json.dumps(stats, allow_nan=False), policy.content_hash)


def take_slow(policy: Policy, weights: Weights, say: Callable[[str], None]) -> None:
    """Give the slow policy within `policy` its weights, where there are any."""
    for net in policy.conditions if weights else ():
        if isinstance(net, SlowNet):
            net.policy.load_state_dict(weights)
            name = net.policy.recipe.name
            say(
                f"its slow policy is the {name} {net.policy.content_hash[:8]}, whose weights stay as they are"
            )
