"""A progress critic (`policies.progress`) learned from episodes whose steps are labelled (`datasets.steps`).

It learns through clips in a row. Half of the time it is told the labels as its last answer, half of the time
its own, so that it knows what to make of its mistakes. A share of the episodes is told another task of the
data: what of that plan the episode did counts as done, by words and how often, the rest as pending (R²VLM's
distractor instructions).

Legend: B batch, C clips in a row, T frames of a clip, N steps of a plan."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...datasets.episode import StoreError
from ...datasets.features import ACTION, state_keys
from ...datasets.opened import open_dataset
from ...datasets.reading.windows import Windows, WindowSpec
from ...datasets.split import split_by_episode
from ...datasets.stats import vector_stats
from ...datasets.steps import marks, steps_of
from ...datasets.store import EpisodeStore
from ..adapters.weights import begin
from ..conditions.instruction import Instruction
from ..conditions.words import Words
from ..contexts.read_tokens import ReadTokens
from ..progress import ProgressCritic, ProgressSpec, clip_ticks, load_progress, progress_of, save_progress
from ..recipe import Recipe
from ..train.data import policy_features

BATCH, CLIPS = 16, 8  # episodes of a batch, and clips in a row of each
DISTRACTED = 0.5  # share of the batch that is told another task
HELD_OUT = 0.2
FEWEST = 5  # episodes with a step that is done


@dataclass(frozen=True)
class Labelled:
    """Episodes of a store with their labels."""

    store: EpisodeStore
    numbers: list[int]
    tasks: list[str]
    plans: list[tuple[str, ...]]
    done: list[np.ndarray]
    """Of each episode `(length, N)` bool."""

    @staticmethod
    def of(store: EpisodeStore, numbers: Sequence[int]) -> Labelled:
        episodes = store.choose(numbers)
        steps = [steps_of(e) for e in episodes]
        plans = [tuple(s.words for s in some) for some in steps]
        done = [marks(some, e) for some, e in zip(steps, episodes, strict=True)]
        return Labelled(store, list(numbers), [e.task for e in episodes], plans, done)

    def told(self, tasks: Sequence[str], plans: Sequence[tuple[str, ...]]) -> Labelled:
        """The same episodes under other instructions."""
        done = [as_told(d, own, p) for d, own, p in zip(self.done, self.plans, plans, strict=True)]
        return replace(self, tasks=list(tasks), plans=list(plans), done=done)

    def common_plans(self) -> dict[str, tuple[str, ...]]:
        """The plan that most episodes of each task have."""
        counts: dict[str, Counter[tuple[str, ...]]] = {}
        for task, plan in zip(self.tasks, self.plans, strict=True):
            counts.setdefault(task, Counter())[plan] += 1
        return {task: c.most_common(1)[0][0] for task, c in counts.items()}


def as_told(done_TN: np.ndarray, own: Sequence[str], plan: Sequence[str]) -> np.ndarray:
    """The marks of an episode's own steps as those of another plan: its second `visit red` is the episode's
    second."""
    columns: dict[tuple[str, int], int] = {}
    count: Counter[str] = Counter()
    for i, words in enumerate(own):
        columns[words, count[words]] = i
        count[words] += 1
    out, count = np.zeros((len(done_TN), len(plan)), bool), Counter()
    for i, words in enumerate(plan):
        if (column := columns.get((words, count[words]))) is not None:
            out[:, i] = done_TN[:, column]
        count[words] += 1
    return out


def spec_like(recipe: Recipe, weights: str = "", tokenizer: str = "") -> ProgressSpec:
    """A critic that sees and reads as the policies of `recipe` do. weights, tokenizer: published ones, for
    recipes with a vision-language model; ValueError for others."""
    encoder: Any = recipe.encoder
    if not hasattr(encoder, "language"):
        if weights or tokenizer:
            raise ValueError(f"{recipe.name} has no vision-language model for published weights")
        words = next((c for c in recipe.conditions if isinstance(c, Words)), Words())
        return ProgressSpec(encoder, words)
    language = replace(encoder.language, gives="tokens")
    return ProgressSpec(
        replace(encoder, language=language, weights=weights),
        Instruction(tokenizer, most=256),
        ReadTokens(layers=0, heads=1, dropout=0.0),
        "answer",
    )


def learn_progress(
    data: str | Path,
    out: str | Path,
    spec: ProgressSpec | None = None,
    keys: Sequence[str] | None = None,
    steps: int = 2000,
    seed: int = 0,
    device: str = "cpu",
    batch: int = BATCH,
    rate: float | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Learn a critic from the dataset `data` and write it to the folder `out`; returns what it measured on a
    fifth of the episodes, which it was not fitted to (JSON types).

    keys: the observations that it sees; None: all. rate: of learning; None: 3e-3 for small networks, 5e-4 for
    a vision-language model. Published weights of the spec's encoder stay as they are.
    Episodes without steps and outcome, and those that broke off, are left out. StoreError in one sentence:
    there are too few."""
    store = open_dataset(data)
    spec = spec or ProgressSpec()
    rate = rate or (5e-4 if hasattr(spec.encoder, "language") else 3e-3)
    features = {k: f for k, f in policy_features(store.features, keys).items() if k != ACTION}
    usable = [
        e
        for e in store.episodes
        if not e.interrupted and e.length and (e.attrs.get("steps") or e.attrs.get("success") is not None)
    ]
    n_done = sum(any(s.changes_ns for s in steps_of(e)) for e in usable)
    if n_done < FEWEST:
        raise StoreError(
            f"{data} has {n_done} episodes of which a step is known to be done, and it takes {FEWEST} at "
            "least: label some with `ulna data relabel --steps`, or --success"
        )
    parts = split_by_episode(usable, [1 - HELD_OUT, HELD_OUT], seed=0)
    fitted, held_out = (Labelled.of(store, [usable[i].index for i in part]) for part in parts)
    plans = {**held_out.common_plans(), **fitted.common_plans()}
    windows = Windows(store, WindowSpec(1, 1, 0, tuple(features)), fitted.numbers)
    stats = {k: vector_stats(windows.values(k).astype(np.float64)) for k in state_keys(features)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = ProgressCritic(spec, features, stats, plans)
        nothing = np.zeros(max(map(len, plans.values())), bool)
        asked = {critic.asked(t, p, nothing, i) for t, p in plans.items() for i in range(len(p))}
        begin(critic, sorted(asked), True, lambda text: print(text, file=sys.stderr))
        _fit(critic.to(device), fitted, windows, steps, batch, rate, seed, progress)
    critic.eval()
    critic.measured = measure(critic, fitted, held_out)
    content_hash = save_progress(out, critic, {"data": str(data), "steps": steps})
    load_progress(out)  # it opens
    return {
        "out": str(out),
        "checkpoint": content_hash,
        "sees": list(features),
        "tasks": len(plans),
        **critic.measured,
    }


def _fit(
    critic: ProgressCritic,
    fitted: Labelled,
    windows: Windows,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    spec, rng = critic.spec, np.random.default_rng(seed)
    stride = spec.stride(fitted.store.control_hz)
    if getattr(spec.encoder, "weights", ""):
        critic.encoder.requires_grad_(False)
    weights = [w for w in critic.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    critic.train()
    for step in range(steps):
        loss = _loss(critic, _drawn(fitted, batch, rng), windows, stride, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1)


def _drawn(fitted: Labelled, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, Labelled]:
    """(places of `batch` episodes among those that are fitted, what they are told)."""
    which = rng.integers(len(fitted.numbers), size=batch)
    other = np.where(rng.random(batch) < DISTRACTED, rng.integers(len(fitted.numbers), size=batch), which)
    some = Labelled(fitted.store, [], [], [fitted.plans[e] for e in which], [fitted.done[e] for e in which])
    return which, some.told([fitted.tasks[e] for e in other], [fitted.plans[e] for e in other])


def _loss(
    critic: ProgressCritic,
    drawn: tuple[np.ndarray, Labelled],
    windows: Windows,
    stride: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Cross entropy of the marks after each of some clips in a row, from the beginning of the episode or from
    anywhere in it."""
    (which, some), frames = drawn, critic.spec.frames
    lengths = np.array([e.length for e in windows.episodes])
    first = (np.cumsum(lengths) - lengths)[which]
    length, span, n = lengths[which], frames * stride, max(map(len, some.plans))
    start = rng.integers(0, np.where(rng.random(len(which)) < 0.5, np.minimum(span, length), length))
    clips = range(min(CLIPS, -(-int((length - start).max()) // span)))
    ticks = np.stack(
        [
            [s + clip_ticks(c, m - s, frames, stride) for c in clips]
            for s, m in zip(start, length, strict=True)
        ]
    )  # (B, C, T)
    real = start[:, None] + np.array(clips) * span < length[:, None]
    label, told = np.zeros((len(which), len(clips), n), bool), np.zeros((len(which), n), bool)
    within = np.arange(n) < np.array([[len(p)] for p in some.plans])
    for b, done in enumerate(some.done):
        label[b, :, : done.shape[1]] = done[ticks[b, :, -1]]
        told[b, : done.shape[1]] = done[start[b] - 1] & (start[b] > 0)
    device = next(critic.parameters()).device
    seen = windows.observations(first[:, None, None] + ticks)
    z = critic.see({k: torch.from_numpy(v).flatten(0, 1).to(device) for k, v in seen.items()})
    read_all = _read_at_once(critic, z, some, len(clips)) if critic.spec.tells == "step" else None
    z = z.unflatten(0, (len(which), len(clips)))
    losses, counts = [], torch.from_numpy(real[:, :, None] & within[:, None]).to(z)
    for c in clips:
        read = critic.read(z[:, c], some.tasks, some.plans, told) if read_all is None else read_all[c]
        logits = critic.mark(read, some.plans, told)
        goal = torch.from_numpy(label[:, c]).to(logits)
        losses.append(F.binary_cross_entropy_with_logits(logits, goal, reduction="none") * counts[:, c])
        own = (logits > 0).cpu().numpy() & within
        told = np.where(rng.random((len(which), 1)) < 0.5, own, label[:, c])
    return torch.stack(losses, 1).sum() / counts.sum()


def _read_at_once(critic: ProgressCritic, z: torch.Tensor, some: Labelled, n: int) -> list[torch.Tensor]:
    """What is read for each of n clips in a row, where that does not hang on the answers between them. z: of
    all clips, those of an episode in a row."""
    tasks, plans = [t for t in some.tasks for _ in range(n)], [p for p in some.plans for _ in range(n)]
    nothing = np.zeros((len(plans), max(map(len, plans))), bool)
    read = critic.read(z, tasks, plans, nothing)
    clip = np.concatenate([np.repeat(np.arange(n), len(p)) for p in some.plans])
    return [read.index_select(0, torch.from_numpy(np.flatnonzero(clip == c)).to(z.device)) for c in range(n)]


def measure(critic: ProgressCritic, fitted: Labelled, held_out: Labelled) -> dict[str, Any]:
    """Of episodes that it was not fitted to, at the end of each clip: mean error of p, share of clips in
    which the number of steps is right, and the error of a counter that gives the mean p of the fitted
    episodes at that time."""
    answers = errors(critic, held_out)
    by_time = counter_errors(critic.spec, fitted, held_out)
    return {
        "held_out_episodes": len(held_out.numbers),
        "mae": float(np.mean(np.concatenate(answers))),
        "exact": float(np.mean(np.concatenate(answers) < 1e-9)),
        "mae_of_a_counter": float(np.mean(np.concatenate(by_time))),
    }


def errors(critic: ProgressCritic, some: Labelled) -> list[np.ndarray]:
    """|p - label| at the end of each clip, of each episode."""
    told = list(zip(some.tasks, some.plans, strict=True))
    given = progress_of(critic, some.store, some.numbers, told)
    ends = [_ends(critic.spec, some, e) for e in range(len(given))]
    return [np.abs(p[t] - d[t].mean(1)) for p, d, t in zip(given, some.done, ends, strict=True)]


def counter_errors(spec: ProgressSpec, fitted: Labelled, some: Labelled) -> list[np.ndarray]:
    """The same of a counter of time: the mean p of the fitted episodes so many clips after the beginning; of
    one that is over, its last."""
    ends = [_ends(spec, fitted, e) for e in range(len(fitted.numbers))]
    n = max(map(len, ends))
    each = [d[np.append(t, t[-1:].repeat(n))[:n]].mean(1) for d, t in zip(fitted.done, ends, strict=True)]
    expected = np.mean(each, axis=0)
    result = []
    for e, done in enumerate(some.done):
        t = _ends(spec, some, e)
        result.append(np.abs(expected[np.minimum(np.arange(len(t)), n - 1)] - done[t].mean(1)))
    return result


def _ends(spec: ProgressSpec, some: Labelled, e: int) -> np.ndarray:
    """The last control tick of each clip of an episode."""
    length, stride = len(some.done[e]), spec.stride(some.store.control_hz)
    clips = -(-length // (spec.frames * stride))
    return np.array([clip_ticks(c, length, spec.frames, stride)[-1] for c in range(clips)])
