"""Training with every weight, its gradient, its moments and its average spread over the processes: FSDP (Zhao
et al. 2023, arXiv 2304.11277), where `accelerate launch --use_fsdp` asks for it.

Launching, precision, gradient clipping and the options are accelerate's; weights are shared out by torch's
`fully_shard` itself, since which of a policy's modules are called as a whole only we know, and since
accelerate does nothing of it on processors, and says nothing. Compute is as without: what a block needs is
put together before it and let go after it. What is written is whole, as of one process, so a run may go on
with another number of them, and without FSDP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..policy import Policy
from .curriculum import curriculum
from .error import TrainingError
from .recompute import blocks, called


def is_sharded() -> bool:
    """Whether the weights are to be spread, once accelerate has begun: not where no other process was
    started."""
    return _set("ACCELERATE_USE_FSDP") and torch.distributed.is_initialized()


def require_shardable(policy: Policy) -> None:
    """TrainingError in one sentence for a training that asks the network outside of its forward pass, or
    keeps what cannot be put together again."""
    t, recipe = policy.recipe.training, policy.recipe
    needs = recipe.objective.needs
    objective = type(recipe.objective).__name__
    reasons = {
        "training.optimiser adamw8bit, whose bytes are of whole weights": t.optimiser == "adamw8bit",
        "training.compile": t.compile,
        "training.cache-encodings, which asks the encoder alone": t.cache_encodings,
        f"{objective}, which differentiates its network while it computes the loss": needs.forward_mode
        or needs.second_order
        or needs.output == "energy",
        f"{objective}, which measures its windows between the steps": curriculum(recipe.objective)
        is not None,
        "a network that masks its weights": any(getattr(m, "masks_weights", False) for m in policy.modules()),
        f"weights that are single numbers, as {recipe.name} has": any(
            not p.ndim for p in policy.parameters()
        ),
        "FSDP_OFFLOAD_PARAMS": _set("FSDP_OFFLOAD_PARAMS"),
        "FSDP_ACTIVATION_CHECKPOINTING (take --training.recompute true)": _set(
            "FSDP_ACTIVATION_CHECKPOINTING"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise TrainingError(f"accelerate's --use_fsdp does not go with {reason}: leave one of them out")


def _set(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


def share_out(policy: Policy, average: AveragedModel, device: torch.device) -> None:
    """Let each process keep its part of the policy's weights, and of those of `average`, an equal copy. Both
    are changed in place; the policy then computes by being called, on all processes at once."""
    from torch.distributed.fsdp import fully_shard

    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "shard_grad_op")
    for unit in [*units(policy)]:
        fully_shard(unit, reshard_after_forward=again)
    fully_shard(policy)
    copies = {id(w): nn.Parameter(w.detach().clone(), w.requires_grad) for w in policy.parameters()}
    for name, weight in policy.named_parameters(remove_duplicate=False):
        _put(average.module, name, copies[id(weight)])
    for buffer in average.module.buffers():
        buffer.data = buffer.data.to(device)


def units(policy: Policy) -> Iterator[nn.Module]:
    """What is put together at a time. The rest is together as long as a step takes."""
    for network in [*policy.conditions, *(c for c in policy.children() if c is not policy.conditions)]:
        for block in blocks(network):
            yield from called(block)


@contextlib.contextmanager
def in_blocks(policy: Policy) -> Iterator[None]:
    """TrainingError in one sentence where a weight is read that is not put together."""
    try:
        yield
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise TrainingError(
            f"{policy.recipe.name} reads weights of a block without calling it, so they are not there: it "
            "cannot be trained with accelerate's --use_fsdp"
        ) from error


@contextlib.contextmanager
def holding(accelerator: Accelerator, model: Any, sharded: bool) -> Iterator[None]:
    """While gradients are added up that need not be exchanged yet."""
    if not sharded:
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def apart(policy: nn.Module) -> None:
    """Let go of what a pass without gradients has put together."""
    from torch.distributed.fsdp import FSDPModule

    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def put_together(average: AveragedModel, state: Mapping[str, Tensor]) -> Policy:
    """The policy that was averaged as an ordinary one, with the whole tensors `state`."""
    policy = cast(Policy, average.module)
    for name, weight in [*policy.named_parameters(remove_duplicate=False)]:
        _put(policy, name, nn.Parameter(state[name], weight.requires_grad))
    policy.to("cpu").load_state_dict(state)
    return policy


def _put(module: nn.Module, name: str, weight: nn.Parameter) -> None:
    owner, _, own = name.rpartition(".")
    module.get_submodule(owner)._parameters[own] = weight
