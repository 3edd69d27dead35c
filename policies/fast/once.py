"""What is made of a context once a decision, not at every step of the sampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Once:
    """Calls `make` with tensors and keeps its last few answers, each for the very same tensors, unchanged:
    two contexts alternate where guidance asks with and without a condition."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.kept: deque[tuple[tuple[Tensor | None, ...], list[int], Any]] = deque(maxlen=4)

    def __call__(self, *of: Tensor | None) -> Any:
        versions = [0 if v is None else v._version for v in of]
        for known, then, answer in self.kept:
            if then == versions and all(a is b for a, b in zip(known, of, strict=True)):
                return answer
        answer = self.make(*of)
        self.kept.append((of, versions, answer))
        return answer
