"""Batches in the order of their steps, made ahead by a thread or by worker processes. Which windows a batch
holds, and what is drawn for them, are pure functions of the step, so a run resumes exactly, with any number
of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from ..episode import StoreError

Batch = dict[str, np.ndarray]
STREAM = 0x77696E  # tells these draws from others of the same seed and step


class WindowSource(Protocol):
    """`windows.Windows` or `mixture.Mixture`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch: ...

    def vectors(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch: ...

    def values(self, key: str) -> np.ndarray: ...

    @property
    def n_ticks(self) -> int: ...

    def observed_ticks(self, indices: np.ndarray) -> np.ndarray: ...

    def observations(self, ticks: np.ndarray) -> Batch: ...

    def left_out_sentence(self) -> str: ...


def step_rng(seed: int, process: int = 0) -> Callable[[int], np.random.Generator]:
    """The generator of every step of a run, a pure function of seed, step and process."""
    return lambda step: np.random.default_rng([STREAM, seed, step, process])


def batches(
    source: WindowSource,
    indices_of: Callable[[int], np.ndarray],
    first: int,
    last: int,
    workers: int = 0,
    rng_of: Callable[[int], np.random.Generator] | None = None,
) -> Iterator[Batch]:
    """`source.batch(indices_of(step), rng_of(step))` for the steps from `first` up to, without, `last`.

    workers: processes that read and decode; 0: a thread, enough where images are cached or small. rng_of:
    draws what is random in the windows of a step; None: `step_rng(0)`.
    """
    steps = _Steps(source, indices_of, rng_of or step_rng(0))
    if workers == 0:
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as reader:
            ahead = reader.submit(steps.batch, first)
            for step in range(first, last):
                batch = ahead.result()
                if step + 1 < last:
                    ahead = reader.submit(steps.batch, step + 1)
                yield batch
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(
        steps,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=2,
        multiprocessing_context="fork",  # workers share our memory, and start in milliseconds
    )
    for batch in loader:
        if "failed" in batch:
            raise StoreError(batch["failed"])
        yield {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in batch.items()}


class _Steps:
    """For torch's loader, which carries tensors between processes in shared memory, and text, of which there
    are no tensors, as it is. An error is carried as its sentence under the key `failed`."""

    def __init__(
        self,
        source: WindowSource,
        indices_of: Callable[[int], np.ndarray],
        rng_of: Callable[[int], np.random.Generator],
    ) -> None:
        self.source, self.indices_of, self.rng_of = source, indices_of, rng_of

    def batch(self, step: int) -> Batch:
        return self.source.batch(self.indices_of(step), self.rng_of(step))

    def __getitem__(self, step: int) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        try:
            batch = self.batch(step)
            return {k: v if v.dtype.kind == "U" else torch.from_numpy(v) for k, v in batch.items()}
        except StoreError as error:
            return {"failed": str(error)}
