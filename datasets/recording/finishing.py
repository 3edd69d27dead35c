"""Finishes a recording that was cut off: an episode is made of what its log holds."""

from __future__ import annotations

from pathlib import Path

from ..layout import next_number
from . import mending
from .in_progress import forget, is_complete, put_in_place
from .log import LOG, UnreadableLog

KILLED = "the recorder was killed"


def finish_cut_off(path: Path, episodes: Path, reason: str) -> list[Path]:
    """Make an episode of the folder `path` of `in-progress`; its new folder, or [] if the recording holds no
    row. Raises OSError or UnreadableLog; then `path` stays as it is."""
    if is_complete(path):
        return [put_in_place(path, episodes, next_number(episodes.parent), power=True)]
    try:
        episode = mending.resume(path, power=True)
    except (FileNotFoundError, UnreadableLog):
        if [p.name for p in path.iterdir()] == [LOG.parent.name]:  # killed before its first row
            forget(path)
            return []
        raise
    try:
        if not any(episode.rows):
            episode.discard()
            return []
        meta = episode.end if episode.end is not None else {"interrupted": reason}
        return [episode.finish(meta, episodes, next_number(episodes.parent))]
    finally:
        episode.close()
