"""Small datasets for tests, written by the real writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore

FEATURES: Features = {
    STATE: Feature((3,), "float32", ("a", "b", "grip"), ("rad", "rad", "rad")),
    ENVIRONMENT: Feature((2,), "float32", ("cube.x", "cube.y"), ("m", "m")),
    ACTION: Feature((3,), "float32", ("a", "b", "grip"), ("rad", "rad", "rad")),
}
CAMERA = IMAGES + "front"
WITH_IMAGE: Features = {**FEATURES, CAMERA: Feature((24, 32, 3), "uint8")}


def frame(rng: np.random.Generator, features: Features, t: int) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    for key, f in features.items():
        if f.dtype == "uint8":
            values[key] = rng.integers(0, 256, f.shape, dtype=np.uint8)
        else:
            values[key] = (np.sin(0.1 * t + np.arange(f.shape[0])) + 0.01 * rng.normal(size=f.shape)).astype(
                f.dtype
            )
    return values


def write_store(
    path: Path,
    lengths: tuple[int, ...] = (20, 13),
    features: Features = FEATURES,
    meta: Mapping[str, object] | None = None,
) -> EpisodeStore:
    store = EpisodeStore.create(path, features, 20.0, "test robot")
    writer = EpisodeWriter(store)
    rng = np.random.default_rng(0)
    for i, length in enumerate(lengths):
        writer.start({"task": f"task {i % 2}", "seed": i, "agent": "test", **(meta or {})})
        for t in range(length):
            values = frame(rng, features, t)
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
        writer.end({"success": i % 2 == 0})
    return store
