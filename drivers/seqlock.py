"""A record in memory that two processes share: one writes it, the others read it, and nobody waits.

The first word, a version, is odd while the record is written. A reader that finds it odd, or changed after
its copy, reads again, so that a reading is never half old and half new."""

from __future__ import annotations

import mmap

import numpy as np

from .fence import fence


class Block:
    """One record of `dtype` in shared memory, written by one thread of one process and read by anyone."""

    def __init__(self, memory: mmap.mmap, offset: int, dtype: np.dtype) -> None:
        self._version = np.frombuffer(memory, np.int64, 1, offset)
        self._record = np.frombuffer(memory, dtype, 1, offset + 8)

    @staticmethod
    def size(dtype: np.dtype) -> int:
        """Bytes that a block takes, in whole lines of a cache."""
        return -(-(8 + dtype.itemsize) // 64) * 64

    def write(self, **values: object) -> None:
        self._version[0] += 1
        fence()
        for name, value in values.items():
            self._record[name] = value
        fence()
        self._version[0] += 1

    def read(self) -> np.void:
        for _ in range(100_000):
            version = int(self._version[0])
            if version % 2 == 0:
                fence()
                copy = self._record.copy()
                fence()
                if int(self._version[0]) == version:
                    return copy[0]
        # its writer died in the middle of a write
        return self._record.copy()[0]

    def mend(self) -> None:
        """Make the version even. For a new writer, since the one before may have died in the middle of a
        write."""
        self._version[0] += self._version[0] % 2
