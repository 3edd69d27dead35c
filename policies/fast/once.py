"""What is made of a context once a decision, and of a time once for all, not at each step of the sampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..objectives.objective import known


class Once:
    """Calls `make` with tensors and keeps its last few answers, each for the very same tensors, unchanged:
    two contexts alternate where guidance asks with and without a condition."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.kept: deque[tuple[tuple[Tensor | None, ...], list[int], Any]] = deque(maxlen=4)

    def __call__(self, *of: Tensor | None) -> Any:
        versions = [0 if v is None else v._version for v in of]
        for before, then, answer in self.kept:
            if then == versions and all(a is b for a, b in zip(before, of, strict=True)):
                return answer
        answer = self.make(*of)
        self.kept.append((of, versions, answer))
        return answer


MOST_TIMES = 1024


class Times:
    """Calls `make` with two times `(B,)`, and keeps its answer `(1, …)` for the times of a path, which are
    the same in every decision. None is ever forgotten, since CUDA graphs read them."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.make = make
        self.answers: dict[tuple[float, float], Tensor] = {}

    def __call__(self, s: Tensor, t: Tensor) -> Tensor:
        first, last = known(s), known(t)
        if first is None or last is None:
            return self.make(s, t)
        if (first, last) not in self.answers:
            one = self.make(s[:1], t[:1])
            # what is made while a graph is captured exists only when it is replayed
            if len(self.answers) >= MOST_TIMES or (s.is_cuda and torch.cuda.is_current_stream_capturing()):
                return one.expand(len(s), -1)
            self.answers[first, last] = one
        return self.answers[first, last]
