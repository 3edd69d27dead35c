"""Where the curves of a training go: TensorBoard, wandb, trackio, or what else accelerate
has a tracker for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from .config import flat
from .error import TrainingError, nearest

PROJECT = "ulna"
OURS = ("tensorboard", "wandb", "trackio")


def require_trackers(names: Sequence[str]) -> None:
    """TrainingError in one sentence unless all are names of trackers whose packages are installed."""
    available = {str(t) for t in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainingError(f"there is no tracker {name!r}: {nearest(name, OURS)}")
        if name in LoggerType.list() and name not in available:
            raise TrainingError(
                f"--track {name} needs the package {name}, which is not installed: `uv pip install {name}`"
            )


def make_accelerator(device: str | None, out: Path, track: Sequence[str]) -> Accelerator:
    """device: `cpu`, or None for what accelerate finds."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if cuda and torch.cuda.is_bf16_supported() else "no",
        log_with=list(track) or None,  # it warns of an empty list
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "tensorboard")),
    )


@contextlib.contextmanager
def tracking(accelerator: Accelerator, out: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """The curves of one run, as long as it lasts; named after its folder where a tracker has names.
    `Accelerator.end_training` would end the process group, too, which a next phase needs."""
    settings = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in flat(config).items()}
    names = {t: {"name": out.name} for t in ("wandb", "trackio")}
    accelerator.init_trackers(PROJECT, settings, init_kwargs=names)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
