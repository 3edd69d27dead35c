"""How the arms of a study are trained, and how what was trained is asked: by a recipe, or by another learner
that is in `RUNNERS`.

Legend: B questions, T observation steps, n actions ahead, A action dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.features import Features
from .study import Arm
from .study_rollout import Decider, Decision, Needs

if TYPE_CHECKING:
    from ..policies.learn.iql import IQL
    from ..policies.policy import Policy
    from ..policies.recipe import Recipe
    from ..policies.request import Request


@dataclass(frozen=True)
class Trained:
    """What is reported of a training."""

    parameters: int
    seconds: float


@dataclass(frozen=True)
class Runner:
    """One way to train arms. In `train`, overrides name other arms' checkpoints by their folders."""

    check: Callable[[Arm, Features], None]
    """(arm, features of the demonstrations): ValueError where its fields do not fit."""
    train: Callable[[Arm, Path, int, Path], Path]
    """(arm, folder of the episodes, seed, folder): writes the checkpoint there, in place of what is there,
    and returns where it lies; on one processor thread, quietly."""
    trained: Callable[[Path], Trained]
    """Of a checkpoint."""
    policy_of: Callable[[Path, Arm], Decider]
    """(checkpoint, arm): the arm's own overrides, request and delay act on the trained policy where the arm
    is `of` another."""


def recipe_of(arm: Arm, features: Features) -> Recipe:
    """ValueError names what does not fit."""
    from ..policies.recipes.all import recipe_function, recipe_names
    from .commands.errors import unknown
    from .commands.recipe_fields import with_changes

    make = recipe_function(arm.recipe)
    if make is None:
        raise unknown("recipe", arm.recipe, recipe_names())
    return with_changes(make(features), arm.overrides, f"arm {arm.name}")


def check_recipe(arm: Arm, features: Features) -> None:
    recipe_of(arm, _used(arm, features))
    _data_options(arm)


def train_recipe(arm: Arm, data_folder: Path, seed: int, out: Path) -> Path:
    from ..policies.train.data import open_data
    from ..policies.train.loop import train

    data = open_data(data_folder, arm.data.get("observe"), _data_options(arm))
    recipe = recipe_of(arm, data.features)
    return train(
        recipe, data, out, seed=seed, device="cpu", track=(), called=arm.recipe, overwrite=True
    ).checkpoint


def trained_recipe(checkpoint: Path) -> Trained:
    from ..policies.checkpoint import read_train

    record = read_train(checkpoint)
    return Trained(record.parameters, record.seconds)


def policy_of_recipe(checkpoint: Path, arm: Arm) -> PolicyDecider:
    from ..policies.checkpoint import load_checkpoint
    from .commands.recipe_fields import with_changes

    policy = load_checkpoint(checkpoint)
    if arm.of:
        policy.recipe = with_changes(policy.recipe, arm.overrides, f"arm {arm.name}")
    return PolicyDecider(policy, arm.request, arm.delay)


def _used(arm: Arm, features: Features) -> Features:
    from ..policies.train.data import policy_features

    return policy_features(features, arm.data.get("observe"))


def _data_options(arm: Arm) -> Any:
    from dataclasses import fields

    from ..policies.train.data import DataOptions
    from .commands.errors import unknown

    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in arm.data.items() if k != "observe"}
    names = [f.name for f in fields(DataOptions)]
    for name in settings:
        if name not in names:
            raise unknown(f"field of data in arm {arm.name}", name, [*names, "observe"])
    return DataOptions(**settings)


