"""What the writers of samples share. They run in environments of their own, without Ulna: numpy alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

EPISODES, ROWS, SIDE = 2, 60, 64  # of a sample; pictures are SIDE × SIDE


def folder(name: str) -> Path:
    """A new folder for one sample, below the one that the command line names."""
    path = Path(sys.argv[1]) / name
    path.mkdir(parents=True)
    return path


def save(
    path: Path,
    source: Path,
    episodes: Sequence[Mapping[str, np.ndarray]],
    tools: Sequence[str],
    wrote: str,
    read_by: str,
    options: Sequence[str] = (),
    attributes: Mapping[str, Sequence[Any]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Beside a sample in `path`, what its import must give.

    source: the dataset. episodes: feature in Ulna → rows, as the tool's own reader gives them. tools:
    packages whose versions count. options: of the import. attributes: of episodes, one value each."""
    arrays = {f"{i} {key}": np.asarray(rows) for i, e in enumerate(episodes) for key, rows in e.items()}
    np.savez(path / "truth.npz", **arrays)
    about = {
        "source": str(source.relative_to(path)),
        "tools": {name: version(name) for name in tools},
        "wrote": wrote,
        "read_by": read_by,
        "options": list(options),
        "attributes": dict(attributes or {}),
        "notes": list(notes),
    }
    (path / "sample.json").write_text(json.dumps(about, indent=1) + "\n")


def scene(rng: np.random.Generator, rows: int, shift: int = 0) -> np.ndarray:
    """Pictures `(rows, SIDE, SIDE, 3)` uint8: a coloured square that moves before a ramp, with some noise."""
    ramp = np.linspace(20, 200, SIDE, dtype=np.float64)
    frames = np.empty((rows, SIDE, SIDE, 3))
    frames[..., 0], frames[..., 1], frames[..., 2] = ramp, ramp[:, None], 60 + shift
    for i in range(rows):
        frames[i, 20:36, i % 48 : i % 48 + 16] = (230, 40, 30 + shift)
    return np.clip(frames + rng.normal(0, 3, frames.shape), 0, 255).astype(np.uint8)


def sway(rng: np.random.Generator, rows: int, *shape: int, size: float = 0.3) -> np.ndarray:
    """Numbers `(rows, *shape)` float32 that move slowly."""
    phase, speed = rng.uniform(0, 6, shape), rng.uniform(0.02, 0.1, shape)
    at = np.arange(rows).reshape(-1, *[1] * len(shape))
    return (size * np.sin(speed * at + phase)).astype(np.float32)
