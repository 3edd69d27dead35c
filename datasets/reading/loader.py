"""Batches in the order of their steps, made ahead by a thread or by worker processes. Which windows a batch
holds is a pure function of the step, so a run resumes exactly, with any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from ..episode import StoreError

Batch = dict[str, np.ndarray]


class WindowSource(Protocol):
    """`windows.Windows` or `mixture.Mixture`."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch: ...

    def vectors(self, indices: np.ndarray) -> Batch: ...

    def values(self, key: str) -> np.ndarray: ...

    def left_out_sentence(self) -> str: ...


def batches(
    source: WindowSource, indices_of: Callable[[int], np.ndarray], first: int, last: int, workers: int = 0
) -> Iterator[Batch]:
    """`source.batch(indices_of(step))` for the steps from `first` up to, without, `last`.

    workers: processes that read and decode; 0: a thread, enough where images are cached or small.
    """
    if workers == 0:
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as reader:
            ahead = reader.submit(lambda s: source.batch(indices_of(s)), first)
            for step in range(first, last):
                batch = ahead.result()
                if step + 1 < last:
                    ahead = reader.submit(lambda s: source.batch(indices_of(s)), step + 1)
                yield batch
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Steps(source, indices_of),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=2,
        multiprocessing_context="fork",  # workers share our memory, and start in milliseconds
    )
    for batch in loader:
        if "failed" in batch:
            raise StoreError(batch["failed"])
        yield {k: v.numpy() for k, v in batch.items()}


class _Steps:
    """For torch's loader, which carries tensors between processes in shared memory. An error is carried as
    its sentence under the key `failed`."""

    def __init__(self, source: WindowSource, indices_of: Callable[[int], np.ndarray]) -> None:
        self.source, self.indices_of = source, indices_of

    def __getitem__(self, step: int) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        try:
            return {k: torch.from_numpy(v) for k, v in self.source.batch(self.indices_of(step)).items()}
        except StoreError as error:
            return {"failed": str(error)}
