"""Steps: what the task of an episode is made of, in words, and when each was done. They are a label of the
episode, its attribute `steps`, in the order of the plan; a time is that of the control ticks, so that a trim
leaves it right.

    [{"words": "open the box", "changes_ns": [t]}, {"words": "put the cube in", "changes_ns": []}]

changes_ns: when the step was done, undone, done again; empty where it never was done. A simulated task whose
class has `steps` is labelled while it is recorded, other episodes by `ulna data relabel --steps`.

What a policy in training is told of an episode, see `told`, is its task, in any of the wordings of the
attribute `phrases` (`ulna data relabel --phrases`), or the step that is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .episode import Episode
from .features import ACTION

Told = Literal["task", "steps"]


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


def wordings(episode: Episode) -> list[str]:
    """The task of an episode, and what else it may be called, each once."""
    return list(dict.fromkeys((episode.task, *episode.attrs.get("phrases", ()))))


def under_way(episode: Episode) -> np.ndarray:
    """`(T,)` unicode: at each control tick the words of the first step that is not done; of the last step
    where all are."""
    steps = steps_of(episode)
    done = marks(steps, episode)
    pending = np.where(done.all(1), len(steps) - 1, np.argmin(done, axis=1))
    return np.array([s.words for s in steps], np.str_)[pending]


def answers(episode: Episode, of: Told) -> np.ndarray:
    """`(T,)` unicode: at each control tick what there is to say of an episode to somebody who is told its
    task: the step that is under way, or the task in its own words; empty where it has no label that says
    more than what is told."""
    if not episode.attrs.get("steps" if of == "steps" else "phrases"):
        return np.zeros(episode.length, "U1")
    return under_way(episode) if of == "steps" else np.full(episode.length, episode.task)


def told(episode: Episode, told: Told) -> list[str]:
    """All that a policy may be told of an episode: its wordings, or its steps."""
    return wordings(episode) if told == "task" else list(dict.fromkeys(s.words for s in steps_of(episode)))


def parts(text: str) -> list[str]:
    """What stands between the semicolons."""
    return [p.strip() for p in text.split(";") if p.strip()]


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
