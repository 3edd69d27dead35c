"""A guard (`policies.guard`) from recorded episodes: which pairs of state and action they hold, and how near
to those another one must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.episode import StoreError
from ...datasets.features import ACTION, features_to_json, is_frames
from ...datasets.reading.windows import Windows, WindowSpec
from ...datasets.split import split_by_episode
from ...datasets.store import EpisodeStore
from ..guard import HASHED, Guard, Pairs, joints_of_action, raw
from ..hashed import save_hashed
from ..train.data import policy_features
from ..train.error import TrainingError

HELD_OUT = 0.2
FEWEST = 5  # episodes
MEASURED = 5_000  # held-out pairs
TREMBLE = 4.0  # times its noise that a scale is at least: what hardly moves does not count by its noise
SMALLEST = 1e-3  # of a scale, where nothing moves at all


def learn_support(
    data: str | Path,
    out: str | Path,
    keys: Sequence[str] | None = None,
    quantile: float = 0.05,
    neighbours: int = 4,
    most: int = 20_000,
) -> dict[str, Any]:
    """Learn a guard from the dataset `data` and write it to the folder `out`; returns what it measured (JSON
    types).

    keys: the observations that it sees, vectors all; None: every vector. quantile: share of the pairs of a
    fifth of the episodes, which it does not hold, that lies outside. neighbours: how many pairs must be near.
    most: pairs that it holds; of more, evenly spaced ones. Episodes that broke off or failed are left out.
    StoreError or TrainingError in one sentence."""
    if not 0 < quantile < 1 or neighbours < 1 or most < 100:
        raise TrainingError(
            "a guard's quantile lies between 0 and 1; it takes 1 neighbour and 100 pairs at least"
        )
    store = EpisodeStore.open(data)
    features = policy_features(store.features, keys)
    if keys is not None and (pictures := [k for k in features if is_frames(k)]):
        raise TrainingError(
            f"a guard sees vectors, and {pictures[0]} is a picture: leave it out of --observe"
        )
    features = {k: f for k, f in features.items() if not is_frames(k)}
    if len(features) < 2:
        raise TrainingError(f"a guard sees vectors, and {data} has none beside the action")
    usable = [e for e in store.episodes if not e.interrupted and e.attrs.get("success") is not False]
    if len(usable) < FEWEST:
        raise StoreError(
            f"{data} has {len(usable)} episodes that neither failed nor broke off, and a guard takes {FEWEST}"
        )
    fitted, held_out = (
        [usable[j].index for j in part] for part in split_by_episode(usable, [1 - HELD_OUT, HELD_OUT], seed=0)
    )
    seen = tuple(k for k in features if k != ACTION)
    joints = joints_of_action(features)
    rows, first = _rows(store, seen, joints, fitted)
    begin = np.median(rows[first], axis=0)[: -features[ACTION].shape[0]]
    scale = _scale(rows)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(np.int64))]
    pairs = Pairs(features, rows, scale)
    others, _ = _rows(store, seen, joints, held_out)
    few = others[np.unique(np.linspace(0, len(others) - 1, MEASURED).round().astype(np.int64))]
    distances = pairs.distance(pairs.scaled(few), neighbours)
    radius = float(np.quantile(distances, 1 - quantile))
    if radius <= 0:
        raise StoreError(f"the held-out episodes of {data} are copies of the others: nothing can be measured")
    measured = {
        "pairs": len(rows),
        "episodes": len(fitted),
        "held_out_episodes": len(held_out),
        "held_out_pairs": len(few),
        "radius": radius,
        "median": float(np.median(distances)),
    }
    arrays = {"pairs": rows, "scale": scale, "begin": begin}
    documents = {
        "guard.json": {
            "data": str(data),
            "quantile": quantile,
            "neighbours": neighbours,
            "radius": radius,
            "control_hz": store.control_hz,
            "measured": measured,
        },
        "features.json": features_to_json(features),
    }
    weights = {k: torch.from_numpy(v.astype(np.float32)) for k, v in arrays.items()}
    content_hash = save_hashed(Path(out), weights, documents, HASHED)
    Guard(out)  # it opens
    return {"out": str(out), "checkpoint": content_hash, "sees": list(seen), **measured}


def _scale(rows: np.ndarray) -> np.ndarray:
    """`(S + A,)`, what counts as 1: the deviation of each element, and no less than four times its tremble.
    That is what a smooth motion does not do, by the differences of second order of ticks in a row (of white
    noise six times its variance); the median leaves corners and the seams of episodes out."""
    second = np.abs(np.diff(rows, n=2, axis=0))
    tremble = np.median(second, axis=0) / 0.6745 / np.sqrt(6)
    return np.maximum(np.maximum(rows.std(0), TREMBLE * tremble), SMALLEST)


def _rows(
    store: EpisodeStore, keys: tuple[str, ...], joints: list[int], episodes: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of every tick, `(N, S + A)` in their own units, and which are the first of their episode."""
    windows = Windows(store, WindowSpec(1, 1, 0, keys), episodes, cache="none")
    batch = windows.batch(np.arange(len(windows)))
    rows = raw({k: batch[k][:, 0] for k in keys}, batch[ACTION][:, 0], keys, joints)
    real = batch["mask"][:, 0]
    return rows[real], (windows.tick == 0)[real]
