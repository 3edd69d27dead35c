"""What was made of inputs that come again and again, as the demonstrations that a policy is shown come with
each of an episode's requests. A request still says all; what is kept here saves time and changes nothing."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 256 << 20  # of what is kept; what was used last goes last


class Remembered:
    """Results by the bytes of what they were made of. Several threads may ask."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._most, self._bytes, self._lock = most_bytes, 0, threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return Remembered(self._most)  # a copy of a network may become another

    def rows(self, given: Sequence[Tensor], make: Callable[[Tensor], Tensor]) -> Tensor:
        """`(B, ...)`, of tensors `given` with B rows each. make: from the numbers of some rows `(b,)` to
        their results `(b, ...)`; it is called for those that are new."""
        keys = [hashlib.blake2b(b"".join(row), digest_size=16).digest() for row in _bytes(given)]
        with self._lock:
            found = {k: self._kept[k] for k in keys if k in self._kept}
        if new := [i for i, k in enumerate(keys) if k not in found and k not in keys[:i]]:
            made = make(torch.tensor(new, device=given[0].device))
            found |= {keys[i]: row.clone() for i, row in zip(new, made, strict=True)}
        with self._lock:
            for key in keys:
                self._keep(key, found[key])
        return torch.stack([found[k] for k in keys])

    def _keep(self, key: bytes, value: Tensor) -> None:
        if key not in self._kept:
            self._bytes += value.nbytes
        self._kept[key] = value
        self._kept.move_to_end(key)
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def acts(*modules: nn.Module) -> bool:
    """Whether the modules are those of a loaded policy that acts: what they make of an input stays the
    same."""
    learns = any(m.training or any(p.requires_grad for p in m.parameters()) for m in modules)
    return not (learns or torch.is_grad_enabled())


def _bytes(given: Sequence[Tensor]) -> list[list[bytes]]:
    arrays = [t.detach().cpu().numpy() for t in given]
    return [[a[i].tobytes() for a in arrays] for i in range(len(arrays[0]))]
