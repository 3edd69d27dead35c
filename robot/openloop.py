"""Open-loop evaluation: a policy's action chunks beside what was recorded next, on episodes it was not
trained on.

Says whether a policy predicts demonstrations better than two baselines that learned nothing; it does not say
that the policy would succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..datasets.features import ACTION, require_same
from ..datasets.opened import open_dataset
from ..datasets.reading.windows import Windows, WindowSpec
from ..policies.request import Request, ServedPolicy
from .report.evaluation import ChunksTrace, Comparison, Estimate, OpenLoop, PredictedChunk
from .statistics import bootstrap_mean

BLOCK_S = 1.0  # neighbouring ticks are nearly the same: resample whole seconds
BASELINES = ("hold", "extrapolate")


def open_loop(
    policy: ServedPolicy,
    data: str | Path,
    episodes: Sequence[int],
    every: int = 5,
    progress: Callable[[int, int], None] = lambda finished, total: None,
) -> OpenLoop:
    """Mean absolute action error of a policy and of two baselines at every `every`-th tick of `episodes`.

    Baselines: `hold` repeats the last command before now; `extrapolate` goes on in a straight line through
    the last two. Actions beyond the end of an episode do not count, nor do ticks without two commands before
    them. Differences to a baseline are paired by tick and joint, relative to each joint's standard deviation
    in the dataset (so that radians and metres may be averaged), with a block bootstrap over seconds.

    FeatureMismatch or ValueError where policy and data do not fit each other, or the episodes are too short.
    progress: called with how many ticks were predicted from, and of how many."""
    store = open_dataset(data)
    metadata = policy.metadata
    if not metadata.features:
        raise ValueError("the server does not say what its policy needs: is it an Ulna server?")
    require_same(store.features, metadata.features, f"the dataset {data}", "the policy")
    keys = tuple(k for k in metadata.features if k != ACTION)
    ahead, n_past = metadata.n_actions_ahead, metadata.n_past_actions
    back = max(2, n_past)  # commands before now: the baselines need two
    spec = WindowSpec(metadata.n_obs_steps, ahead + back, n_past_actions=back, keys=keys)
    windows = Windows(store, spec, list(episodes))
    if omission := windows.left_out_sentence():
        raise ValueError(f"the errors would not be those of whole episodes: {omission}")
    first = np.arange(len(windows)) - windows.tick
    rows = np.flatnonzero((windows.tick >= back) & (windows.tick % every == 0))
    if not len(rows):
        raise ValueError("these episodes are too short to evaluate: they have fewer than three ticks")

    errors: dict[str, list[np.ndarray]] = {"policy": [], **{b: [] for b in BASELINES}}
    masks, nfe = [], 0
    chunks: list[PredictedChunk] = []
    for i, row in enumerate(rows):
        window = windows.batch(np.array([row]))
        action, mask = window[ACTION][0], window["mask"][0, back:]
        before, last, target = action[back - 2], action[back - 1], action[back:]
        past = action[back - n_past : back] if metadata.needs_past else None
        reply = policy.infer(Request({k: window[k][0] for k in keys}, int(row), past).to_wire())
        nfe = int(reply.get("nfe", 0))
        steps = np.arange(1, ahead + 1)[:, None]
        predictions = {
            "policy": np.asarray(reply["actions"])[:ahead],
            "hold": np.repeat(last[None], ahead, 0),
            "extrapolate": last + steps * (last - before),
        }
        for name, chunk in predictions.items():
            errors[name].append(np.abs(chunk - target))
        masks.append(mask)
        at = int(row - first[row])
        # of the first episode, for a plot: one chunk where the last one ends
        if first[row] == first[0] and (not chunks or at >= chunks[-1].at + ahead):
            chunks.append(PredictedChunk(at, predictions["policy"][mask].round(5).tolist()))
        progress(i + 1, len(rows))

    mask_NH = np.stack(masks)
    if not mask_NH.any(0).all():
        raise ValueError(
            f"these episodes are too short to evaluate: none goes on for the {ahead} ticks that the policy "
            "predicts"
        )
    error_NHA = {name: np.stack(e) for name, e in errors.items()}
    # of the whole dataset: a joint that only rests in these episodes must not blow up the ratio
    all_actions = np.concatenate([e.read(ACTION) for e in store.episodes])
    spread = np.maximum(all_actions.std(0), 1e-6)
    moving = all_actions.std(0) >= 1e-4  # a joint that nobody moved has no error worth a ratio
    mask_NH1 = mask_NH[..., None]

    def mean_over(error: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return (error * mask_NH1).sum(axes) / np.broadcast_to(mask_NH1, error.shape).sum(axes).clip(min=1)

    blocks = _blocks(rows, first, store.control_hz)
    relative = {n: (e / spread)[..., moving] for n, e in error_NHA.items()}
    per_tick = {n: (e.mean(-1) * mask_NH).sum(1) / mask_NH.sum(1) for n, e in relative.items()}

    def comparison(baseline: str) -> Comparison:
        difference = per_tick["policy"] - per_tick[baseline]
        mean, low, high = bootstrap_mean([difference[b] for b in blocks])
        return Comparison(mean, [low, high], better=high < 0)

    def estimate(values: np.ndarray) -> Estimate:
        mean, low, high = bootstrap_mean([values[b] for b in blocks])
        return Estimate(mean, [low, high])

    def difference_per_joint(baseline: str) -> list[list[float]]:
        difference_NHA = error_NHA["policy"] - error_NHA[baseline]
        difference_NA = (difference_NHA * mask_NH1).sum(1) / mask_NH.sum(1)[:, None]
        return [list(bootstrap_mean([d[b] for b in blocks])) for d in difference_NA.T]

    def interval_per_step(error: np.ndarray) -> list[list[float]]:
        """[low, high] for every step; a step counts the ticks that reach so far."""
        step_NH = error.mean(-1)
        reach = [[b[mask_NH[b, h]] for b in blocks] for h in range(ahead)]
        return [
            list(bootstrap_mean([step_NH[b, h] for b in groups if len(b)])[1:])
            for h, groups in enumerate(reach)
        ]

    feature = store.features[ACTION]
    recording = store.episodes[episodes[0]].read(ACTION)
    return OpenLoop(
        data=str(data),
        recipe=metadata.recipe,
        checkpoint=metadata.checkpoint,
        episodes=list(episodes),
        n_ticks=len(rows),
        every=every,
        n_actions_ahead=ahead,
        control_hz=store.control_hz,
        nfe_per_decision=nfe,
        block_s=BLOCK_S,
        joints=list(feature.names) or [f"joint {i}" for i in range(feature.shape[0])],
        units=list(feature.units) or [""] * feature.shape[0],
        relative_error={n: estimate(e) for n, e in per_tick.items()},
        comparisons={b: comparison(b) for b in BASELINES},
        per_joint={n: mean_over(e, (0, 1)).tolist() for n, e in error_NHA.items()},
        per_joint_difference={b: difference_per_joint(b) for b in BASELINES},
        per_step={n: mean_over(e, (0,)).mean(-1).tolist() for n, e in relative.items()},
        per_step_95={n: interval_per_step(e) for n, e in relative.items()},
        per_joint_and_step={n: mean_over(e, (0,)).tolist() for n, e in error_NHA.items()},
        trace=ChunksTrace(int(episodes[0]), recording.round(5).tolist(), chunks),
    )


def _blocks(rows: np.ndarray, first: np.ndarray, control_hz: float) -> list[np.ndarray]:
    """Positions in `rows` that belong to the same episode and the same second of it."""
    second = ((rows - first[rows]) / (control_hz * BLOCK_S)).astype(int)
    keys = list(zip(first[rows].tolist(), second.tolist(), strict=True))
    return [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
