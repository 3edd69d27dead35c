"""The contract of hooks: where a test-time method enters the sampler, so that it composes with any policy.
Each method has a file of its own beside this one.

Of the nine seams of the design (H0 to H8) four live inside the sampler and are here:

    H1 initialise   the starting chunk, the level to start at, the number of candidates
    H2 transform    the prediction at every step (guidance)
    H3 project      the chunk after every step (inpainting, constraints)
    H5 score        candidates; the best survives

A hook overrides what it needs; the rest is the identity. Hooks hold no state between calls. Each draws from a
random stream of its own, so that adding one never changes another's draws nor the base sampler's. Legend: B
observations, N candidates each, H horizon, A action dimensions. Chunks are normalised to [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contexts.context import Context
from ..objectives.objective import Path
from ..pred import Pred


@dataclass(frozen=True)
class Start:
    """a `(B·N, H, A)`: the chunk at level `level`, candidates of one observation in a row. noise: the
    standard normal draw behind it, same shape. candidates: N."""

    a: Tensor
    noise: Tensor
    level: int = 0
    candidates: int = 1


@dataclass(frozen=True)
class Step:
    """Where the sampler is: from level `i` to `i + 1` of `path`; `start` is what it began from."""

    i: int
    path: Path
    start: Start

    @property
    def last(self) -> bool:
        return self.i == len(self.path) - 1


class Hook:
    """The identity at every seam."""

    def initialise(self, start: Start, path: Path, rng: torch.Generator) -> Start:
        """H1. May not call critics."""
        return start

    def transform(self, pred: Pred, step: Step, context: Context, rng: torch.Generator) -> Pred:
        """H2. May not change the number of candidates."""
        return pred

    def project(self, a: Tensor, step: Step, rng: torch.Generator) -> Tensor:
        """H3. `a` is at level `step.i + 1`."""
        return a

    def score(self, chunks_BNHA: Tensor, context: Context) -> Tensor | None:
        """H5. `(B, N)`, higher is better, -inf rules a candidate out; None to abstain. `context` is not
        repeated."""
        return None
