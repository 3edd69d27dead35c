"""Inpainting of a known prefix (replacement conditioning, Lugmayr et al. 2022, RePaint, arXiv 2201.09865)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.objective import Path
from .hook import Hook, Start, Step


@dataclass(frozen=True)
class Inpaint(Hook):
    """Hold the first actions of the chunk to known values: what has been sent already and cannot be taken
    back.

    prefix: `(B, d, A)` or `(d, A)`, normalised. After every step the first d actions of the chunk are set to
    it at the new level, with the sampler's own first noise; so they follow one straight path, which ends
    exactly on `prefix`. This is replacement conditioning (Lugmayr et al. 2022, RePaint) without its
    resampling."""

    prefix: Tensor

    def _at(self, level: int, step_path: Path, start: Start) -> Tensor:
        prefix = self.prefix.to(start.noise)
        if prefix.ndim == 3:
            prefix = prefix.repeat_interleave(start.candidates, dim=0)
        d = prefix.shape[-2]
        return step_path.alpha[level] * prefix + step_path.sigma[level] * start.noise[:, :d]

    def initialise(self, start: Start, path: Path, rng: torch.Generator) -> Start:
        d, horizon = self.prefix.shape[-2], start.a.shape[1]
        if d > horizon:
            raise ValueError(f"the known prefix has {d} actions, the chunk only {horizon}")
        return start

    def project(self, a: Tensor, step: Step, rng: torch.Generator) -> Tensor:
        prefix = self._at(step.i + 1, step.path, step.start)
        return torch.cat([prefix, a[:, prefix.shape[1] :]], dim=1)
