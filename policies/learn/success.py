"""A detector of success (`policies.detector`), learned from the outcomes of episodes: what the end of those
that succeeded looks like, beside everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...datasets.episode import StoreError
from ...datasets.features import ACTION, Features, features_to_json
from ...datasets.reading.windows import Windows, WindowSpec
from ...datasets.split import split_by_episode
from ...datasets.store import EpisodeStore
from ..detector import HASHED, Detector, seen
from ..hashed import save_hashed
from ..train.data import policy_features

TAIL_S = 0.4  # the end of an episode that succeeded: the task is done
DOUBT_S = 1.0  # before that it may be done or not: nothing is learned from it
WIDTH, BATCH = 64, 128
HELD_OUT = 0.2


@dataclass(frozen=True)
class _Ticks:
    """Of episodes end to end. seen `(N, S)` float32; done `(N,)` 1 done, 0 not, -1 unknown; episode
    `(N,)`."""

    seen: np.ndarray
    done: np.ndarray
    episode: np.ndarray


def learn_success(
    data: str | Path,
    out: str | Path,
    keys: Sequence[str] | None = None,
    steps: int = 1500,
    seed: int = 0,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Learn a detector from the dataset `data` and write it to the folder `out`; returns what it measured on
    a fifth of the episodes, which it was not fitted to (JSON types).

    keys: the observations that it sees; None: all. Episodes without an outcome, and those that broke off, are
    left out. StoreError in one sentence: there are too few of either outcome."""
    store = EpisodeStore.open(data)
    features = {k: f for k, f in policy_features(store.features, keys).items() if k != ACTION}
    labelled = [e for e in store.episodes if e.attrs.get("success") is not None and not e.interrupted]
    succeeded = [e for e in labelled if e.attrs["success"]]
    if len(succeeded) < 5:
        raise StoreError(
            f"{data} has {len(succeeded)} episodes that are marked as a success, and it takes 5 at least: "
            "mark some with s while recording, or with `ulna data relabel`"
        )
    parts = [list[int](), list[int]()]
    # each outcome by itself: what was held out of few episodes could else be all failures
    for group in (succeeded, [e for e in labelled if not e.attrs["success"]]):
        shares = [1 - HELD_OUT, HELD_OUT] if len(group) > 1 else [1.0]
        for part, mine in zip(parts, split_by_episode(group, shares, seed=0) if group else [], strict=False):
            part += [group[j].index for j in mine]
    fitted, held_out = (_ticks(store, features, part) for part in parts)
    mean, scale = fitted.seen.mean(0), np.maximum(fitted.seen.std(0), 1e-3)
    net = _fit(fitted, mean, scale, steps, seed, progress)
    weights = {"mean": torch.from_numpy(mean), "scale": torch.from_numpy(scale.astype(np.float32))}
    for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
        weights |= {f"weight{i}": layer.weight, f"bias{i}": layer.bias}
    with torch.no_grad():
        said = net(_normal(held_out.seen, mean, scale))[:, 0].numpy() > 0
    measured = _measure(held_out, said, store, parts[1])
    documents = {
        "detector.json": {"kind": "success", "data": str(data), "steps": steps, "measured": measured},
        "features.json": features_to_json(features),
    }
    content_hash = save_hashed(Path(out), weights, documents, HASHED)
    Detector(out)  # it opens
    return {"out": str(out), "checkpoint": content_hash, "sees": list(features), **measured}


def _ticks(store: EpisodeStore, features: Features, episodes: list[int]) -> _Ticks:
    windows = Windows(store, WindowSpec(1, 1, 0, tuple(features)), episodes, cache="none")
    inputs = []
    for i in range(0, len(windows), BATCH):
        batch = windows.batch(np.arange(i, min(i + BATCH, len(windows))))
        rows = len(batch["index"])
        inputs += [seen({k: batch[k][j, 0] for k in features}, features) for j in range(rows)]
    length = np.array([e.length for e in windows.episodes])[windows.episode]
    succeeded = np.array([e.attrs["success"] is True for e in windows.episodes])[windows.episode]
    left_s = (length - 1 - windows.tick) / store.control_hz
    done = np.where(succeeded & (left_s < DOUBT_S + TAIL_S), -1, 0)
    done[succeeded & (left_s <= TAIL_S)] = 1
    return _Ticks(np.stack(inputs), done, windows.episode)


def _normal(inputs: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(((inputs - mean) / scale).astype(np.float32))


def _fit(
    ticks: _Ticks, mean: np.ndarray, scale: np.ndarray, steps: int, seed: int, progress: Callable[[int], None]
) -> nn.Sequential:
    """Batches hold as many ticks that are done as are not. Its inputs are shaken a little: there are few."""
    x, rng = _normal(ticks.seen, mean, scale), np.random.default_rng(seed)
    which = [np.flatnonzero(ticks.done == label) for label in (0, 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
        labels = torch.tensor([0.0, 1.0]).repeat_interleave(BATCH // 2)
        for step in range(steps):
            rows = np.concatenate([rng.choice(w, BATCH // 2) for w in which])
            inputs = x[rows] + 0.1 * torch.randn(BATCH, x.shape[1])
            loss = nn.functional.binary_cross_entropy_with_logits(net(inputs)[:, 0], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(step + 1)
    return net


def _measure(ticks: _Ticks, said: np.ndarray, store: EpisodeStore, episodes: list[int]) -> dict[str, Any]:
    """Of whole episodes: a success counts as found where it is said at its end, as too early where it is said
    while it is surely not done; a failure as taken for done where it is said at all."""
    found = early = wrong = successes = 0
    for i, number in enumerate(episodes):
        mine = ticks.episode == i
        if store.episodes[number].attrs["success"] is True:
            successes += 1
            found += bool(said[mine & (ticks.done == 1)].any())
            early += bool(said[mine & (ticks.done == 0)].any())
        else:
            wrong += bool(said[mine].any())
    return {
        "held_out_successes": successes,
        "found": found,
        "too_early": early,
        "held_out_failures": len(episodes) - successes,
        "taken_for_done": wrong,
    }
