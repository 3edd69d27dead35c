"""Which weights are trained and how: frozen ones, parameter groups, the learning rate, the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..recipe import Training
from .eight_bits import eight_bits
from .error import TrainingError, nearest
from .lora import adapted, is_adapter, plain
from .spread import is_spread, part


def freeze(policy: nn.Module, t: Training, taken: Collection[str] = ()) -> None:
    """Let the weights that `t.freeze` matches take no gradient; with adapters, those that they are for and
    the others that were `taken` from a checkpoint, too. Adapters themselves are never frozen. TrainingError
    where a pattern of the training matches nothing, or all is frozen."""
    weights = {plain(n): p for n, p in policy.named_parameters()}
    names = [n for n in weights if not is_adapter(n)]
    for pattern in t.ema_skip:
        matching(pattern, list(weights), "ema_skip")
    kept = {n for pattern in t.freeze for n in matching(pattern, names, "freeze")}
    if t.lora:
        kept |= adapted(policy) | {n for n in taken if n in weights}
    for pattern in t.unfreeze:
        kept -= set(matching(pattern, names, "unfreeze"))
    for name in kept:
        weights[name].requires_grad_(False)
    if not any(p.requires_grad for p in policy.parameters()):
        raise TrainingError(f"freeze {' '.join(t.freeze)} leaves no weights to train")


def adamw(policy: nn.Module, t: Training, device: torch.device | None = None) -> torch.optim.Optimizer:
    """Of the weights that are not frozen, which will be on `device`. A group's key `factor` is its share of
    the learning rate. TrainingError in one sentence where the training asks for 8 bits and cannot have
    them."""
    names = [plain(n) for n, _ in policy.named_parameters()]
    weights = {plain(n): p for n, p in policy.named_parameters() if p.requires_grad}
    rows: list[dict[str, Any]] = []
    for group in t.groups:
        own = [weights.pop(n) for n in matching(group.pattern, names, "groups") if n in weights]
        if own:  # none where they are frozen or belong to an earlier group
            decay = t.weight_decay if group.weight_decay is None else group.weight_decay
            rows.append({"params": own, "factor": group.learning_rate, "weight_decay": decay})
    if weights:
        rows.insert(0, {"params": list(weights.values()), "factor": 1.0, "weight_decay": t.weight_decay})
    if t.optimiser == "adamw8bit":
        return eight_bits(rows, t.learning_rate, t.betas, device or torch.device("cpu"))
    return torch.optim.AdamW(rows, t.learning_rate, t.betas, fused=True)


def set_learning_rate(optimizer: Any, value: float) -> None:
    """`value` times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["factor"]


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


def follower(
    average: AveragedModel, policy: nn.Module, move: Callable[[Any, Any, Any], None]
) -> Callable[[], None]:
    """What `average.update_parameters(policy)` does, without listing the weights anew and waiting for the
    device at every step. Weights are changed in place only; frozen ones, of which `average` began with a
    copy, not at all."""
    pairs = zip(average.module.parameters(), policy.parameters(), strict=True)
    moving = [(a, w) for a, w in pairs if w.requires_grad]

    @torch.no_grad()
    def here() -> tuple[list[Tensor], list[Tensor]]:
        return [part(a.detach()) for a, _ in moving], [part(w.detach()) for _, w in moving]

    kept_here = None if any(is_spread(w) for _, w in moving) else here()  # FSDP may move a part
    kept, buffers = (list(m.buffers()) for m in (average.module, policy))

    @torch.no_grad()
    def follow() -> None:
        averages, weights = kept_here or here()
        n = int(average.n_averaged)  # it stays on the processor
        if n:
            move(averages, weights, n)
        else:
            torch._foreach_copy_(averages, weights)  # pyright: ignore[reportPrivateImportUsage]
        if kept:
            torch._foreach_copy_(kept, buffers)  # pyright: ignore[reportPrivateImportUsage]
        average.n_averaged += 1

    return follow


def averaged(average: nn.Module, policy: nn.Module, t: Training) -> dict[str, Tensor]:
    """The state to save: the moving average, but for the weights that `t.ema_skip` matches."""
    trained = policy.state_dict()
    return {
        n: trained[n] if any(fnmatchcase(plain(n), pattern) for pattern in t.ema_skip) else v
        for n, v in average.state_dict().items()
    }


def matching(pattern: str, names: Sequence[str], option: str) -> list[str]:
    """Those of `names` that `pattern` matches. TrainingError with the nearest where there is none."""
    if chosen := [n for n in names if fnmatchcase(n, pattern)]:
        return chosen
    folders = {n.rsplit(".", k)[0] + ".*" for n in names for k in range(1, n.count(".") + 1)}
    candidates = sorted(folders) if "*" in pattern else list(names)
    raise TrainingError(
        f"--training.{option.replace('_', '-')} {pattern} matches no weight: {nearest(pattern, candidates)}"
    )
