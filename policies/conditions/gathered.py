"""What all conditions of a policy say together, and what they carry from decision to decision.

Legend: B batch, M memory width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..contexts.context import Conditions, Reference
from .condition import ConditionNet, ConditionPart


def gathered(
    parts: Sequence[ConditionPart],
    nets: Iterable[nn.Module],
    given: Sequence[Mapping[str, Any]],
    drop: bool,
    training: bool,
) -> Conditions:
    """given: what each of the networks is called with. drop: no row is told any of them; in training some
    rows are not, as the parts say."""
    all_tokens, masks, pooled = list[Tensor](), list[Tensor](), list[Tensor]()
    number: Tensor | None = None
    reference: Reference | None = None
    for part, net, observation in zip(parts, nets, given, strict=True):
        tokens, mask = net(observation)
        rows = torch.full((len(tokens),), drop, device=tokens.device)
        if training and part.drop and not drop:
            rows = torch.rand(len(tokens), device=tokens.device) < part.drop
        rows = rows | ~mask.any(1)
        # a row that is not told has one token, which says so
        nothing: Any = net.nothing
        tokens = torch.where(rows[:, None, None], nothing.to(tokens.dtype), tokens)
        first = torch.arange(tokens.shape[1], device=tokens.device)[None] == 0
        mask = torch.where(rows[:, None], first, mask)
        share = mask.to(tokens.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        all_tokens.append(tokens)
        masks.append(mask)
        pooled.append((tokens * share[..., None]).sum(1))
        if isinstance(net, ConditionNet):
            if (task := net.task(observation)) is not None:
                number = torch.where(rows, 0, task)
            if (said := net.reference(observation)) is not None:
                reference = replace(said, told=said.told & ~rows)
    return Conditions(torch.cat(all_tokens, 1), torch.cat(masks, 1), torch.cat(pooled, -1), number, reference)


def carried(
    nets: Iterable[ConditionNet],
    observation: Mapping[str, Any],
    memory: Tensor | None,
    ticks: int,
    seed: Any,
    drop: bool,
) -> tuple[dict[Any, dict[str, Any]], list[Tensor | None], Tensor | None]:
    """(what those with a memory are called with besides, their memories for the next decision, which is
    `ticks` control ticks later, what the memory holds after theirs).

    memory: `(B, M)`, theirs one after the other and then the context's; None at an episode's first decision.
    For the rest see `ConditionNet.carry`."""
    more: dict[Any, dict[str, Any]] = {}
    after: list[Tensor | None] = []
    for net in nets:
        if net.memory_width:
            own = None if memory is None else memory[:, : net.memory_width]
            memory = None if memory is None else memory[:, net.memory_width :]
            more[net], own = net.carry(observation, own, ticks, seed, drop)
            after.append(own)
    return more, after, None if memory is None or not memory.shape[1] else memory


def joined(memories: Iterable[Tensor | None]) -> Tensor | None:
    """Side by side, `(B, M)`; None where there are none."""
    there = [m for m in memories if m is not None]
    return torch.cat(there, dim=1) if there else None
