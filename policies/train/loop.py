"""Training: one loop for every recipe, on one CPU or, under `accelerate launch`, on several GPUs.

Everything random is a function of (seed, step, process): the batch, the noise, dropout, the crops. So a run
killed at any instant and resumed from its last state repeats the unbroken run's losses without storing
generator states."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ...datasets.features import ACTION, STATE, Features, image_keys, state_keys
from ...datasets.reading.loader import WindowSource, batches
from ...datasets.reading.windows import WindowSpec
from ...datasets.stats import Stats, vector_stats
from ..checkpoint import save_checkpoint
from ..policy import RELATIVE, Policy, state_of_action
from ..parts import recipe_to_json
from ..recipe import Recipe, Training
from .augment import augment_batch, require_known
from .data import DataOptions, TrainingData, open_data
from .record import TrainingRecord

STATE_FILE = "training.safetensors"


class TrainingError(ValueError):
    """The run cannot start or go on; the message is one sentence."""


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


def policy_features(features: Features, keys: Sequence[str] | None = None) -> Features:
    """The features a policy uses: the action and all observations, or those in `keys`."""
    observations = [*state_keys(features), *image_keys(features)]
    if keys is not None:
        if unknown := sorted(set(keys) - set(observations)):
            raise TrainingError(f"the data has no observation {unknown[0]}; it has {', '.join(observations)}")
        observations = [k for k in observations if k in keys]
    if ACTION not in features or not observations:
        raise TrainingError(f"training needs {ACTION} and an observation; the data has {', '.join(features)}")
    return {k: features[k] for k in (*observations, ACTION)}


def train(
    recipe: Recipe,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    options: DataOptions | None = None,
    augment: Sequence[str] = (),
    keys: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train `recipe` on the episode store `data`, or on several, and write the checkpoint to `out`.

    options: which episodes, and how they count. augment: names of `augment.AUGMENTATIONS`. device: `cpu` or
    None for what accelerate finds. resume: go on from the last state in `out`, refusing one of another
    recipe, seed, data, observations or weights. A `KeyboardInterrupt` leaves that state."""
    out, t, options = Path(out), recipe.training, options or DataOptions()
    require_known(augment)

    def spec_of(features: Features) -> WindowSpec:
        observations = tuple(k for k in features if k != ACTION)
        return WindowSpec(recipe.n_obs_steps, recipe.horizon, recipe.n_past_actions, observations)

    sources = [data] if isinstance(data, str | Path) else list(data)
    training_data = open_data(sources, keys, spec_of, options, policy_features)
    features, windows, store = training_data.features, training_data.windows, training_data.stores[0]
    held_out = training_data.validation_windows
    if not len(windows):
        raise TrainingError(f"{' and '.join(map(str, sources))} holds no windows to train on")
    for sentence in training_data.notes:
        say(sentence)

    accelerator = _accelerator(device)
    identity = {
        "recipe": recipe_to_json(recipe),
        "seed": seed,
        "augment": list(augment),
        **training_data.identity,
    }
    state = _prepare(out, identity, resume, overwrite, accelerator.is_main_process)

    set_seed(seed)
    stats = training_data.stats()
    if recipe.action_space != "absolute":
        stats[RELATIVE] = relative_stats(windows, recipe, features)
    policy = Policy(recipe, features, stats)
    parameters = sum(p.numel() for p in policy.parameters())
    optimizer = torch.optim.AdamW(
        policy.parameters(), t.learning_rate, t.betas, weight_decay=t.weight_decay, fused=True
    )
    model, optimizer = accelerator.prepare(policy, optimizer)
    ema = AveragedModel(policy, multi_avg_fn=warmed_up(t.ema_power, t.ema_max))
    if t.compile:
        model.compile()

    losses: list[float] = []
    validation: dict[str, float] = {}
    if state is not None:
        losses = _restore(state, policy, optimizer, ema)
        validation = _read_header(state).get("validation", {})
    if t.steps <= len(losses):
        raise TrainingError(f"{out} has already trained {len(losses)} of {t.steps} steps: nothing to resume")

    writer = _tensorboard(out) if accelerator.is_main_process else None
    model.train()
    began, first = time.monotonic(), len(losses)
    for step, micro in _micro_batches(training_data, options.workers, t, seed, first, accelerator):
        torch.manual_seed((seed * 1_000_003 + step) * 64 + accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(micro):
            whole = i == len(micro) - 1
            with contextlib.nullcontext() if whole else accelerator.no_sync(model), accelerator.autocast():
                loss = model(augment_batch(batch, augment)) / len(micro)
            accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), t.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(t, step)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(policy)

        value = float(cast(Tensor, accelerator.reduce(total, "mean")))
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}: lower the learning rate, or look at the data"
            )
        losses.append(value)
        count = step + 1
        if accelerator.is_main_process:
            rate = (count - first) * t.batch_size * t.accumulate / (time.monotonic() - began)
            report(Progress(count, t.steps, value, learning_rate(t, step), rate))
            if writer is not None and (count % 10 == 0 or count == t.steps):
                writer.add_scalar("loss", value, count)
                writer.add_scalar("learning_rate", learning_rate(t, step), count)
            if held_out is not None and (count % t.checkpoint_every == 0 or count == t.steps):
                validation[str(count)] = _validation_loss(policy, held_out, accelerator)
                if writer is not None:
                    writer.add_scalar("validation loss", validation[str(count)], count)
            if count % t.checkpoint_every == 0 and count < t.steps:
                with _one_sentence(out):
                    _save_state(out, identity, policy, optimizer, ema, losses, validation)
    seconds = time.monotonic() - began
    if writer is not None:
        writer.close()

    policy.load_state_dict(ema.module.state_dict())
    content_hash = ""
    if accelerator.is_main_process:
        record = TrainingRecord(
            data=" ".join(map(str, sources)),
            data_content=training_data.identity["data"],
            options=training_data.identity["options"],
            augment=list(augment),
            validation_losses=validation,
            robot=store.robot,
            control_hz=store.control_hz,
            tasks=sorted({e.task for s in training_data.stores for e in s.episodes}),
            episodes=training_data.episodes,
            n_windows=len(windows),
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
        with _one_sentence(out):
            content_hash = save_checkpoint(out, policy, record)
        (out / STATE_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return TrainResult(out, content_hash, t.steps, losses, seconds, parameters, str(accelerator.device))


def learning_rate(t: Training, step: int) -> float:
    """Linear warm-up, then half a cosine to zero at the last step; a function of the step alone, so it
    resumes."""
    warm = (step + 1) / max(min(t.warmup, t.steps), 1)
    progress = (step - t.warmup) / max(t.steps - t.warmup, 1)
    return t.learning_rate * min(warm, 0.5 * (1 + math.cos(math.pi * max(progress, 0.0))))


def warmed_up(power: float, most: float) -> Callable[[Any, Any, Any], None]:
    """How an average of weights moves: its decay grows as 1 - (1 + n)^-power over the n steps averaged, up to
    `most`.

    As diffusers' `EMAModel`, whose import alone takes seconds.
    """

    @torch.no_grad()
    def move(averages: Any, weights: Any, n: Any) -> None:
        share = max((1 + float(n)) ** -power, 1 - most)
        torch._foreach_lerp_(averages, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    return move


def relative_stats(windows: WindowSource, recipe: Recipe, features: Features, most: int = 8192) -> Stats:
    """Statistics `(H, A)` of chunks as differences to the state or the last command, from up to `most` evenly
    spaced windows.

    Each step of the horizon has its own: near ones differ little from the state, far ones much, and with one
    scale for all the near ones would drown in what the network leaves of the noise."""
    rows = np.unique(np.linspace(0, len(windows) - 1, most).round().astype(np.int64))
    batch = windows.vectors(rows)
    if recipe.action_space == "relative":
        origin = batch[STATE][:, -1:, state_of_action(features)]
    else:
        origin = batch[ACTION][:, recipe.n_past_actions - 1 : recipe.n_past_actions]
    return vector_stats((batch[ACTION] - origin).astype(np.float64))


def _accelerator(device: str | None) -> Accelerator:
    cuda = torch.cuda.is_available() and device != "cpu"
    return Accelerator(
        cpu=not cuda, mixed_precision="bf16" if cuda and torch.cuda.is_bf16_supported() else "no"
    )


def _prepare(out: Path, identity: dict[str, Any], resume: bool, overwrite: bool, main: bool) -> Path | None:
    """Make `out` ready for a run of this identity; returns the state to resume from, if any. TrainingError
    where another run would be overwritten or mixed with this one."""
    state = out / STATE_FILE
    if resume:
        if not state.is_file():
            raise TrainingError(f"{out} holds no unfinished training to resume")
        if (before := _read_header(state)["identity"]) != identity:
            differences = [k for k in identity if before.get(k) != identity[k]]
            raise TrainingError(
                f"{out} was begun with another {' and another '.join(differences)}: resume it as it was begun"
            )
        return state
    if not overwrite:
        if state.exists():
            raise TrainingError(
                f"{out} holds an unfinished training: go on with --resume, or discard it with --overwrite"
            )
        if (out / "hash.json").exists():
            raise TrainingError(
                f"{out} holds a trained checkpoint: choose another --out, or replace it with --overwrite"
            )
    elif main:
        state.unlink(missing_ok=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {out}: {error.strerror}") from None
    return None


def _micro_batches(
    data: TrainingData, workers: int, t: Training, seed: int, first: int, accelerator: Accelerator
) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
    """(step, its `accumulate` micro-batches), the next ones read while this one trains. Each process takes
    its share."""
    process, processes = accelerator.process_index, accelerator.num_processes
    if t.batch_size % processes:
        raise TrainingError(f"batch_size {t.batch_size} does not divide among {processes} processes")

    def rows(micro_step: int) -> np.ndarray:
        return data.indices(t.batch_size, seed, micro_step)[process::processes]

    reader = batches(data.windows, rows, first * t.accumulate, t.steps * t.accumulate, workers)
    for step in range(first, t.steps):
        micro = [next(reader) for _ in range(t.accumulate)]
        yield step, [{k: torch.from_numpy(v).to(accelerator.device) for k, v in b.items()} for b in micro]


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
            batch = {k: torch.from_numpy(v).to(accelerator.device) for k, v in windows.batch(part).items()}
            total += float(policy.loss(batch)) * len(part)
    policy.train()
    return total / len(rows)


def _tensorboard(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


@contextlib.contextmanager
def _one_sentence(out: Path) -> Iterator[None]:
    """A full disk and the like become one sentence, and no half-written file is left that fills it
    further."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        (out / f".{STATE_FILE}").unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        state = out / STATE_FILE
        then = "make room and go on with --resume" if state.exists() else "make room and train again"
        raise TrainingError(f"cannot write to {out}: {reason}; {then}") from error


def _save_state(
    out: Path,
    identity: dict[str, Any],
    policy: Policy,
    optimizer: Any,
    ema: AveragedModel,
    losses: list[float],
    validation: dict[str, float],
) -> None:
    """Everything a resume needs, in one safetensors file that arrives by one rename."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in policy.state_dict().items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{i}/{k}": v for k, v in entry.items()}
    tensors |= {f"ema/{i}": v for i, v in enumerate(ema.module.parameters())}
    header = {
        "identity": identity,
        "losses": losses,
        "ema_step": int(ema.n_averaged),
        "validation": validation,
    }
    new = out / f".{STATE_FILE}"
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(contiguous, new, metadata={"ulna": json.dumps(header)})
    with new.open("rb") as f:
        os.fsync(f.fileno())
    os.replace(new, out / STATE_FILE)


def _read_header(state: Path) -> dict[str, Any]:
    try:
        with safe_open(state, "pt") as f:
            return json.loads((f.metadata() or {})["ulna"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise TrainingError(f"{state} is not a training state that can be resumed: {error}") from None


def _restore(state: Path, policy: Policy, optimizer: Any, ema: AveragedModel) -> list[float]:
    """Load weights, optimiser and EMA; returns the losses so far, one per step."""
    header = _read_header(state)
    with safe_open(state, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    policy.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    adam: dict[int, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("adam/"):
            _, i, field = k.split("/")
            adam.setdefault(int(i), {})[field] = v
    optimizer.load_state_dict({"state": adam, "param_groups": optimizer.state_dict()["param_groups"]})
    for i, average in enumerate(ema.module.parameters()):
        average.data.copy_(tensors[f"ema/{i}"])
    ema.n_averaged.fill_(int(header["ema_step"]))
    return list(header["losses"])
