"""Steps: what the task of an episode is made of, in words, and when each was done. They are a label of the
episode, its attribute `steps`, in the order of the plan; a time is that of the control ticks, so that a trim
leaves it right.

    [{"words": "open the box", "changes_ns": [t]}, {"words": "put the cube in", "changes_ns": []}]

changes_ns: when the step was done, undone, done again; empty where it never was done. A simulated task whose
class has `steps` is labelled while it is recorded, other episodes by `ulna data relabel --steps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .episode import Episode
from .features import ACTION


@dataclass(frozen=True)
class Step:
    words: str
    changes_ns: tuple[int, ...] = ()


def steps_of(episode: Episode) -> list[Step]:
    """The steps of an episode. Without the label it has one, its task, which is done at the last tick where
    the episode is marked as a success."""
    if steps := episode.attrs.get("steps"):
        return [Step(s["words"], tuple(s["changes_ns"])) for s in steps]
    if episode.attrs.get("success") is True and episode.length:
        return [Step(episode.task, (int(episode.times_ns(ACTION)[0][-1]),))]
    return [Step(episode.task)]


def marks(steps: Sequence[Step], episode: Episode) -> np.ndarray:
    """`(T, n)` bool: which of n steps are done at each control tick."""
    ticks = episode.times_ns(ACTION)[0]
    done = [np.searchsorted(np.array(s.changes_ns, np.int64), ticks, side="right") % 2 == 1 for s in steps]
    return np.stack(done, axis=1)


class Observed:
    """Steps as somebody who knows which are done sees them change, tick by tick."""

    def __init__(self) -> None:
        self._changes: dict[str, list[int]] = {}

    def see(self, done: Mapping[str, bool], time_ns: int) -> None:
        """done: by the steps' words, in the order of the plan."""
        for words, is_done in done.items():
            changes = self._changes.setdefault(words, [])
            if is_done != bool(len(changes) % 2):
                changes.append(time_ns)

    def label(self) -> list[dict[str, Any]]:
        """As the episode's attribute; empty where nobody knew."""
        return [{"words": words, "changes_ns": changes} for words, changes in self._changes.items()]
