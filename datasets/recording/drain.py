"""Empties the ring of a recorder into the store: in the writing process while it records, and in whoever opens
the store after both of its processes were killed."""

from __future__ import annotations

import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import encode
from ..layout import EPISODES, IN_PROGRESS, next_number
from . import mending
from .finishing import KILLED, finish_cut_off
from .in_progress import InProgress, is_complete
from .intake import fit
from .log import LOG, Sample, Stream, UnreadableLog
from .ring import CLOSE, DISCARD, END, SAMPLES, START, Entry, Ring

# stream, flags, bytes of the value, t_capture_ns, t_receive_ns, its shape (frames)
ROW = struct.Struct("<HB5xQqq4H")
BATCH_BYTES = 32 << 20
BEHIND = 0.1  # share of the ring


class Drain:
    """Empties a ring into the store `store`, entry by entry; each is freed once it is durable."""

    def __init__(self, store: Path, ring: Ring, power: bool) -> None:
        self.store, self.ring, self.power = store, ring, power
        self.finished: list[Path] = []
        self.closed = False
        self._episode: InProgress | None = None
        self._id = -1
        self._encoders = ThreadPoolExecutor(2, "encoder")

    def run(self, producer_gone: bool = False) -> bool:
        """Whatever is there, up to `BATCH_BYTES`; whether there was any. OSError: the disk takes no more."""
        batch = list(self.ring.entries(BATCH_BYTES, producer_gone))
        for (rows, _), group in groupby(batch, lambda e: (e.kind == SAMPLES, e.episode)):
            entries = list(group)
            wanted = rows and self._find(
                entries[0]
            )  # else of an episode that was discarded, or finished before
            coming = [self._encode(e) if wanted else [] for e in entries]
            for entry, samples in zip(entries, coming, strict=True):
                self._take(entry, samples)
                self.ring.free(entry.end)
        return bool(batch)

    def run_dry(self, interrupted: str) -> list[Path]:
        """All of it; then the episode in progress, if any, is finished as interrupted. The episodes
        finished."""
        while self.run(producer_gone=True):
            pass
        if self._episode is not None:
            self._finish({"interrupted": interrupted})
        return self.finished

    def close(self) -> None:
        self._encoders.shutdown()
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    def _find(self, entry: Entry) -> bool:
        """Whether the entry's episode is in progress here, or can be made so."""
        if self._id != entry.episode:
            self._id = entry.episode
            if self._episode is not None:
                self._episode.close()
            folder = self.store / IN_PROGRESS / f"{entry.episode:012x}"
            self._episode = mending.resume(folder, self.power) if (folder / LOG).is_file() else None
        return self._episode is not None

    def _encode(self, entry: Entry) -> list[Any]:
        """Futures of the samples of an entry, or the samples themselves."""
        assert self._episode is not None
        found, at = [], 0
        while at < len(entry.payload):
            stream_number, flags, size, t_capture, t_receive, *shape = ROW.unpack_from(entry.payload, at)
            at += ROW.size
            stream = self._episode.streams[stream_number]
            raw = entry.payload[at : at + size]
            at += size
            if stream.kind:
                dims = len(stream.shape)
                frame = np.frombuffer(raw, stream.dtype).reshape(shape[:dims])
                arguments = (stream_number, flags, t_capture, t_receive, frame, stream)
                # one thread, as long as it keeps up, leaves a processor free on which the control loop wakes
                # at once
                behind = self.ring.used > BEHIND
                found.append(self._encoders.submit(_sample, *arguments) if behind else _sample(*arguments))
            else:
                found.append(Sample(stream_number, flags, t_capture, t_receive, bytes(raw)))
        return found

    def _take(self, entry: Entry, coming: list[Any]) -> None:
        if entry.kind == START:
            self._start(entry)
        elif entry.kind == SAMPLES:
            if self._episode is not None and coming and entry.seq > self._episode.last_seq:
                self._episode.append(entry.seq, [c if isinstance(c, Sample) else c.result() for c in coming])
        elif entry.kind == END:
            if self._find(entry):
                self._finish(json.loads(bytes(entry.payload)))
            else:
                self._put_in_place(entry)
        elif entry.kind == DISCARD:
            if self._find(entry) and self._episode is not None:
                self._episode.discard()
            self._episode = None
        elif entry.kind == CLOSE:
            self.closed = True

    def _start(self, entry: Entry) -> None:
        """Idempotent: a process that was killed may have begun, or even finished, the episode before."""
        folder = self.store / IN_PROGRESS / f"{entry.episode:012x}"
        try:
            if self._find(entry):
                return
        except UnreadableLog:
            pass
        if is_complete(folder) or list((self.store / EPISODES).glob(f"*-{folder.name}")):
            return
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first row
        header = json.loads(bytes(entry.payload))
        streams = [Stream(**{**s, "shape": tuple(s["shape"])}) for s in header["streams"]]
        self._episode = InProgress.create(folder, streams, header["meta"], self.power)

    def _put_in_place(self, entry: Entry) -> None:
        """A process that was killed may have finished the episode but for its place."""
        folder = self.store / IN_PROGRESS / f"{entry.episode:012x}"
        if folder.is_dir():
            self.finished += finish_cut_off(folder, self.store / EPISODES, KILLED)

    def _finish(self, meta: dict[str, Any]) -> None:
        episode = self._episode
        assert episode is not None
        if not any(episode.rows):
            episode.discard()
        else:
            lost = self.ring.dropped[: len(episode.streams)].tolist()
            dropped = {s.key: n for s, n in zip(episode.streams, lost, strict=True) if n}
            if dropped:
                meta = {**meta, "dropped": dropped}
            self.finished.append(episode.finish(meta, self.store / EPISODES, next_number(self.store)))
        self._episode = None


def _sample(
    number: int, flags: int, t_capture: int, t_receive: int, frame: np.ndarray, stream: Stream
) -> Sample:
    assert stream.kind
    return Sample(
        number, flags, t_capture, t_receive, encode(fit(frame, stream), stream.kind, stream.quality)
    )
