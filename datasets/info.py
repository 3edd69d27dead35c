"""What is in a store, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import inside
from .edit import trash
from .features import features_to_json, is_frames
from .store import EpisodeStore


def describe(store: EpisodeStore) -> dict[str, Any]:
    """JSON types. rates_hz: per stream the median rate by capture times, and `jitter_ms`, the 99th percentile
    of how far an interval is from the median. frames: control ticks of all episodes. cut_off: episodes that
    were interrupted; interrupted: folders that are being written or could not be recovered. damaged: episodes
    that cannot be opened. dropped: rows lost while recording, by stream. storage: how each camera is kept.
    notes: each note that an import made, with the numbers of its episodes."""
    intervals: dict[str, list[np.ndarray]] = {}
    for episode in store.episodes:
        for key in episode.streams:
            intervals.setdefault(key, []).append(np.diff(episode.times_ns(key)[0]))
    rates = {}
    for key, parts in intervals.items():
        gaps = np.concatenate(parts).astype(np.float64)
        if len(gaps) and (median := float(np.median(gaps))) > 0:
            jitter = float(np.percentile(np.abs(gaps - median), 99)) * 1e-6
            rates[key] = {"hz": round(1e9 / median, 3), "jitter_ms": round(jitter, 3)}
    ticks = sum(e.length for e in store.episodes)
    drops: dict[str, int] = {}
    for episode in store.episodes:
        for key, rows in (episode.attrs.get("dropped") or {}).items():
            drops[key] = drops.get(key, 0) + int(rows)
    notes: dict[str, list[int]] = {}
    for episode in store.episodes:
        for note in episode.attrs.get("notes") or ():
            notes.setdefault(str(note), []).append(episode.index)
    outcomes = [e.attrs.get("success") for e in store.episodes]
    return {
        "path": str(store.path),
        "robot": store.robot,
        "fps": store.control_hz,
        "episodes": len(store),
        "frames": ticks,
        "seconds": round(ticks / store.control_hz, 3),
        "rates": rates,
        "tasks": sorted({e.task for e in store.episodes}),
        "agents": sorted({str(e.attrs.get("agent", "")) for e in store.episodes}),
        "successes": sum(s is True for s in outcomes),
        "failures": sum(s is False for s in outcomes),
        "features": features_to_json(store.features),
        "size_bytes": inside.size_of(store.path, store.path),
        "interrupted": [p.name for p in store.interrupted_folders()],
        "cut_off": [e.index for e in store.episodes if e.interrupted],
        "damaged": [e.index for e in store.episodes if e.damage],
        "dropped": drops,
        "trash": len(trash(store)),
        "storage": {
            k: {"codec": "lossless", **store.storage.get(k, {})} for k in store.features if is_frames(k)
        },
        "provenance": store.provenance,
        "notes": notes,
    }