class PolicyDecider:
    """A policy, asked many questions at once. options: of `policies.request.Request`; `steps` are the
    sampler's, and the hooks of `steering` come after the recipe's own."""

    def __init__(self, policy: Policy, options: Mapping[str, Any], delay: int = 0) -> None:
        from ..policies.hooks.all import hooks_from_request

        self.policy, self.options = policy, dict(options)
        self.hooks = hooks_from_request(self.options.get("steering", []))
        recipe = policy.recipe
        steering = (*recipe.steering, *self.hooks)
        past = recipe.needs_past or any(hook.needs_past for hook in self.hooks)
        self._needs = Needs(
            features=policy.features,
            observation_keys=policy.observation_keys,
            condition_keys=policy.condition_keys,
            n_obs_steps=recipe.n_obs_steps,
            n_past_actions=recipe.n_past_actions if past else 0,
            n_action_steps=recipe.n_action_steps,
            wants_previous=bool(steering) or delay > 0,
            ensemble_decay=recipe.ensemble_decay if recipe.decoder == "ensemble" else None,
            prompts=_prompts(recipe, policy.features),
        )

    @property
    def needs(self) -> Needs:
        return self._needs

    def decide(self, request: Request) -> Decision:
        import torch

        from ..policies.request import Request as Question

        def tensor(value: Any) -> Any:
            return None if value is None else torch.from_numpy(np.ascontiguousarray(value))

        question = Question(
            {k: tensor(v) for k, v in request.observation.items()},
            request.seed,
            tensor(request.past),
            request.task,
            tensor(request.previous),
            request.delay,
            tensor(request.memory),
            self.options,
        )
        sampled = self.policy.sample(question, tuple(self.hooks), self.options.get("steps"))
        return Decision(
            sampled.chunk[:, self.policy.recipe.n_past_actions :].float().numpy(),
            sampled.nfe.numpy(),
            None if sampled.execute is None else sampled.execute.numpy(),
            None if sampled.memory is None else sampled.memory.float().numpy(),
        )


def _prompts(recipe: Recipe, features: Features) -> tuple[int, int]:
    for part in recipe.conditions:
        if any(k.startswith("prompt.") for k in part.keys(features)):
            needs = part.needs()
            return needs["prompts"], needs["prompt_length"]
    return 0, 0


def learner_of(arm: Arm) -> tuple[IQL, Arm]:
    """The settings of an arm with `learner = "iql"`, its overrides `iql.<field>`, and an arm of the recipe that
    acts, whose overrides are the others: `actor` is its name, flow by default. ValueError names what does not
    fit."""
    from ..policies.learn.iql import IQL
    from .commands.errors import unknown
    from .commands.recipe_fields import with_changes

    if arm.learner not in LEARNERS:
        raise unknown("learner", arm.learner, LEARNERS)
    prefix = f"{arm.learner}."
    own = {k.removeprefix(prefix): v for k, v in arm.overrides.items() if k.startswith(prefix)}
    rest = {k: v for k, v in arm.overrides.items() if not k.startswith(prefix) and k != "actor"}
    actor = replace(arm, learner="", recipe=str(arm.overrides.get("actor", "flow")), overrides=rest)
    return with_changes(IQL(), own, f"arm {arm.name}"), actor


def check_learner(arm: Arm, features: Features) -> None:
    from ..policies.learn.iql import require_judges

    iql, actor = learner_of(arm)
    check_recipe(actor, features)
    require_judges(iql.critic, recipe_of(actor, _used(actor, features)))


def train_learner(arm: Arm, data_folder: Path, seed: int, out: Path) -> Path:
    """The policy's checkpoint; the critic's lies in its folder `critic`."""
    from ..policies.learn.iql import learn_iql
    from ..policies.train.data import open_data

    iql, actor = learner_of(arm)
    data = open_data(data_folder, arm.data.get("observe"), _data_options(arm))
    return learn_iql(iql, recipe_of(actor, data.features), data, out, seed=seed, overwrite=True).out


LEARNERS = ("iql",)
RUNNERS: dict[str, Runner] = {
    "recipe": Runner(check_recipe, train_recipe, trained_recipe, policy_of_recipe),
    "learner": Runner(check_learner, train_learner, trained_recipe, policy_of_recipe),
}
"""By the arm's field that names the way: `recipe`, `learner`."""


def runner_of(arm: Arm) -> Runner:
    """Of an arm that is trained itself. ValueError where there is none."""
    kind = "recipe" if arm.recipe else "learner"
    if kind not in RUNNERS:
        raise ValueError(f"arm {arm.name} names the {kind} {arm.learner!r}: there is none, only recipes")
    return RUNNERS[kind]
