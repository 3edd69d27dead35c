"""A checkpoint: a folder of safetensors and JSON, bound together by a content hash. No pickle.

model.safetensors   the weights (of the EMA)
recipe.json         the parts
features.json       what the policy sees and commands
stats.json          statistics behind the normalisers
train.json          data, steps, losses, versions: how it came to be (`train.record`)
hash.json           SHA-256 of the first four files; loading verifies it, the server echoes it in every reply
validation/*.json   reports that evaluation adds; not part of the hash
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..datasets.features import features_from_json, features_to_json
from ..datasets.stats import Stats
from .parts import recipe_from_json, recipe_to_json
from .policy import Policy
from .recipe import Recipe
from .train.record import TrainingRecord

HASHED = ("model.safetensors", "recipe.json", "features.json", "stats.json")
FORMAT = 1


class CheckpointError(ValueError):
    """The folder is no checkpoint, or not the one that was saved; the message says what is wrong."""


def save_checkpoint(folder: str | Path, policy: Policy, record: TrainingRecord) -> str:
    """Write the checkpoint and return its content hash. An older one is replaced in one rename; its
    `validation/` is not kept (other weights were validated) and whatever else lies in the folder is."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging:
        new = Path(staging)
        state = {k: v.detach().contiguous().cpu() for k, v in policy.state_dict().items()}
        save_file(state, new / "model.safetensors")
        write_json(new / "recipe.json", recipe_to_json(policy.recipe))
        write_json(new / "features.json", features_to_json(policy.features))
        write_json(new / "stats.json", {k: s.to_json() for k, s in policy.stats.items()})
        write_json(new / "train.json", record.to_json())
        content_hash = _hash(new)
        write_json(new / "hash.json", {"format": FORMAT, "sha256": content_hash})
        shutil.rmtree(folder / "validation", ignore_errors=True)
        (folder / "hash.json").unlink(
            missing_ok=True
        )  # until the last rename the folder says it is incomplete
        for file in (*HASHED, "train.json", "hash.json"):
            os.replace(new / file, folder / file)
    policy.content_hash = content_hash
    return content_hash


def load_checkpoint(folder: str | Path, device: str = "cpu") -> Policy:
    """The policy, in evaluation mode on `device`, with `content_hash` set. CheckpointError in one sentence
    otherwise."""
    folder = Path(folder)
    content_hash = verify_checkpoint(folder)
    try:
        recipe = recipe_from_json(_json(folder / "recipe.json"))
        if not isinstance(recipe, Recipe):
            raise TypeError("recipe.json does not hold a recipe")
        features = features_from_json(_json(folder / "features.json"))
        stats = {k: Stats.from_json(v) for k, v in _json(folder / "stats.json").items()}
        policy = Policy(recipe, features, stats)
        policy.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder} holds a checkpoint that this version cannot load: {reason}"
        ) from error
    policy.content_hash = content_hash
    return policy.eval().requires_grad_(False).to(device)


def verify_checkpoint(folder: str | Path) -> str:
    """The content hash, after checking that the files are there and are those that were saved."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}: train one with `ulna train`")
    missing = [f for f in (*HASHED, "hash.json") if not (folder / f).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not a complete Ulna checkpoint: it lacks {', '.join(missing)}")
    stamp = _json(folder / "hash.json")
    if stamp.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {stamp.get('format')}; this version reads {FORMAT}"
        )
    if _hash(folder) != stamp.get("sha256"):
        raise CheckpointError(
            f"{folder} is not as it was saved (its content hash differs): it is truncated or was changed; "
            "copy it again from where it was trained"
        )
    return str(stamp["sha256"])


def read_train(folder: str | Path) -> TrainingRecord:
    """CheckpointError in one sentence where the folder has no `train.json` that can be read."""
    return TrainingRecord.from_json(_json(Path(folder) / "train.json"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in HASHED:
        with (folder / file).open("rb") as f:
            digest.update(f"{file} ".encode() + hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()
