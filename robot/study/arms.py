"""The kinds of arms of a study. Each is one function: from demonstrations to a checkpoint. Another kind is
another function in `RUNNERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .lerobot_arm import LeRobotRunner
from .runner import Runner, Trained, execution
from .study import Arm, StudyError, Variant

if TYPE_CHECKING:
    from ..rollout import Decider


class RecipeRunner:
    """`recipe = "NAME"`: imitation of the demonstrations, as `ulna train` does it."""

    def check(self, arm: Arm, sharing: Sequence[Arm], features: Mapping[str, Any]) -> None:
        from ..commands.recipe_fields import with_changes

        data_options(arm)
        recipe = self._recipe(arm, features)
        execution(arm.settings)
        for other in sharing:
            try:
                with_changes(recipe, execution(other.settings)[0])
            except ValueError as error:
                raise StudyError(f"{other.name}, which shares its training: {error}") from None

    def train(self, arm: Arm, variant: Variant, data: Path, out: Path, seed: int, device: str) -> Trained:
        from ...policies.train.loop import train
        from ...policies.train.state import STATE_FILE

        if not (out / "hash.json").is_file():
            opened = open_arm_data(arm, data)
            recipe = self._recipe(arm, opened.features)
            train(
                recipe, opened, out, seed=seed, device=device, track=(), resume=(out / STATE_FILE).is_file()
            )
        return trained(out)

    def decider(self, checkpoint: Path, settings: Mapping[str, Any], device: str) -> Decider:
        from ...policies.serving.batch import BatchPolicy
        from ...policies.serving.local import LocalPolicy
        from ..commands.recipe_fields import with_changes

        own = execution(settings)[0]
        return BatchPolicy(LocalPolicy(checkpoint, device, change=lambda recipe: with_changes(recipe, own)))

    def _recipe(self, arm: Arm, features: Mapping[str, Any]) -> Any:
        from ...policies.recipes.all import recipe_function, recipe_names
        from ...policies.train.data import policy_features
        from ..commands.errors import unknown
        from ..commands.recipe_fields import with_changes

        make = recipe_function(arm.source)
        if make is None:
            raise unknown("recipe", arm.source, recipe_names())
        recipe = make(policy_features(dict(features), arm.data.get("observe")))
        return with_changes(recipe, execution(arm.settings)[0])


class LearnerRunner:
    """`learner = "iql"`: by `policies.learn`. Fields of the learner are `iql.FIELD`; `actor` is the recipe
    that acts, flow by default, and has the other settings. The critic's checkpoint is the folder `critic`
    within the policy's."""

    def check(self, arm: Arm, sharing: Sequence[Arm], features: Mapping[str, Any]) -> None:
        from ...policies.learn.iql import require_judges

        iql, actor = self._parts(arm)
        RecipeRunner().check(actor, sharing, features)
        require_judges(iql.critic, RecipeRunner()._recipe(actor, features))

    def train(self, arm: Arm, variant: Variant, data: Path, out: Path, seed: int, device: str) -> Trained:
        from ...policies.learn.iql import learn_iql
        from ...policies.train.state import STATE_FILE

        if not (out / "hash.json").is_file():
            iql, actor = self._parts(arm)
            opened = open_arm_data(arm, data)
            recipe = RecipeRunner()._recipe(actor, opened.features)
            resume = (out / STATE_FILE).is_file()
            learn_iql(iql, recipe, opened, out, seed=seed, device=device, resume=resume)
        return trained(out)

    def decider(self, checkpoint: Path, settings: Mapping[str, Any], device: str) -> Decider:
        return RecipeRunner().decider(checkpoint, settings, device)

    def _parts(self, arm: Arm) -> tuple[Any, Arm]:
        """The learner's settings, and an arm of the recipe that acts."""
        from ...policies.learn.iql import IQL
        from ..commands.errors import unknown
        from ..commands.recipe_fields import with_changes

        if arm.source != "iql":
            raise unknown("learner", arm.source, ("iql",))
        own = {k.removeprefix("iql."): v for k, v in arm.settings.items() if k.startswith("iql.")}
        rest = {k: v for k, v in arm.settings.items() if not k.startswith("iql.") and k != "actor"}
        actor = str(arm.settings.get("actor", "flow"))
        return with_changes(IQL(), own), replace(arm, kind="recipe", source=actor, settings=rest)


