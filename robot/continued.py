"""A dataset that is recorded into again: what is not as it was when its last episode was recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..datasets.store import EpisodeStore

SETTINGS = ("robot_config", "limits", "calibration", "cameras", "task")  # of an episode's metadata
MOST = 8


def differences(store: EpisodeStore, robot: str, now: Mapping[str, Any]) -> list[str]:
    """What a new episode of the robot called `robot` with the metadata `now` would have otherwise than the
    last one of `store`: `limits.gripper was 0 to 1.7, is 0 to 1`. Settings that either does not tell are left
    out."""
    changes = [] if store.robot == robot else [f"robot was {store.robot}, is {robot}"]
    if not store.episodes:
        return changes
    last = store.episodes[-1].attrs
    for setting in SETTINGS:
        if not last.get(setting) or not now.get(setting):
            continue
        # as JSON has it: a tuple is a list there
        was, given = (dict(_flat(setting, json.loads(json.dumps(d[setting])))) for d in (last, now))
        for key in dict.fromkeys((*was, *given)):
            if was.get(key) != given.get(key):
                changes.append(f"{key} was {_text(was.get(key))}, is {_text(given.get(key))}")
    return changes


def sentence(out: str | Path, changes: list[str]) -> str:
    """`changes` for whoever records; "" where there are none."""
    if not changes:
        return ""
    more = f"; and {len(changes) - MOST} more" if len(changes) > MOST else ""
    return f"{out} goes on with other settings than its last episode: {'; '.join(changes[:MOST])}{more}"


def require_rate(store: EpisodeStore, control_hz: float) -> None:
    """ValueError where the robot's rate is not the store's: a policy would learn two speeds as one."""
    if store.control_hz != control_hz:
        raise ValueError(
            f"{store.path} was recorded at {store.control_hz:g} Hz, the robot runs at {control_hz:g}: record "
            "into a folder of its own, or give the robot that control_hz"
        )


def require_storage(
    store: EpisodeStore, storage: Mapping[str, Any] | None, size: tuple[int, int] | None
) -> None:
    """ValueError where images are to be kept otherwise than `store` keeps its own."""
    kept = next(iter(store.storage.values()), {})
    other = [f"{k} {v}" for k, v in (storage or {}).items() if kept.get(k) != v]
    shapes = {f.shape[:2] for k, f in store.features.items() if k in store.storage}
    if size is not None and (not kept.get("resize") or shapes != {size}):
        other.append(f"{size[1]}x{size[0]} pixels")
    if other:
        codec = " ".join(str(v) for k, v in kept.items() if k != "resize") or "raw"
        sizes = ", ".join(f"{w}x{h}" for h, w in sorted(shapes))
        keeps = f"{codec} images" + (f" of {sizes} pixels" if kept.get("resize") else " as they come")
        raise ValueError(
            f"{store.path} exists and keeps {keeps}, not {' and '.join(other)}: leave that option out, or "
            "record into another folder"
        )


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    else:
        yield prefix, value


def _text(value: Any) -> str:
    if value is None:
        return "not there"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) == 2:
        return " to ".join(map(_text, value))
    return str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
