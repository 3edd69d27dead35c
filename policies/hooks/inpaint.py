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

    known: `(B, d, A)` or `(d, A)`, normalised. After every step the prefix is set to the known value at the
    new level with the sampler's own first noise, so the prefix follows one straight path and ends exactly on
    `known`. Source: replacement conditioning (Lugmayr et al. 2022, RePaint), without its resampling."""

    known: Tensor

    def _at(self, level: int, step_path: Path, start: Start) -> Tensor:
        known = self.known.to(start.noise)
        if known.ndim == 3:
            known = known.repeat_interleave(start.candidates, dim=0)
        d = known.shape[-2]
        return step_path.alpha[level] * known + step_path.sigma[level] * start.noise[:, :d]

    def initialise(self, start: Start, path: Path, rng: torch.Generator) -> Start:
        d, horizon = self.known.shape[-2], start.a.shape[1]
        if d > horizon:
            raise ValueError(f"the known prefix has {d} actions, the chunk only {horizon}")
        return start

    def project(self, a: Tensor, step: Step, rng: torch.Generator) -> Tensor:
        prefix = self._at(step.i + 1, step.path, step.start)
        return torch.cat([prefix, a[:, prefix.shape[1] :]], dim=1)
