"""Beginning from a checkpoint: its statistics, so that its weights mean what they meant, and its weights; of
a policy of LeRobot its parts, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...datasets.features import ACTION
from ...datasets.stats import Stats
from ..checkpoint import load_checkpoint
from ..lerobot.folder import checkpoint_folder, is_lerobot, is_ours, read_folder
from ..lerobot.mapped import NotMapped, mapped, mapped_recipe
from ..policy import Policy
from ..recipe import Recipe
from .error import TrainingError


def load_start(source: str) -> Policy:
    """The policy that training begins with: a checkpoint, or LeRobot's `lerobot:PATH` as the recipe of ours
    that it is. CheckpointError or TrainingError in one sentence."""
    folder = checkpoint_folder(source)
    if not is_lerobot(source) or is_ours(folder):
        return load_checkpoint(folder)
    try:
        return mapped(source)
    except NotMapped as error:
        raise TrainingError(str(error)) from None


def started_recipe(recipe: Recipe, source: str) -> Recipe:
    """`recipe` as it must be for the weights of `source` to mean what they meant: with the parts of LeRobot's
    policy, where it is one; else as it is. CheckpointError or TrainingError in one sentence."""
    if not is_lerobot(source) or is_ours(checkpoint_folder(source)):
        return recipe
    try:
        return mapped_recipe(source, recipe)
    except NotMapped as error:
        raise TrainingError(str(error)) from None


def started_keys(source: str) -> list[str] | None:
    """The observations that LeRobot's policy sees, where `source` is one: others would be new to it."""
    if not is_lerobot(source) or is_ours(folder := checkpoint_folder(source)):
        return None
    return [k for k in read_folder(folder).features if k != ACTION]


def take_stats(
    stats: Mapping[str, Stats], start: Mapping[str, Stats], say: Callable[[str], None]
) -> dict[str, Stats]:
    """`stats`, those of the checkpoint to start from in the place of those of equal key and shape; a sentence
    says which do not fit."""
    taken = {k: s for k, s in start.items() if k in stats and s.min.shape == stats[k].min.shape}
    for key in sorted(set(stats) & set(start) - set(taken)):
        say(
            f"the statistics of {key} have the shape {start[key].min.shape} in the checkpoint "
            f"to start from and {stats[key].min.shape} here: taken of the data"
        )
    return {**stats, **taken}


def take_weights(policy: Policy, start: Policy, say: Callable[[str], None]) -> set[str]:
    """Put the weights of the checkpoint `start` into `policy` where name and shape agree, and say in one
    sentence which were taken and which are new; the names of those taken. TrainingError where none is."""
    here, there = policy.state_dict(), start.state_dict()
    taken = {k: v for k, v in there.items() if k in here and v.shape == here[k].shape}
    if not taken:
        raise TrainingError(
            f"no weight of the {start.recipe.name} to start from fits this {policy.recipe.name}"
        )
    other = [k for k in here if k in there and k not in taken]
    new = [k for k in here if k not in there]
    unused = [k for k in there if k not in here]
    policy.load_state_dict({**here, **taken})
    parts = [f"began with {len(taken)} of {len(here)} weights from the checkpoint {start.content_hash[:8]}"]
    if other:
        shapes = [f"{k} is {tuple(there[k].shape)} there and {tuple(here[k].shape)} here" for k in other]
        parts.append(f"of another shape, so new: {_list(shapes)}")
    if new:
        parts.append(f"new: {_list(_modules(new))}")
    if unused:
        parts.append(f"left there: {_list(_modules(unused))}")
    say("; ".join(parts))
    return set(taken)


def _modules(names: Sequence[str]) -> list[str]:
    """`net.up.0.weight`, `net.up.0.bias` → `net.up.0`."""
    return list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))


def _list(items: Sequence[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
