"""Inpainting of a known prefix (replacement conditioning, Lugmayr et al. 2022, RePaint, arXiv 2201.09865)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..field import Field
from .hook import Hook


@dataclass(frozen=True)
class Inpaint(Hook):
    """Hold the past actions of a chunk to what was really sent, so that a new chunk goes on from the old one.

    After every step the first actions of the chunk are set to the known ones at the new level, with the
    sampler's own first noise; so they follow one straight path, which ends exactly on them. This is
    replacement conditioning (Lugmayr et al. 2022, RePaint) without its resampling. Where the request has no
    past, at an episode's first decision, the chunk is drawn freely."""

    @property
    def needs_past(self) -> bool:
        return True

    def project(self, a: Tensor, i: int, field: Field, rng: torch.Generator) -> Tensor:
        past = field.past()
        if past is None:
            return a
        d = past.shape[1]
        if d > a.shape[1]:
            raise ValueError(f"the known prefix has {d} actions, the chunk only {a.shape[1]}")
        assert field.start is not None
        level = field.path[i]
        prefix = level.alpha * past.to(a) + level.sigma * field.start.noise[:, :d]
        return torch.cat([prefix, a[:, d:]], dim=1)
