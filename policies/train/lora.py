"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): a weight W stays, and a product of two thin
matrices is learned beside it, W + alpha / rank · B A.

They act on the weight, not on the layer's output, so attention, which takes its weights out of its layers,
has them as linear layers and convolutions do. A checkpoint holds the sums and nothing of this: it is loaded,
served and started from like any other. The state that a training resumes from holds both apart."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..matrices import matrices
from ..recipe import Training
from .error import TrainingError, nearest

ADAPTER = "lora_"
INNER = "parametrizations."


class LowRank(nn.Module):
    """A weight `(rows, ...)` to itself and its adapter. At first B is 0, so nothing is changed.

    dropout: share of the inputs that the adapter does without in a step, the same for all rows of the batch
    (published: for each row its own), the others counting as much more."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        new = {"dtype": weight.dtype, "device": weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, columns, **new))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, **new))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)

    def forward(self, weight: Tensor) -> Tensor:
        a = self.lora_A
        if self.training and self.dropout.p:
            a = a * self.dropout(torch.ones_like(a[0]))
        return weight + (self.scale * (self.lora_B @ a)).view_as(weight)


def adapt(policy: nn.Module, t: Training) -> None:
    """Give the modules that `t.lora` names adapters. TrainingError where a pattern names none, or a setting
    is out of its range."""
    if t.lora_rank < 1 or not t.lora_alpha > 0 or not 0 <= t.lora_dropout < 1:
        raise TrainingError(
            f"training.lora-rank {t.lora_rank} is at least 1, training.lora-alpha {t.lora_alpha:g} above 0, "
            f"training.lora-dropout {t.lora_dropout:g} from 0 to below 1"
        )
    masks = [type(m).__name__ for m in policy.modules() if getattr(m, "masks_weights", False)]
    if t.lora and masks:
        raise TrainingError(
            f"training.lora does not go with {masks[0].removesuffix('Net')}, which masks the weights that "
            "adapters would stand for: leave it out"
        )
    of_policy = list(matrices(policy))
    for pattern in t.lora:
        chosen = [m for m in of_policy if _matches(pattern, m.module_name, m.full_name)]
        if not chosen:
            names = sorted({m.module_name for m in of_policy})
            folders = sorted({n.rsplit(".", k)[0] + ".*" for n in names for k in range(1, n.count(".") + 1)})
            near = nearest(pattern, [*folders, *names])
            raise TrainingError(
                f"--training.lora {pattern} matches no linear layer, convolution or attention: {near}"
            )
        for m in chosen:
            if not parametrize.is_parametrized(m.module, m.name):
                adapter = LowRank(m.value, t.lora_rank, t.lora_alpha, t.lora_dropout)
                adapter.train(m.module.training)
                parametrize.register_parametrization(m.module, m.name, adapter)


def merge(policy: nn.Module) -> None:
    """Add the adapters to their weights, for good."""
    for module in list(policy.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def plain(name: str) -> str:
    """Of a weight in the state of a network with adapters, what it is called without them; of an adapter, the
    name of its weight with `.lora_A` or `.lora_B` after it."""
    head, inner, tail = name.rpartition(INNER)
    if not inner:
        return name
    weight, _, last = tail.partition(".")
    return head + weight + ("" if last == "original" else f".{last.rpartition('.')[2]}")


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2].startswith(ADAPTER)


def adapted(policy: nn.Module) -> set[str]:
    """The plain names of the weights that have adapters."""
    return {plain(n).rpartition(".")[0] for n, _ in policy.named_parameters() if is_adapter(n)}


def adaptation(policy: nn.Module, start_named: bool) -> str:
    """What is trained of a policy with adapters, in one sentence. start_named: whether its weights came from
    a checkpoint."""
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for n, p in policy.named_parameters() if not is_adapter(n))
    stays = "" if start_named else "; training.start names no checkpoint, so what they adapt stays as built"
    return (
        f"{len(adapted(policy))} matrices have adapters; {trained} numbers are trained, where the policy has "
        f"{total}{stays}"
    )


def _matches(pattern: str, *names: str) -> bool:
    return any(fnmatchcase(n, pattern) for n in names)
