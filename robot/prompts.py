"""Demonstrations that a policy is shown when it acts, out of a dataset.

Legend: P demonstrations, L ticks of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..datasets.features import ACTION, Feature, require_same
from ..policies.serving.metadata import Metadata

PROMPT = "prompt."  # of the keys of a request that hold demonstrations
MASK = PROMPT + "mask"
SHOW_SOME = "the policy is shown demonstrations of its task: name a dataset that has some (--prompt FOLDER)"


class Prompts:
    """Of the dataset `source` those `episodes`, in this order, whatever the task; or for each task the
    episodes that have it as theirs and did not fail, which of them by the seed. most: no more than so many,
    0: none, as if nobody had shown anything; by default as many as the policy reads.

    FeatureMismatch or ValueError, both sides shown, where the policy cannot be shown them."""

    def __init__(
        self,
        source: str | Path,
        metadata: Metadata,
        episodes: Sequence[int] | None = None,
        most: int | None = None,
    ) -> None:
        # who shows nothing need not wait for what reads datasets
        from ..datasets.opened import open_dataset
        from ..datasets.reading.spec import WindowSpec
        from ..datasets.reading.windows import Windows

        needed = shown_to(metadata)
        if not needed:
            raise ValueError("the policy is shown no demonstrations: leave out --prompt")
        number, length = needed[MASK].shape[:2]
        keys = [k.removeprefix(PROMPT) for k in needed if k != MASK]
        store = open_dataset(source)
        require_same(
            store.features, {k: metadata.features[k] for k in keys}, f"the dataset {source}", "the policy"
        )
        rate = metadata.control_hz
        if rate and abs(store.control_hz - rate) > 0.01 * rate:
            raise ValueError(
                f"the policy was trained on {rate:g} Hz data and {source} is of {store.control_hz:g} Hz: "
                "show it demonstrations of its rate"
            )
        if episodes is not None and len(episodes) > number:
            raise ValueError(
                f"{len(episodes)} episodes are to be shown, and the policy reads up to {number}: choose some "
                "(--prompt-episodes)"
            )
        self._source, self._needed, self._episodes = source, needed, episodes
        self._most = number if most is None else min(most, number)
        spec = WindowSpec(
            1, 1, keys=tuple(k for k in keys if k != ACTION), prompts=number, prompt_length=length
        )
        chosen = None if episodes is None else list(episodes)
        self._windows = Windows(store, spec, chosen, cache="none")
        self._last: tuple[tuple[int, ...], dict[str, np.ndarray]] = (), {}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._needed)

    def __str__(self) -> str:
        """What is shown, for a report."""
        if not self._most:
            return "no demonstrations"
        if self._episodes is None:
            return f"up to {self._most} of the task's episodes in {self._source}"
        return f"episodes {', '.join(map(str, self._episodes[: self._most]))} of {self._source}"

    def of(self, task: str, seed: int) -> Mapping[str, np.ndarray]:
        """What the requests of an episode hold, by key, `(P, L, *shape)`; ValueError where no demonstration
        has its task."""
        chosen = tuple(self._chosen(task, seed)) if self._most else ()
        if chosen != self._last[0] or not self._last[1]:
            self._last = chosen, self._read(chosen)
        return self._last[1]

    def _chosen(self, task: str, seed: int) -> list[int]:
        """Places of the episodes among those that are read."""
        if self._episodes is not None:
            return list(range(len(self._windows.episodes)))[: self._most]
        alike = [
            i
            for i, e in enumerate(self._windows.episodes)
            if e.attrs.get("task", "") == task and e.attrs.get("success") is not False and e.length
        ]
        if not alike:
            raise ValueError(
                f"{self._source} has no demonstration of the task {task!r}: record one, or name the episodes "
                "that are to be shown (--prompt-episodes)"
            )
        return np.random.default_rng(seed).permutation(alike)[: self._most].tolist()

    def _read(self, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        blank = {k: np.zeros(f.shape, f.dtype) for k, f in self._needed.items()}
        if chosen:
            for key, values in self._windows.shown(np.array(chosen)).items():
                blank[key][: len(chosen)] = values
        return blank


def shown_to(metadata: Metadata) -> dict[str, Feature]:
    """What the policy is told, or may be told, that is of demonstrations, by key."""
    told = metadata.conditions | metadata.optional
    return {k: f for k, f in told.items() if k.startswith(PROMPT)}


def prompts_for(
    metadata: Metadata, source: str | Path, episodes: Sequence[int] | None = None, most: int | None = None
) -> Prompts | None:
    """Of the dataset `source`, as `Prompts`; None where it is "" and the policy is shown nothing. ValueError
    where one of them lacks."""
    if not source and any(k.startswith(PROMPT) for k in metadata.conditions):
        raise ValueError(SHOW_SOME)
    if not source and episodes is not None:
        raise ValueError("--prompt-episodes are of a dataset: name it by --prompt FOLDER")
    return Prompts(source, metadata, episodes, most) if source else None
