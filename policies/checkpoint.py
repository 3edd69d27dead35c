"""A checkpoint: a folder of safetensors and JSON, bound together by a content hash. No pickle.

model.safetensors   the weights (of the EMA)
recipe.json         the parts
features.json       what the policy sees and commands
stats.json          statistics behind the normalisers
train.json          data, steps, losses, versions: how it came to be (`train.record`)
hash.json           SHA-256 of the first four files; loading verifies it, the server echoes it in every reply
validation/*.json   reports that evaluation adds; not part of the hash

A critic's (`learn.critic`) has critic.json in the place of recipe.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..datasets.features import Features, features_from_json, features_to_json
from ..datasets.stats import Stats
from ..datasets.units import Restated
from .hashed import (
    WEIGHTS,
    CheckpointError,
    read_json,
    require_finite,
    save_hashed,
    stamp_hashed,
    verify_hashed,
    write_json,
)
from .parts import recipe_from_json, recipe_to_json
from .policy import Policy
from .recipe import Recipe
from .train.record import TrainingRecord

BEFORE = "features.before.json"  # what `restate_checkpoint` found
HASHED = (WEIGHTS, "recipe.json", "features.json", "stats.json")


def save_checkpoint(folder: str | Path, policy: Policy, record: TrainingRecord) -> str:
    """Write the checkpoint and return its content hash. An older one is replaced in one rename; its
    `validation/` is not kept (other weights were validated) and whatever else lies in the folder is."""
    documents = {
        "recipe.json": recipe_to_json(policy.recipe),
        "features.json": features_to_json(policy.features),
        "stats.json": {k: s.to_json() for k, s in policy.stats.items()},
        "train.json": record.to_json(),
    }
    policy.content_hash = save_hashed(Path(folder), policy.state_dict(), documents, HASHED)
    return policy.content_hash


def load_checkpoint(folder: str | Path, device: str = "cpu") -> Policy:
    """The policy, in evaluation mode on `device`, with `content_hash` set. CheckpointError in one sentence
    otherwise."""
    folder = Path(folder)
    content_hash = verify_checkpoint(folder)
    try:
        recipe = recipe_from_json(read_json(folder / "recipe.json"))
        if not isinstance(recipe, Recipe):
            raise TypeError("recipe.json does not hold a recipe")
        features = features_from_json(read_json(folder / "features.json"))
        stats = {k: Stats.from_json(v) for k, v in read_json(folder / "stats.json").items()}
        policy = Policy(recipe, features, stats)
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder} holds a checkpoint that this version cannot load: {reason}"
        ) from error
    require_finite(folder, policy.state_dict())
    policy.content_hash = content_hash
    return policy.eval().requires_grad_(False).to(device)


def restate_checkpoint(folder: str | Path, restated: Callable[[Features, str], Restated]) -> Features:
    """State what the numbers of a policy are called and measured in, where its data did not say; its features
    then. The weights stay as they are, the content hash does not. CheckpointError in one sentence."""
    folder = Path(folder)
    before = {"features": read_json(folder / "features.json"), "sha256": verify_checkpoint(folder)}
    features = features_from_json(before["features"])
    after = restated(features, read_train(folder).robot).features(features)
    if after == features:
        raise CheckpointError(f"{folder} says so already")
    write_json(folder / BEFORE, before)
    _write_features(folder, features_to_json(after))
    return after


def undo_restated(folder: str | Path) -> Features:
    """Take back what `restate_checkpoint` did last."""
    folder = Path(folder)
    if not (folder / BEFORE).is_file():
        raise CheckpointError(f"nothing was stated of {folder}")
    before = read_json(folder / BEFORE)
    _write_features(folder, before["features"])
    (folder / BEFORE).unlink()
    return features_from_json(before["features"])


def _write_features(folder: Path, features: Any) -> None:
    write_json(folder / ".features.json", features)
    os.replace(folder / ".features.json", folder / "features.json")
    stamp_hashed(folder, HASHED)


def verify_checkpoint(folder: str | Path) -> str:
    """The content hash, after checking that the files are there and are those that were saved."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}: train one with `ulna train`")
    return verify_hashed(folder, "policy", HASHED)


def read_train(folder: str | Path) -> TrainingRecord:
    """CheckpointError in one sentence where the folder has no `train.json` that can be read."""
    path = Path(folder) / "train.json"
    try:
        return TrainingRecord.from_json(read_json(path))
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from None
