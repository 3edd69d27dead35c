"""Open-loop evaluation: a policy's action chunks against what was recorded next, on episodes it has not seen.

Says whether a policy predicts demonstrations better than two policies that learned nothing; it does not say
that the policy would succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import ACTION, features_from_json, require_same
from ..datasets.reading.windows import Windows, WindowSpec
from ..datasets.store import EpisodeStore
from .agent import PolicySource
from .statistics import bootstrap_mean

BLOCK_S = 1.0  # neighbouring frames are nearly the same: resample whole seconds
BASELINES = ("hold", "extrapolate")


def open_loop(
    source: PolicySource,
    data: str | Path,
    episodes: Sequence[int],
    every: int = 5,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Mean absolute action error of a policy and of two baselines on every `every`-th frame; JSON types only.

    Baselines: `hold` repeats the last command before now; `extrapolate` goes on in a straight line through
    the last two. Actions beyond the end of an episode do not count, nor do frames without two commands before
    them. Differences to a baseline are paired by frame and joint, relative to each joint's standard deviation
    in the dataset (so that radians and metres may be averaged), with a block bootstrap over seconds."""
    store = EpisodeStore.open(data)
    metadata = source.metadata
    wanted = features_from_json(metadata["features"])
    require_same(store.features, wanted, f"the dataset {data}", "the policy")
    keys = tuple(k for k in wanted if k != ACTION)
    ahead = int(metadata["horizon"])
    n_past = int(metadata.get("n_past_actions", 0))
    back = max(2, n_past)  # commands before now: the baselines need two
    spec = WindowSpec(int(metadata["n_obs_steps"]), ahead + back, n_past_actions=back, keys=keys)
    windows = Windows(store, spec, list(episodes))
    if said := windows.left_out_sentence():
        raise ValueError(f"the errors would not be those of whole episodes: {said}")
    first = np.arange(len(windows)) - windows.tick
    rows = np.flatnonzero((windows.tick >= back) & (windows.tick % every == 0))
    if not len(rows):
        raise ValueError("these episodes are too short to evaluate: they have fewer than three frames")

    errors: dict[str, list[np.ndarray]] = {"policy": [], **{b: [] for b in BASELINES}}
    masks, nfe = [], 0
    trace = _Trace(store.episodes[episodes[0]].read(ACTION), ahead)
    for done, row in enumerate(rows):
        window = windows.batch(np.array([row]))
        action, mask = window[ACTION][0], window["mask"][0, back:]
        before, last, target = action[back - 2], action[back - 1], action[back:]
        past = {"action.past": action[back - n_past : back]} if n_past else {}
        reply = source.infer({**{k: window[k][0] for k in keys}, **past}, seed=int(row))
        nfe = int(reply.get("nfe", 0))
        steps = np.arange(1, ahead + 1)[:, None]
        predicted = {
            "policy": np.asarray(reply["actions"])[:ahead],
            "hold": np.repeat(last[None], ahead, 0),
            "extrapolate": last + steps * (last - before),
        }
        for name, chunk in predicted.items():
            errors[name].append(np.abs(chunk - target))
        masks.append(mask)
        if first[row] == first[0]:
            trace.offer(int(row - first[row]), predicted["policy"][mask])
        report(done + 1, len(rows))

    mask_NH = np.stack(masks)
    error_NHA = {name: np.stack(e) for name, e in errors.items()}
    # of the whole dataset: a joint that only rests in these episodes must not blow up the ratio
    all_actions = np.concatenate([e.read(ACTION) for e in store.episodes])
    spread = np.maximum(all_actions.std(0), 1e-6)
    moving = all_actions.std(0) >= 1e-4  # a joint that nobody moved has no error worth a ratio
    counted = mask_NH[..., None]

    def mean_over(error: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return (error * counted).sum(axes) / np.broadcast_to(counted, error.shape).sum(axes).clip(min=1)

    blocks = _blocks(rows, first, store.control_hz)
    relative = {n: (e / spread)[..., moving] for n, e in error_NHA.items()}
    per_frame = {n: (e.mean(-1) * mask_NH).sum(1) / mask_NH.sum(1) for n, e in relative.items()}
    comparisons = {}
    for baseline in BASELINES:
        difference = per_frame["policy"] - per_frame[baseline]
        mean, low, high = bootstrap_mean([difference[b] for b in blocks])
        comparisons[baseline] = {"difference": mean, "bootstrap_95": [low, high], "better": high < 0}
    intervals = {n: bootstrap_mean([e[b] for b in blocks]) for n, e in per_frame.items()}

    def interval_per_joint(baseline: str) -> list[list[float]]:
        difference_NHA = error_NHA["policy"] - error_NHA[baseline]
        difference_NA = (difference_NHA * counted).sum(1) / mask_NH.sum(1)[:, None]
        return [list(bootstrap_mean([d[b] for b in blocks])) for d in difference_NA.T]

    def interval_per_step(error: np.ndarray) -> list[list[float]]:
        """[low, high] for every step; a step counts the frames that reach so far."""
        step_NH = error.mean(-1)
        reach = [[b[mask_NH[b, h]] for b in blocks] for h in range(ahead)]
        return [
            list(bootstrap_mean([step_NH[b, h] for b in groups if len(b)])[1:])
            for h, groups in enumerate(reach)
        ]

    feature = store.features[ACTION]
    return {
        "kind": "open-loop",
        "data": str(data),
        "recipe": metadata.get("recipe", ""),
        "checkpoint": metadata.get("checkpoint", ""),
        "episodes": list(episodes),
        "frames": len(rows),
        "every": every,
        "horizon": ahead,
        "fps": store.control_hz,
        "nfe_per_decision": nfe,
        "block_s": BLOCK_S,
        "joints": list(feature.names) or [f"joint {i}" for i in range(feature.shape[0])],
        "units": list(feature.units) or [""] * feature.shape[0],
        "relative_error": {n: {"mean": m, "bootstrap_95": [lo, hi]} for n, (m, lo, hi) in intervals.items()},
        "comparisons": comparisons,
        "per_joint": {n: mean_over(e, (0, 1)).tolist() for n, e in error_NHA.items()},
        "per_joint_difference": {b: interval_per_joint(b) for b in BASELINES},  # [mean, low, high] a joint
        "per_step": {n: mean_over(e, (0,)).mean(-1).tolist() for n, e in relative.items()},
        "per_step_95": {n: interval_per_step(e) for n, e in relative.items()},
        "per_joint_and_step": {n: mean_over(e, (0,)).tolist() for n, e in error_NHA.items()},
        "trace": {"episode": int(episodes[0]), **trace.to_json()},
    }


class _Trace:
    """What a plot needs of one episode: its recorded actions, and the policy's chunks, one where the last one
    ends."""

    def __init__(self, recorded_TA: np.ndarray, ahead: int) -> None:
        self.recorded, self.ahead = recorded_TA, ahead
        self.chunks: list[dict[str, Any]] = []

    def offer(self, at: int, chunk_HA: np.ndarray) -> None:
        if not self.chunks or at >= self.chunks[-1]["at"] + self.ahead:
            self.chunks.append({"at": at, "actions": chunk_HA.round(5).tolist()})

    def to_json(self) -> dict[str, Any]:
        return {"recorded": self.recorded.round(5).tolist(), "chunks": self.chunks}


def _blocks(rows: np.ndarray, first: np.ndarray, fps: float) -> list[np.ndarray]:
    """Positions in `rows` that belong to the same episode and the same second of it."""
    second = ((rows - first[rows]) / (fps * BLOCK_S)).astype(int)
    keys = list(zip(first[rows].tolist(), second.tolist(), strict=True))
    return [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
