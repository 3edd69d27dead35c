"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of a block of the network only what enters it
is kept, and its inside is computed again for the gradients. The same gradients, less memory, more time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..policy import Policy
from .error import TrainingError


def recompute(policy: Policy) -> None:
    """Let every block of the policy's stacks do so while it trains. TrainingError where there is none, or the
    objective differentiates in a way that does not go through it."""
    needs = policy.recipe.objective.needs
    if needs.forward_mode or needs.second_order or needs.output == "energy":
        raise TrainingError(
            f"training.recompute does not go with {type(policy.recipe.objective).__name__}, which "
            "differentiates its network while it computes the loss: leave it out"
        )
    if masking := [type(m).__name__ for m in policy.modules() if getattr(m, "masks_weights", False)]:
        raise TrainingError(
            f"training.recompute does not go with {masking[0].removesuffix('Net')}, whose blocks would be "
            "computed again with other weights: leave it out"
        )
    of_policy = list(blocks(policy))
    if not of_policy:
        raise TrainingError(
            f"{policy.recipe.name} has no stack of blocks: leave training.recompute out, or take a backbone "
            "of several layers"
        )
    for block in of_policy:
        for part in called(block):
            _wrap(part)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are members of a list and consist of others. Not those with statistics of
    the batch, which would count twice."""
    for child in network.children():
        member = isinstance(network, nn.ModuleList) and not isinstance(child, nn.ModuleList)
        if not member or any(isinstance(m, _BatchNorm) for m in child.modules()):
            yield from blocks(child)
        elif list(child.children()):
            yield child


def called(block: nn.Module) -> list[nn.Module]:
    """The block, where it is called as a whole; else those of its parts that are, and consist of others."""
    if _has_forward(block):
        return [block]
    return [m for m in block.children() if _has_forward(m) and list(m.children())]


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _wrap(block: nn.Module) -> None:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    block.forward = forward
