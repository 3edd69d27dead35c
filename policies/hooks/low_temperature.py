"""Low-temperature sampling (Decision Diffuser, Ajay et al. 2023, arXiv 2211.15657)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..field import Field, Start
from .hook import Hook


@dataclass(frozen=True)
class LowTemperature(Hook):
    """Begin at noise of a smaller deviation than the network was trained at, so that the likelier chunks are
    drawn more often. A solver that adds noise has its own: `DDIM.noise`."""

    scale: float = 0.5
    """Times the noise at the start, 0 or more; 1 changes nothing."""

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"LowTemperature's scale is {self.scale}: it must not be negative")

    def initialise(self, start: Start, field: Field, rng: torch.Generator) -> Start:
        return replace(start, a=self.scale * start.a, noise=self.scale * start.noise)
