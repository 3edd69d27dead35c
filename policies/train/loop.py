"""Training: one loop for every recipe, on one CPU or, under `accelerate launch`, on several GPUs.

Everything random is a function of (seed, step, process): the batch, the noise, dropout, the crops. So a run
killed at any instant and resumed from its last state repeats the unbroken run's losses without storing
generator states."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ...datasets.reading.loader import WindowSource, batches, step_rng
from ..adapters.weights import begin
from ..caps import require_caps
from ..checkpoint import load_checkpoint, save_checkpoint
from ..conditions.task import know_tasks
from ..encoders.published import pretrained
from ..parts import recipe_to_json
from ..policy import Policy
from ..recipe import Recipe, Training
from .action_words import know_actions
from .augment import augment_batch, require_in_place, require_known
from .config import run_config, write_config
from .curriculum import begins, curriculum, refreshed, require_one_window
from .data import (
    TrainingData,
    TrainingWindows,
    open_data,
    require_readable,
    still_elements,
    tensors,
    window_spec,
)
from .encodings import EncodedWindows, require_cacheable
from .error import TrainingError
from .graphed import Graphed, Late
from .lora import adapt, adaptation, merge
from .optimiser import adamw, averaged, follower, freeze, learning_rate, set_learning_rate, warmed_up
from .recompute import recompute
from .record import TrainingRecord
from .sharded import apart, holding, in_blocks, is_sharded, put_together, require_shardable, share_out
from .slow import take_slow, with_slow
from .spread import gathered
from .start import load_start, take_stats, take_weights
from .state import (
    STATE_FILE,
    make_folder,
    one_sentence,
    read_before,
    read_table,
    require_resumes,
    restore,
    save_state,
    state_tensors,
)
from .track import make_accelerator, require_trackers, tracking
from .words import require_words


@dataclass(frozen=True)
class Progress:
    """After optimiser step `step`, counted from 1, of `steps`."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    examples_per_s: float


@dataclass(frozen=True)
class TrainResult:
    checkpoint: Path
    content_hash: str
    steps: int
    losses: list[float]
    seconds: float
    parameters: int
    device: str


