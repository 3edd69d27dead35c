"""A store in other words: what its vectors are called and measured in. What is only stated changes in place
and can be taken back; other numbers make a new store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from .durable import sync_folders
from .episode import Episode, StoreError, require_finite
from .features import ACTION, REQUESTED, Features, features_from_json, features_to_json
from .layout import HEADER
from .merge import copy_episodes
from .store import EpisodeStore
from .units import Restated
from .vectors import write_vector

STATED = "stated"  # in the provenance: what was stated, and the features before


def state_features(store: EpisodeStore, restated: Restated) -> Features:
    """Write what is stated into the header of `store`; its features then. Raises StoreError."""
    features = restated.features(store.features)
    if features == store.features:
        raise StoreError(f"{store.path} says so already")
    for e in store.episodes:
        for key in restated.elements:
            if key in e.streams:
                restated.values(key, e.read(key))
    with store.writing():
        header = _header(store)
        history = header.setdefault("provenance", {}).setdefault(STATED, [])
        was = features_to_json({k: f for k, f in store.features.items() if f != features[k]})
        history.append({"at_s": round(time.time(), 3), **restated.notes, "was": was})
        _write(store, {**header, "features": features_to_json(features)})
    return features


def unstate_features(store: EpisodeStore) -> Features:
    """Take back what was stated last; the features then. Raises StoreError where nothing was."""
    with store.writing():
        header = _header(store)
        history = header.get("provenance", {}).get(STATED)
        if not history:
            raise StoreError(f"nothing was stated of {store.path}")
        header["features"] |= history.pop()["was"]
        _write(store, header)
        return features_from_json(header["features"])


def restated_copy(store: EpisodeStore, restated: Restated, out: str | Path) -> EpisodeStore:
    """A new store `out` with the episodes of `store` as `restated` has them. Raises StoreError."""

    def change(e: Episode, folder: Path) -> dict[str, Any]:
        for key in (*restated.elements, REQUESTED):
            if key in e.streams:
                values = restated.values(key, e.read(key))
                require_finite(f"episode {e.index}", key, values)
                shutil.rmtree(folder / key / "value")
                write_vector(folder / key / "value", values)
        # other numbers are another episode, the same ones wherever this is done again
        words = {
            key: [{n: getattr(x, n) for n in ("name", "unit", "scale", "offset")} for x in elements]
            for key, elements in sorted(restated.elements.items())
        }
        content = hashlib.blake2b(f"{e.content} {json.dumps(words)}".encode(), digest_size=16).hexdigest()
        names, limits = store.features[ACTION].names, e.attrs.get("limits")
        return {"content": content, **({"limits": restated.limits(names, limits)} if limits else {})}

    features = restated.features(store.features)
    notes = {STATED: [{**restated.notes, "converted_from": str(store.path)}]}
    return copy_episodes(store, store.episodes, out, notes, features, change)


def _header(store: EpisodeStore) -> dict[str, Any]:
    """As it is on disk now."""
    return json.loads((store.path / HEADER).read_text())


def _write(store: EpisodeStore, header: dict[str, Any]) -> None:
    new = store.path / f".{HEADER}"
    try:
        with new.open("w") as file:
            file.write(json.dumps(header, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, store.path / HEADER)
        sync_folders(store.path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise StoreError(f"cannot edit {store.path}: {error.strerror or error}") from None
