"""A detector: whether a task is done, by what is observed now. A checkpoint of its own kind, small enough for
the robot's computer: it runs in numpy.

model.safetensors   the layers of a perceptron
detector.json       its kind, and how it was measured on episodes that it was not fitted to
features.json       what it sees
hash.json           SHA-256 of the first three

It sees vectors as they are, and each picture as a thumbnail of `THUMB`² pixels; `policies.learn.success`
learns it from the outcomes of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import Features, features_from_json, is_image, require_same
from .hashed import WEIGHTS, CheckpointError, read_json, verify_hashed

HASHED = (WEIGHTS, "detector.json", "features.json")
THUMB = 12


class Detector:
    """`is_done(values)`, of observations by key. features: of the robot; FeatureMismatch, both sides shown,
    where it lacks what the detector sees. CheckpointError in one sentence: the folder holds none."""

    def __init__(self, folder: str | Path, features: Features | None = None) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        self.content_hash = verify_hashed(folder, "detector", HASHED)
        try:
            self.measured = dict(read_json(folder / "detector.json")["measured"])
            self.features = features_from_json(read_json(folder / "features.json"))
            weights = load_file(folder / WEIGHTS)
            self._mean, self._scale = weights["mean"], weights["scale"]
            depth = sum(name.startswith("weight") for name in weights)
            self._layers = [(weights[f"weight{i}"], weights[f"bias{i}"]) for i in range(depth)]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds a detector that this version cannot load: {error}"
            ) from error
        if features is not None:
            vectors = {k: f for k, f in self.features.items() if not is_image(k)}
            require_same(features, vectors, "the robot", "the detector")
            for key in self.features.keys() - vectors.keys():
                if key not in features:
                    require_same(features, {key: self.features[key]}, "the robot", "the detector")

    def probability(self, values: Mapping[str, Any]) -> float:
        """That the task is done."""
        x = (seen(values, self.features) - self._mean) / self._scale
        for i, (weight, bias) in enumerate(self._layers):
            x = x @ weight.T + bias
            x = np.maximum(x, 0) if i + 1 < len(self._layers) else x
        return float(1 / (1 + np.exp(-np.clip(x[0], -30, 30))))

    def is_done(self, values: Mapping[str, Any]) -> bool:
        return self.probability(values) > 0.5


def seen(values: Mapping[str, Any], features: Features) -> np.ndarray:
    """The input `(S,)` float32 of one observation."""
    import cv2

    parts = []
    for key in features:
        value = np.asarray(values[key])
        if is_image(key):
            value = cv2.resize(value, (THUMB, THUMB), interpolation=cv2.INTER_AREA) / 255
        parts.append(value.astype(np.float32).reshape(-1))
    return np.concatenate(parts)
