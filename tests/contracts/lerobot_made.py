"""A small LeRobot v3.0 dataset, of a store that was recorded here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ulna.datasets.features import ACTION, IMAGES, REQUESTED, Feature
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.formats.lerobot_export import export_lerobot
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

from .data import FEATURES, frame

FRONT = IMAGES + "front"
LENGTHS = (50, 14, 24)
MS = 1_000_000


def picture(t: int) -> np.ndarray:
    """Smooth, as a camera's are, `(64, 96, 3)`; the red channel tells the frame."""
    y, x = np.mgrid[:64, :96]
    return np.stack([np.full_like(x, 4 * t + 20), 2 * y, 128 + 40 * np.sin((x + y) / 20)], -1).astype(
        np.uint8
    )


def make_store(path: Path, lengths: tuple[int, ...] = LENGTHS) -> EpisodeStore:
    """20 Hz with jitter, and a request that differs from what was sent."""
    store = EpisodeStore.create(path, {**FEATURES, FRONT: Feature((64, 96, 3), "uint8")}, 20.0, "arm")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for i, length in enumerate(lengths):
            writer.start({"task": f"fold {i % 2}", "seed": i, "agent": "human"})
            for t in range(length):
                time_ns = 10**12 + t * 50 * MS + int(rng.integers(0, 5 * MS))
                row = {**frame(rng, FEATURES, t), FRONT: picture(t)}
                times = {k: (time_ns - 10 * MS, time_ns - 8 * MS) for k in row}
                times[ACTION] = times[REQUESTED] = (time_ns, time_ns + MS)
                row[REQUESTED] = row[ACTION] + np.float32(0.5 if t == 3 else 0.0)
                writer.tick(row, times, {ACTION: INTERVENTION} if t == 3 else {})
            writer.end({"success": i != 1})
    return store


def make_lerobot(folder: Path) -> Path:
    """The store of `make_store` as a new LeRobot folder below `folder`."""
    return export_lerobot(make_store(folder / "store"), folder / "lerobot").out
