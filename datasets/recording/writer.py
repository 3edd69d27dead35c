"""The writer within one process: it subscribes to the episode loop and writes one episode at a time into a
store.

Rows are checked when they arrive, and durable when `tick` or `append` returns (see in_progress.py). The
finished episode appears in the store by one rename. `recorder.Recorder` does the same behind a ring in shared
memory, for loops that must not wait for encoding or disk."""

from __future__ import annotations

import contextlib
import secrets
import weakref
from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

import numpy as np

from ..codec import encode
from ..episode import StoreError
from ..layout import EPISODES, IN_PROGRESS, next_number
from ..store import EpisodeStore
from .in_progress import InProgress
from .intake import Intake, Row, fit, require_json
from .log import Sample

Durability = Literal["process", "power"]


class EpisodeWriter:
    """`start`, `tick` per control tick, then `end` or `discard`. Usable again for the next episode.

    Holds the store's lock until `close` (or the end of `with`). durability: rows survive `kill -9` with
    "process", and those older than half a second a power cut with "power". own_rate: features that come by
    `append` at their own rate."""

    def __init__(
        self, store: EpisodeStore, durability: Durability = "process", own_rate: Collection[str] = ()
    ) -> None:
        self.store, self.durability = store, durability
        self._intake = Intake(store.features, store.storage, own_rate)
        self._episode: InProgress | None = None
        self._seq = 0
        locks = contextlib.ExitStack()
        locks.enter_context(store.recording())
        self._release = weakref.finalize(self, locks.close)  # for those who forget `close`

    def close(self) -> None:
        """Let another writer have the store. An episode in progress stays, to be recovered when the store is
        opened."""
        if self._episode is not None:
            self._episode.close()
            self._episode = None
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, meta: Mapping[str, Any]) -> None:
        """Begin an episode. meta: JSON values; `task` is the instruction in words."""
        if self._episode is not None:
            raise StoreError("an episode is being written already: end or discard it first")
        if not self._release.alive:
            raise StoreError("this writer was closed: make a new one")
        require_json(meta)
        with self._disk():
            self._intake.begin(next_number(self.store.path))
            folder = self.store.path / IN_PROGRESS / secrets.token_hex(6)
            self._episode = InProgress.create(
                folder, self._intake.streams, meta, power=self.durability == "power"
            )
        self._seq = 0

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int] | None = None,
    ) -> None:
        """Append one row of every feature, with `action.requested` if given. Other keys are ignored.

        times_ns: key → (t_capture_ns, t_receive_ns). An image captured when the last one was is not stored
        again. Raises StoreError that names the episode, tick and key that do not fit; earlier rows stay.
        """
        self._require_started()
        self._put(self._intake.tick(values, times_ns, flags))

    def append(
        self, key: str, value: np.ndarray, t_capture_ns: int, t_receive_ns: int, flags: int = 0
    ) -> None:
        """Append one row of one stream."""
        self._require_started()
        self._put([self._intake.single(key, value, t_capture_ns, t_receive_ns, flags)])

    def end(self, meta: Mapping[str, Any]) -> None:
        """Finish the episode; `meta` (such as `success`) joins what `start` was given. An episode without
        rows is discarded."""
        episode = self._require_started()
        if not any(episode.rows):
            self.discard()
            return
        require_json(meta)
        with self._disk():
            episode.finish(meta, self.store.path / EPISODES, next_number(self.store.path))
        self._episode = None
        self.store.refresh()

    def interrupt(self, reason: str) -> None:
        """End the episode in progress, if any, and mark it as interrupted by `reason`."""
        if self._episode is not None:
            self.end({"interrupted": reason})

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        if self._episode is not None:
            self._episode.discard()
            self._episode = None

    def _require_started(self) -> InProgress:
        if self._episode is None:
            raise StoreError("no episode has been started")
        return self._episode

    def _put(self, rows: list[Row]) -> None:
        episode = self._require_started()
        samples = [encode_row(row, episode) for row in rows]
        with self._disk():
            episode.append(self._seq, samples)
        self._seq += 1

    @contextlib.contextmanager
    def _disk(self) -> Any:
        """Turn an OSError into a StoreError. The episode in progress ends; its rows wait on disk to be
        recovered."""
        try:
            yield
        except OSError as error:
            rows = 0
            if self._episode is not None:
                rows = self._episode.rows[0]
                self._episode.close()
                self._episode = None
            outcome = (
                f"its {rows} ticks come back when the dataset is opened with room to write" if rows else ""
            )
            raise StoreError(
                f"cannot write to {self.store.path}: {error.strerror or error}; the episode in progress is "
                f"cut off, {outcome or 'it had no ticks'}; finished episodes are intact"
            ) from error


def encode_row(row: Row, episode: InProgress) -> Sample:
    """`row` with its value encoded, as it goes to disk."""
    stream = episode.streams[row.stream]
    if stream.kind:
        data = encode(fit(row.value, stream), stream.kind, stream.quality)
    else:
        data = np.ascontiguousarray(row.value).tobytes()
    return Sample(row.stream, row.flags, row.t_capture_ns, row.t_receive_ns, data)