class BlendRunner:
    """`blend = "ARM"`, `with = "OTHER"`: the checkpoint whose weights lie between theirs, see
    `policies.blend`."""

    def check(self, arm: Arm, sharing: Sequence[Arm], features: Mapping[str, Any]) -> None:
        weight = self._weight(arm)
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise StudyError(f"weight is how much of {arm.source}, from 0 to 1, not {weight!r}")
        self._modules(arm)

    def train(self, arm: Arm, variant: Variant, data: Path, out: Path, seed: int, device: str) -> Trained:
        from ...policies.blend import blend

        if not (out / "hash.json").is_file():
            blend(arm.settings["with"], arm.settings["of"], out, self._weight(arm), self._modules(arm))
        return replace(trained(out), seconds=0.0)

    def decider(self, checkpoint: Path, settings: Mapping[str, Any], device: str) -> Decider:
        return RecipeRunner().decider(checkpoint, settings, device)

    def _weight(self, arm: Arm) -> Any:
        return arm.settings.get("weight", 0.5)

    def _modules(self, arm: Arm) -> list[tuple[str, float]]:
        from ..commands.blend import module_weights

        return module_weights(str(arm.settings.get("modules", "")))


def trained(out: Path) -> Trained:
    """Of the checkpoint in the folder `out`."""
    from ...policies.checkpoint import read_train, verify_checkpoint

    record = read_train(out)
    tail = record.losses[-50:]
    loss = sum(tail) / len(tail)
    return Trained(out, verify_checkpoint(out), record.parameters, record.seconds, record.steps, loss)


def data_options(arm: Arm) -> Any:
    """The `DataOptions` of the arm; StudyError where `data` has another key."""
    from ...policies.train.data import DataOptions

    options = {k: v for k, v in arm.data.items() if k not in ("observe", "also")}
    try:
        return DataOptions(**options)
    except TypeError as error:
        raise StudyError(f"data: {error}") from None


def open_arm_data(arm: Arm, data: Path) -> Any:
    """The demonstrations as the arm uses them, a `TrainingData`."""
    from ...policies.train.data import open_data

    folders = [data, *arm.data.get("also", ())]
    return open_data(folders, arm.data.get("observe"), data_options(arm))


RUNNERS: dict[str, Runner] = {
    "recipe": RecipeRunner(),
    "learner": LearnerRunner(),
    "blend": BlendRunner(),
    "lerobot": LeRobotRunner(),
}


def runner(arm: Arm) -> Runner:
    if arm.kind not in RUNNERS:
        raise StudyError(f"the arm {arm.name} is a {arm.kind}: there is {', '.join(RUNNERS)}")
    return RUNNERS[arm.kind]


def task_maker(name: str, options: Mapping[str, Any]) -> Callable[[int], Any]:
    """What makes the vector environment of a task for so many episodes: of the planar ones, a PyBullet one,
    or `package.module:Name`. ValueError when there is none, or it does not take these options."""
    from ...drivers.plugins import REFERENCE, lookup
    from ...sim.planar.all import TASKS
    from ...sim.tasks.all import task_names
    from ..commands.errors import unknown

    if name in TASKS:
        return partial(TASKS[name], **options)
    if REFERENCE.fullmatch(name):
        return partial(lookup("ulna.tasks", {}, name), **options)
    if name not in task_names():
        raise unknown("task", name, [*TASKS, *task_names()])
    from ...sim.vector import vector_env

    def make(n: int) -> Any:
        return vector_env(name, num_envs=n, **options)

    return make
