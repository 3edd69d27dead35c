"""A policy between two: weights (1 - w) of one checkpoint and w of another, as in RETAIN (Yadav et al. 2025,
arXiv 2512.08333), where a generalist and what it became by tuning give one that knows both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_checkpoint, read_train, save_checkpoint
from .lerobot.folder import checkpoint_folder
from .parts import recipe_to_json
from .policy import Policy
from .recipe import Recipe
from .train.config import CONFIG_FILE, flat
from .train.error import TrainingError, nearest
from .train.state import make_folder, one_sentence

# of a recipe, what the weights do not depend on
ASIDE = (
    *("name", "paper", "training", "steering", "solver", "sampling_steps"),
    *("n_action_steps", "decoder", "ensemble_decay"),
)


def blend(
    first: str | Path,
    second: str | Path,
    out: str | Path,
    weight: float,
    modules: Sequence[tuple[str, float]] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the checkpoint `out`, whose weights are (1 - weight) times those of the checkpoint `first` and
    weight, 0 to 1, times those of `second`; all else is of `second`: recipe, statistics, whole numbers.

    modules: (pattern of names, weight of its own); the first that matches counts. Returns what `ulna blend`
    prints (JSON types). TrainingError or CheckpointError in one sentence where the two have no common weights
    to blend."""
    for value in (weight, *(w for _, w in modules)):
        if not 0 <= value <= 1:
            raise TrainingError(f"a weight of a blend is from 0, the first alone, to 1, not {value:g}")
    first, second = checkpoint_folder(first), checkpoint_folder(second)
    mine, theirs = load_checkpoint(first), load_checkpoint(second)
    if problem := difference(mine, theirs):
        raise TrainingError(f"{first} and {second} cannot be blended: {problem}")
    record = read_train(second)
    if mine.content_hash != theirs.content_hash and mine.content_hash not in _before(second):
        say(
            f"{second} was not trained from {first} (training.start): between weights trained apart "
            "there is seldom a policy that can do anything"
        )
    if odd := [k for k, s in theirs.stats.items() if s.to_json() != mine.stats[k].to_json()]:
        say(
            f"the statistics of {odd[0]} differ, so that the same weights mean different things: those of "
            f"{second} are taken"
        )
    ours, state = mine.state_dict(), theirs.state_dict()
    weights = _weights(state, weight, modules)
    theirs.load_state_dict(
        {n: torch.lerp(ours[n], v, weights[n]) if v.is_floating_point() else v for n, v in state.items()}
    )
    out = Path(out)
    what = {
        "of": [mine.content_hash, record_hash := theirs.content_hash],
        "weight": weight,
        "modules": [list(m) for m in modules],
    }
    make_folder(out, overwrite, main=True)
    with one_sentence(out):
        content_hash = save_checkpoint(out, theirs, replace(record, blend=what))
        (out / CONFIG_FILE).unlink(missing_ok=True)  # of a training that was here
    moved = sum(v.numel() for n, v in state.items() if v.is_floating_point() and 0 < weights[n] < 1)
    return {
        "checkpoint": str(out),
        "content_hash": content_hash,
        "of": [mine.content_hash, record_hash],
        "weight": weight,
        "between": moved,
        "parameters": sum(p.numel() for p in theirs.parameters()),
    }


def difference(first: Policy, second: Policy) -> str:
    """Why their weights do not mean the same, in a few words; "" where they do."""
    mine, theirs = (_fields(p.recipe) for p in (first, second))
    for name in dict.fromkeys((*mine, *theirs)):
        if (a := mine.get(name)) != (b := theirs.get(name)):
            return f"the {name} of one {first.recipe.name} is {_text(a)}, of the other {_text(b)}"
    if first.features != second.features:
        keys = dict.fromkeys((*first.features, *second.features))
        key = next(k for k in keys if first.features.get(k) != second.features.get(k))
        return f"{key} is not the same for both"
    before, after = first.state_dict(), second.state_dict()
    for name in dict.fromkeys((*before, *after)):
        shapes = [tuple(of[name].shape) if name in of else None for of in (before, after)]
        if shapes[0] != shapes[1]:
            return f"{name} has the shapes {shapes[0]} and {shapes[1]}"
    return ""


def _fields(recipe: Recipe) -> dict[str, Any]:
    return flat({k: v for k, v in recipe_to_json(recipe).items() if k not in ASIDE})


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "nothing"
    return str(value["part"]) if isinstance(value, Mapping) else str(value)


def _before(folder: str | Path) -> list[str]:
    """The content hashes of what a checkpoint came from."""
    record = read_train(folder)
    return [record.start, *record.blend.get("of", ())]


def _weights(
    names: Sequence[str] | Mapping[str, Any], weight: float, modules: Sequence[tuple[str, float]]
) -> dict[str, float]:
    for pattern, _ in modules:
        if not any(fnmatchcase(n, pattern) for n in names):
            folders = {n.rsplit(".", k)[0] + ".*" for n in names for k in range(1, n.count(".") + 1)}
            raise TrainingError(f"--modules {pattern} matches no weight: {nearest(pattern, sorted(folders))}")
    return {n: next((w for pattern, w in modules if fnmatchcase(n, pattern)), weight) for n in names}
