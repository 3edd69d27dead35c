"""Change task, phrases, success, weight, return or steps of episodes; what they were is kept with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ..errors import UsageError
from ..parsing import Output, episode_list, unset

EXAMPLE = 'ulna data relabel runs/x/data --episodes 0-4 --task "fold the towel" --success true'


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: str
    """Which, like 3,7-9."""
    task: Annotated[str | None, unset("unchanged", "WORDS")] = None
    """The instruction in words."""
    phrases: Annotated[str | None, unset("unchanged", "WORDS;...")] = None
    """What else the task may be called, with semicolons between: a policy in training is told one of all its
    wordings. `fold the cloth; make the towel small`; "" for none."""
    success: Annotated[Literal["true", "false", "none"] | None, unset("unchanged", "true|false|none")] = None
    """Whether the task was done; none: unknown."""
    weight: Annotated[float | None, unset("unchanged", "FLOAT")] = None
    """How much an episode counts in training with --weights stored."""
    episode_return: Annotated[float | None, unset("unchanged", "FLOAT")] = None
    """Its return, for training with --weights return-rw or return-aw."""
    steps: Annotated[str | None, unset("unchanged", "WORDS@SECONDS;...")] = None
    """The steps of the task in the order of the plan, with semicolons between, each with the time when it was
    done, in seconds after the beginning; without a time: never. `open the box@2.1; put the cube in`."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.edit import relabel
    from ....datasets.steps import parts
    from ....datasets.store import EpisodeStore

    labels: dict[str, Any] = {}
    if args.task is not None:
        labels["task"] = args.task
    if args.phrases is not None:
        labels["phrases"] = parts(args.phrases)
    if args.success is not None:
        labels["success"] = {"true": True, "false": False, "none": None}[args.success]
    if args.weight is not None:
        labels["weight"] = args.weight
    if args.episode_return is not None:
        labels["return"] = args.episode_return
    if args.steps is not None:
        labels["steps"] = [_step(part) for part in parts(args.steps)]
    selection = episode_list(args.episodes)
    relabel(EpisodeStore.open(args.data), selection, labels)
    words = ", ".join(f"{k} = {v!r}" for k, v in labels.items())
    out.answer({"episodes": selection, "labels": labels}, f"{len(selection)} episodes: {words}")
    return 0


def _step(text: str) -> tuple[str, float | None]:
    """`open the box@2.1` → ("open the box", 2.1)."""
    words, at, seconds = text.rpartition("@")
    try:
        return (words.strip(), float(seconds)) if at else (text.strip(), None)
    except ValueError:
        raise UsageError(f"a step is written WORDS@SECONDS, or WORDS, not {text.strip()!r}") from None
