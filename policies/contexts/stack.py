"""The plain context of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .context import Context


@dataclass(frozen=True)
class Stack:
    """The last `n_obs_steps` encodings as they are, side by side."""

    def pooled_width(self, width: int, n_obs_steps: int) -> int:
        return width * n_obs_steps

    def __call__(self, z_BTD: Tensor) -> Context:
        return Context(z_BTD, z_BTD.flatten(1))
