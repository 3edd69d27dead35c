"""A dataset as a LeRobot folder on its way to the hub. It is kept until it is there, so that a push that was
interrupted need not encode its videos again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ...datasets.features import features_to_json
from ...datasets.formats.lerobot_export import export_lerobot
from ...datasets.reading.cache import cache_folder
from ...datasets.store import EpisodeStore

NOTES = "left_out.json"


def staged(
    store: EpisodeStore,
    gaps: Literal["refuse", "drop", "repeat"],
    progress: Callable[[int, int], None] = lambda count, total: None,
) -> tuple[Path, list[str]]:
    """(the LeRobot folder, what was left out of it, in words). Raises StoreError."""
    folder = cache_folder().parent / "push" / _digest(store, gaps)
    exported = folder / "lerobot"
    if not (folder / NOTES).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        result = export_lerobot(store, exported, gaps=gaps, progress=progress)
        notes = list(result.left_out)
        if result.dropped:
            notes.append(f"{result.dropped} ticks, for want of a recent frame")
        if result.repeated:
            notes.append(f"{result.repeated} ticks repeat what is older than it should be")
        (folder / NOTES).write_text(json.dumps(notes))
    return exported, json.loads((folder / NOTES).read_text())


def unstage(exported: Path) -> None:
    """Remove what `staged` made."""
    shutil.rmtree(exported.parent, ignore_errors=True)


def _digest(store: EpisodeStore, gaps: str) -> str:
    """Of everything that an export writes down, labels too."""
    said: list[Any] = [str(store.path.resolve()), gaps, features_to_json(store.features), store.robot]
    said += [[e.content, e.attrs] for e in store.episodes]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]
