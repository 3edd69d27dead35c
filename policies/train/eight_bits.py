"""AdamW whose two moments are kept in 8 bits, block by block (Dettmers, Lewis, Shleifer and Zettlemoyer 2022,
arXiv 2110.02861), by the package bitsandbytes. It is no dependency of ours: who wants it installs it.

Of weights with fewer than 4096 elements the moments stay in 32 bits, as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .error import TrainingError

PACKAGE = "bitsandbytes"
SMALLEST = 4096  # elements of a weight whose moments are kept in 8 bits


def eight_bits(
    rows: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    """rows: groups of weights, as torch's optimisers take them. TrainingError in one sentence where the
    package is not installed, or has no 8-bit step for the device."""
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == PACKAGE
        why = "which is not installed" if missing else f"which cannot be imported here ({error})"
        raise TrainingError(
            f"training.optimiser adamw8bit needs the package {PACKAGE}, {why}: `uv pip install {PACKAGE}`, "
            "or take adamw"
        ) from None
    made: Any = bitsandbytes.optim.AdamW8bit
    weight = torch.nn.Parameter(torch.ones(SMALLEST, device=device))
    weight.grad = torch.ones_like(weight)
    try:  # which devices a version knows shows in a step
        trial = made([weight], lr=0.5)
        trial.step()
        works = bool((weight < 1).all()) and any(v.dtype == torch.uint8 for v in _tensors(trial))
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):
        works = False
    if not works:
        raise TrainingError(
            f"the installed {PACKAGE} has no 8-bit AdamW for {device.type}: take training.optimiser adamw, "
            f"or another version of {PACKAGE}"
        )
    return made(rows, lr=learning_rate, betas=betas, min_8bit_size=SMALLEST)


def _tensors(optimizer: Any) -> list[Tensor]:
    return [v for entry in optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]


def flat_state(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """What an optimiser keeps of one weight, as tensors by name that share no memory. bitsandbytes counts
    steps as an int, has a dict within the dict, and one table of the 8-bit values for all weights."""
    flat: dict[str, Tensor] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            flat |= flat_state(value)
        elif isinstance(value, Tensor):
            flat[name] = value.clone() if name.startswith("qmap") else value
        else:
            flat[name] = torch.tensor(int(value))
    return flat


def unflat(value: Tensor) -> Any:
    """A tensor of `flat_state` as the optimiser had it."""
    return int(value) if value.dtype == torch.int64 and not value.ndim else value
