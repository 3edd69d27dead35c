"""The offline loop of learners: batches of windows as a function of (seed, step), plain progress, and a state
from which a killed run goes on as if it had not been."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...datasets.reading.loader import batches, step_rng
from ..train.data import TrainingData, TrainingWindows, tensors
from ..train.error import TrainingError
from ..train.record import TrainingRecord
from ..train.state import STATE_FILE, one_sentence
from .learner import Learner, move_targets
from .state import prepare, restore, save


@dataclass(frozen=True)
class Progress:
    """After update `step`, counted from 1, of `steps`."""

    step: int
    steps: int
    metrics: Mapping[str, float]
    updates_per_s: float


@dataclass(frozen=True)
class LearnResult:
    out: Path
    content_hashes: dict[str, str]
    """Of the checkpoints, by what they are."""
    steps: int
    history: dict[str, list[float]]
    """Each metric after each update."""
    seconds: float


def learn(
    learner: Learner,
    data: TrainingData,
    windows: TrainingWindows,
    out: str | Path,
    *,
    steps: int,
    batch_size: int,
    identity: Mapping[str, Any],
    seed: int = 0,
    device: str = "cpu",
    checkpoint_every: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> LearnResult:
    """Run `steps` updates of `learner`, whose modules are on `device` and were made from `seed`, and write
    its checkpoints to `out`.

    windows: of `data`, as the learner needs them. identity: JSON; what a resumed run must share, beside data
    and seed. resume: go on from the last state in `out`. TrainingError in one sentence."""
    out = Path(out)
    if not len(windows.train):
        raise TrainingError(f"{' and '.join(data.paths)} holds no windows to learn from")
    whole = {**identity, "seed": seed, "steps": steps, "batch_size": batch_size, **windows.identity}
    state = prepare(out, whole, resume, overwrite)
    first, history = restore(state, learner) if state else (0, {})
    reader = batches(
        windows.train,
        lambda step: windows.indices(batch_size, seed, step),
        first,
        steps,
        data.options.workers,
        step_rng(seed),
    )
    began = time.monotonic()
    for step, arrays in zip(range(first, steps), reader, strict=True):
        batch = tensors(arrays, device)
        torch.manual_seed((seed * 1_000_003 + step) * 64)
        metrics = learner.update(batch, step / steps)
        move_targets(learner, step)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} at step {step}: lower the learning rate, or look at the data"
                )
            history.setdefault(name, []).append(value)
        count = step + 1
        report(Progress(count, steps, metrics, (count - first) / (time.monotonic() - began)))
        if count % checkpoint_every == 0 and count < steps:
            with one_sentence(out):
                save(out, whole, learner, count, history)
    seconds = time.monotonic() - began
    record = TrainingRecord(
        data=" ".join(data.paths),
        data_content=windows.identity["data"],
        options=windows.identity["options"],
        robot=data.stores[0].robot,
        control_hz=data.stores[0].control_hz,
        tasks=sorted({e.task for s in data.stores for e in s.episodes}),
        episodes=data.episodes,
        n_windows=len(windows.train),
        seed=seed,
        steps=steps,
        losses=next(iter(history.values()), []),
        seconds=seconds,
        examples_per_s=(steps - first) * batch_size / max(seconds, 1e-9),
        parameters=sum(p.numel() for m in learner.modules.values() for p in m.parameters()),
        device=device,
        machine=platform.processor() or platform.machine(),
        versions={p: version(p) for p in ("ulna", "torch")},
    )
    with one_sentence(out):
        hashes = learner.save(out, record)
    (out / STATE_FILE).unlink(missing_ok=True)
    return LearnResult(out, hashes, steps, history, seconds)
