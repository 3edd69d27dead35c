"""Bring a LeRobot folder (v2.1 or v3.0) into a dataset, with its real timestamps."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from .parsing import Output, episode_list, progress

EXAMPLE = "ulna data import path/to/lerobot_folder --out runs/x/data --image-size 96"


@dataclass
class Args:
    source: tyro.conf.Positional[str]
    """The LeRobot folder (the one with meta/ in it)."""
    out: str
    """Folder of the new dataset."""
    image_size: int = 0
    """Resize images to this many pixels square, by area; 0 keeps them as recorded."""
    episodes: str = ""
    """Only these, like 0-9,12."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ...datasets.info import describe
    from ...datasets.lerobot import import_lerobot
    from .data_info import _text

    if args.image_size and not 16 <= args.image_size <= 4096:
        raise ValueError(f"--image-size must lie in 16..4096, not {args.image_size}")
    size = (args.image_size, args.image_size) if args.image_size else None
    chosen = episode_list(args.episodes) if args.episodes else None
    with progress("importing") as bar:
        shown = bar.add_task("", total=None, note="")
        store = import_lerobot(
            args.source,
            args.out,
            size,
            chosen,
            lambda done, total: bar.update(shown, completed=done, total=total),
        )
    d = describe(store)
    out.answer(d, _text(d))
    return 0
