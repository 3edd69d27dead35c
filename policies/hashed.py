"""A folder of safetensors and JSON bound together by a content hash: what checkpoints of policies, of critics
and of detectors have in common. No pickle, and no torch but where weights are written or checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets import plain_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
STAMP = "hash.json"
FORMAT = 1
KINDS = {
    "recipe.json": "policy",
    "critic.json": "critic",
    "detector.json": "detector",
    "guard.json": "guard",
    "progress.json": "progress critic",
}  # the file that only that kind has


class CheckpointError(ValueError):
    """The folder is no checkpoint, or not the one that was saved; the message says what is wrong."""


def save_hashed(
    folder: Path,
    weights: Mapping[str, Tensor],
    documents: Mapping[str, Any],
    hashed: Sequence[str],
) -> str:
    """Write the weights and the JSON documents by their file names, and return the content hash of the files
    `hashed`. An older checkpoint is replaced in one rename; its `validation/` is not kept (other weights were
    validated) and whatever else lies in the folder is."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging:
        new = Path(staging)
        save_file({k: v.detach().contiguous().cpu() for k, v in weights.items()}, new / WEIGHTS)
        for name, document in documents.items():
            write_json(new / name, document)
        content_hash = _hash(new, hashed)
        write_json(new / STAMP, {"format": FORMAT, "sha256": content_hash})
        shutil.rmtree(folder / "validation", ignore_errors=True)
        (folder / STAMP).unlink(missing_ok=True)  # until the last rename the folder says it is incomplete
        for file in (WEIGHTS, *documents, STAMP):
            os.replace(new / file, folder / file)
    return content_hash


def verify_hashed(folder: Path, kind: str, hashed: Sequence[str]) -> str:
    """The content hash, after checking that the files are there and are those that were saved. kind: of
    `KINDS`. CheckpointError in one sentence."""
    other = [k for file, k in KINDS.items() if k != kind and (folder / file).is_file()]
    if other and not any(k == kind and (folder / file).is_file() for file, k in KINDS.items()):
        within = f"; one lies in {folder / kind}" if (folder / kind / STAMP).is_file() else ""
        raise CheckpointError(f"{folder} holds a {other[0]}, and a {kind} is needed here{within}")
    missing = [f for f in (*hashed, STAMP) if not (folder / f).is_file()]
    if missing:
        name = "Ulna checkpoint" if kind == "policy" else f"Ulna checkpoint of a {kind}"
        raise CheckpointError(f"{folder} is not a complete {name}: it lacks {', '.join(missing)}")
    stamp = read_json(folder / STAMP)
    if stamp.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {stamp.get('format')}; this version reads {FORMAT}"
        )
    if _hash(folder, hashed) != stamp.get("sha256"):
        raise CheckpointError(
            f"{folder} is not as it was saved (its content hash differs): it is truncated or was changed; "
            "copy it again from where it was trained"
        )
    return str(stamp["sha256"])


def stamp_hashed(folder: Path, hashed: Sequence[str]) -> None:
    """Bind the files of a checkpoint together as they are now."""
    write_json(folder / f".{STAMP}", {"format": FORMAT, "sha256": _hash(folder, hashed)})
    os.replace(folder / f".{STAMP}", folder / STAMP)


def stamp_of(folder: str | Path) -> str:
    """The hash that the checkpoint says it has; "" where it has none, which loading explains."""
    try:
        return str(json.loads((Path(folder) / STAMP).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = plain_json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def require_finite(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that names the first of the weights which holds NaN or infinity."""
    import torch

    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{folder} holds weights that are not finite ({name}): its training went wrong, or the file "
                "was changed; take another checkpoint"
            )


def _hash(folder: Path, hashed: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in hashed:
        with (folder / file).open("rb") as f:
            digest.update(f"{file} ".encode() + hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()
