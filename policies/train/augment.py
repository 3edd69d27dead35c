"""Augmentations of images while training, by torchvision: one random change for each window, the same for all
its observation steps, and for each chain the same for all its windows, which are remembered in a row.

They draw from torch's global generator, which the training loop seeds at every optimiser step, so a run
resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...datasets.features import is_depth, is_image

AUGMENTATIONS = {
    "crop": "shift by up to 1/21 of the height (4 pixels of 84, as DrQ), the border repeated",
    "color": "brightness, contrast and saturation by up to 30 %, hue by up to 5 %",
    "blur": "half of the windows by a Gaussian of 0.1 to 2 pixels",
}


def require_known(names: Sequence[str]) -> None:
    """ValueError unless all are names of augmentations."""
    if unknown := [n for n in names if n not in AUGMENTATIONS]:
        raise ValueError(f"there is no augmentation {unknown[0]!r}: there is {', '.join(AUGMENTATIONS)}")


def require_in_place(names: Sequence[str], targets: Sequence[str]) -> None:
    """ValueError where pictures would be shifted and what is learned of their places would not. targets: what
    is learned beside the policy."""
    if "crop" in names and (depth := [k for k in targets if is_depth(k)]):
        raise ValueError(
            f"--augment crop shifts pictures, and not {depth[0]}, which is learned with them: leave it out"
        )


def augment_batch(batch: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """`batch` with its images `(B, T, H, W, C)` uint8, in chains `(B, K, T, H, W, C)`, augmented by those
    `names`; all else is passed on."""
    if not names:
        return dict(batch)
    return {k: _augment(v, tuple(names)) if is_image(k) else v for k, v in batch.items()}


def _augment(images: Tensor, names: tuple[str, ...]) -> Tensor:
    transform = _transform(names, *images.shape[-3:-1])
    rows = [transform(row) for row in images.movedim(-1, -3)]
    return torch.stack(rows).movedim(-3, -1).contiguous()


@lru_cache
def _transform(names: tuple[str, ...], height: int, width: int) -> Any:
    from torchvision.transforms import v2

    parts = {
        "crop": v2.RandomCrop((height, width), padding=max(1, round(height / 21)), padding_mode="edge"),
        "color": v2.ColorJitter(0.3, 0.3, 0.3, 0.05),
        "blur": v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], 0.5),
    }
    return v2.Compose([parts[n] for n in AUGMENTATIONS if n in names])
