"""Tensors that lie in parts in several processes, as FSDP leaves them, and such as lie whole in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def part(value: Any) -> Tensor:
    """What of a tensor lies in this process: all of one that is not spread."""
    return value.to_local() if is_spread(value) else value


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Each whole and in main memory, one after the other; empty unless `keep`. All processes must call it
    with the same tensors."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value: Any = tensor.detach()
        value = value.full_tensor() if is_spread(value) else value
        if keep:
            whole[name] = value.cpu()
    return whole


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as `target` has it: this process's part, where that is spread and of its shape."""
    if not is_spread(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Any = target
    on = value.to(spread.device_mesh.device_type)
    return distribute_tensor(on, spread.device_mesh, spread.placements, src_data_rank=None)


def is_spread(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose import takes time