def train(
    recipe: Recipe,
    data: TrainingData | str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    augment: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    track: Sequence[str] = ("tensorboard",),
    called: str = "",
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train `recipe` on `data` and write the checkpoint to `out`.

    data: what `open_data` gave, or the path of a dataset or of several, to use as they are. augment: names of
    `augment.AUGMENTATIONS`. device: `cpu` or None for what accelerate finds. track: names of trackers, see
    `track.py`. called: how `ulna train` finds the recipe, where that is not by its name. resume: go on from
    the last state in `out`, refusing one that began with another recipe, seed or data. A `KeyboardInterrupt`
    leaves that state."""
    out, t = Path(out), recipe.training
    require_known(augment)
    require_trackers(track)
    accelerator = make_accelerator(device, out, track)
    say = say if accelerator.is_main_process else lambda _: None
    data = data if isinstance(data, TrainingData) else open_data(data)
    before = read_before(out) if resume else None
    grown = before is not None and data.has_grown(before.counts, before.identity["data"])
    if before is not None and grown:
        more = f"the data have grown by {sum(data.counts) - sum(before.counts)} episodes since it was trained"
        if before.finished:
            say(f"{more}: it goes on with all {sum(data.counts)}")
        else:
            say(f"{more}: it ends without them, as it was begun, and may go on with more steps then")
            data = data.first(before.counts)
    features, store = data.features, data.stores[0]
    start = load_start(t.start) if t.start else None
    named, (recipe, slow) = recipe, with_slow(recipe, features, start)
    spec = window_spec(recipe, features)
    require_in_place(augment, spec.targets)
    windows = data.windows(spec)
    if not len(windows.train):
        raise TrainingError(f"{' and '.join(data.paths)} holds no windows to train on")
    for sentence in windows.notes:
        say(sentence)
    require_readable(recipe, data.tasks)
    require_caps(recipe, features, augment)
    require_one_window(recipe)

    identity = {
        "recipe": recipe_to_json(recipe),
        "seed": seed,
        "augment": list(augment),
        "start": start.content_hash if start else "",
        **windows.identity,
    }
    set_seed(seed)
    stats = windows.stats()
    stats |= recipe.codec.fit(windows.train, features, recipe.n_past_actions)
    if start is not None:
        stats = take_stats(stats, start.stats, say)
    if before is not None:  # the data may have grown since
        kept = before.stats or (load_checkpoint(out).stats if before.finished else {})
        stats = take_stats(stats, kept, say)
    for sentence in still_elements(features, stats, recipe):
        say(sentence)
    policy = Policy(recipe, features, stats)
    parameters = sum(p.numel() for p in policy.parameters())
    begin(policy, data.tasks, weights=start is None and before is None, say=say)
    taken: set[str] = set()
    if start is not None:
        taken = take_weights(policy, start, say)
        del start
    know_tasks(policy, data.tasks)
    know_actions(policy, windows.train, say)
    take_slow(policy, slow, say)
    del slow
    adapt(policy, t)
    freeze(policy, t, taken)
    if t.lora:
        say(adaptation(policy, start_named=bool(t.start)))
    if t.cache_encodings:
        require_cacheable(policy, augment)
    if sharded := is_sharded():
        require_shardable(policy)
    require_words(policy, data, say)
    optimizer = adamw(policy, t, accelerator.device)

    # not before all is known to fit
    if before is not None:
        require_resumes(out, before, identity, grown)
    else:
        make_folder(out, overwrite, accelerator.is_main_process)
    config = run_config(named, data, augment, seed, device, track, called)
    if accelerator.is_main_process:
        with one_sentence(out):
            write_config(out, config)

    model: Any = policy
    if sharded:
        ema = AveragedModel(policy)
        share_out(policy, ema, accelerator.device)
        optimizer = accelerator.prepare_optimizer(adamw(policy, t))
    else:
        model, optimizer = accelerator.prepare(policy, optimizer)
        ema = AveragedModel(policy)
    follow = follower(ema, policy, warmed_up(t.ema_power, t.ema_max))
    if t.recompute:  # after the average has copied the policy
        recompute(policy)
    if t.compile:
        model.compile()

    if t.cache_encodings:
        windows = replace(windows, train=EncodedWindows(windows.train, policy))

    def compute(batch: Mapping[str, Any], progress: Any) -> Tensor:
        with accelerator.autocast(), in_blocks(policy) if sharded else contextlib.nullcontext():
            loss = model(batch, progress=progress) / t.accumulate
        accelerator.backward(loss)
        return loss.detach()

    alone = not sharded and t.accumulate == accelerator.num_processes == 1 and not (t.compile or t.recompute)
    if alone and accelerator.device.type == "cuda":
        compute = Graphed(compute, policy, accelerator.device)

    losses: list[float] = []
    validation: dict[str, float] = {}
    lessons, table = curriculum(recipe.objective), None
    if before is not None:
        losses = restore(before.path, policy, optimizer, ema)
        table = read_table(before.path)
        if table is not None:
            table = table.to(accelerator.device)
            if lessons is not None and len(table) != len(windows.train):  # the data have grown
                table = refreshed(lessons, policy, windows.train, None)
        validation = dict(before.validation)

    def write(state: Mapping[str, Tensor], finished: bool) -> None:
        n = int(ema.n_averaged)
        save_state(out, identity, data.counts, stats, state, n, losses, validation, finished)

    model.train()
    main = accelerator.is_main_process
    began, first = time.monotonic(), len(losses)
    late = Late(accelerator.device)
    with tracking(accelerator, out, config):
        for step, micro in _micro_batches(windows, data.options.workers, t, seed, first, accelerator):
            torch.manual_seed((seed * 1_000_003 + step) * 64 + accelerator.process_index)
            total = torch.zeros((), device=accelerator.device)
            if lessons is not None and begins(lessons.rounds, step, t.steps):
                table = refreshed(lessons, policy, windows.train, table)
            for i, batch in enumerate(micro):
                if table is not None:
                    batch["table"] = table[batch["index"]]
                whole = i == len(micro) - 1
                with contextlib.nullcontext() if whole else holding(accelerator, model, sharded):
                    total += compute(augment_batch(batch, augment), step / t.steps)
            accelerator.clip_grad_norm_(model.parameters(), t.grad_clip)
            set_learning_rate(optimizer, learning_rate(t, step))
            optimizer.step()
            optimizer.zero_grad()
            follow()

            late.put(cast(Tensor, accelerator.reduce(total, "mean")))
            count = step + 1
            due = count % t.checkpoint_every == 0
            for value in late.take(all=due or count == t.steps):
                losses.append(_finite(value, len(losses)))
                if accelerator.is_main_process:
                    report(_progress(losses, t, first, began))
                    if len(losses) % 10 == 0 or len(losses) == t.steps:
                        rate = learning_rate(t, len(losses) - 1)
                        accelerator.log({"loss": value, "learning_rate": rate}, len(losses))
            if not (main or sharded):
                continue
            if windows.validation is not None and (due or count == t.steps):
                validation[str(count)] = _validation_loss(policy, windows.validation, accelerator)
                if sharded:
                    apart(policy)
                accelerator.log({"validation loss": validation[str(count)]}, count)
            if due and count < t.steps:
                state = gathered(state_tensors(policy.state_dict(), optimizer, ema, table), main)
                if main:
                    with one_sentence(out):
                        write(state, finished=False)
    seconds = time.monotonic() - began

    last = {k: v.clone() for k, v in gathered(policy.state_dict(), main).items()}
    state = gathered(state_tensors(last, optimizer, ema, table), main)
    average = averaged(ema.module, policy, t)
    average = gathered(average, main) if sharded else average
    content_hash = ""
    if main:
        if sharded:
            policy = put_together(ema, average)
        else:
            policy.load_state_dict(average)
        merge(policy)
        record = TrainingRecord(
            data=" ".join(data.paths),
            data_content=windows.identity["data"],
            options=windows.identity["options"],
            augment=list(augment),
            start=identity["start"],
            pretrained=pretrained(policy),
            validation_losses=validation,
            robot=store.robot,
            control_hz=store.control_hz,
            tasks=data.tasks,
            episodes=data.episodes,
            n_windows=len(windows.train),
            seed=seed,
            steps=t.steps,
            losses=losses,
            seconds=seconds,
            examples_per_s=(t.steps - first) * t.batch_size * t.accumulate / seconds,
            parameters=parameters,
            device=str(accelerator.device),
            processes=accelerator.num_processes,
            machine=platform.processor() or platform.machine(),
            versions={p: version(p) for p in ("ulna", "torch", "diffusers", "accelerate")},
        )
        with one_sentence(out):
            content_hash = save_checkpoint(out, policy, record)
        try:
            with one_sentence(out):
                write(state, finished=True)
        except TrainingError as error:  # the checkpoint is whole
            (out / STATE_FILE).unlink(missing_ok=True)
            say(f"the policy is trained, but cannot go on with more steps later: {error}")
    accelerator.wait_for_everyone()
    return TrainResult(out, content_hash, t.steps, losses, seconds, parameters, str(accelerator.device))


def _finite(value: float, step: int) -> float:
    if not np.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {step}: lower the learning rate, or look at the data"
        )
    return value


def _progress(losses: Sequence[float], t: Training, first: int, began: float) -> Progress:
    """After the newest of the losses. first: how many there were when the clock read `began`."""
    count = len(losses)
    rate = (count - first) * t.batch_size * t.accumulate / (time.monotonic() - began)
    return Progress(count, t.steps, losses[-1], learning_rate(t, count - 1), rate)


def _micro_batches(
    windows: TrainingWindows, workers: int, t: Training, seed: int, first: int, accelerator: Accelerator
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(step, its `accumulate` micro-batches), the next ones read while this one trains. Each process takes
    its share."""
    process, processes = accelerator.process_index, accelerator.num_processes
    if t.batch_size % processes:
        raise TrainingError(f"batch_size {t.batch_size} does not divide among {processes} processes")

    def rows(micro_step: int) -> np.ndarray:
        return windows.indices(t.batch_size, seed, micro_step)[process::processes]

    steps, rng_of = t.steps * t.accumulate, step_rng(seed, process)
    reader = batches(windows.train, rows, first * t.accumulate, steps, workers, rng_of)
    for step in range(first, t.steps):
        micro = [next(reader) for _ in range(t.accumulate)]
        yield step, [tensors(b, accelerator.device) for b in micro]


def _validation_loss(
    policy: Policy, windows: WindowSource, accelerator: Accelerator, most: int = 512
) -> float:
    """The mean loss over up to `most` evenly spaced windows of the held-out episodes, with the same noise
    every time."""
    rows = np.unique(np.linspace(0, len(windows) - 1, most).round().astype(np.int64))
    torch.manual_seed(0)  # the loop seeds every step anew
    policy.eval()
    total = 0.0
    with torch.no_grad():
        for part in np.array_split(rows, -(-len(rows) // 64)):
            batch = tensors(windows.batch(part), accelerator.device)
            total += float(policy(batch)) * len(part)
    policy.train()
    return total / len(rows)
