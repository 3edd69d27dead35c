"""Moves rows from the ring of a recorder into the store. The writing process does it while recording; whoever
opens the store next does it after both processes were killed."""

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
    """Empties a ring into the store at `store`. An entry of the ring is freed once its rows are durable.

    episodes: the folders of the episodes that were finished. closed: the recorder said that it is done."""

    def __init__(self, store: Path, ring: Ring, power: bool) -> None:
        self.store, self.ring, self.power = store, ring, power
        self.episodes: list[Path] = []
        self.closed = False
        self._episode: InProgress | None = None
        self._id = -1
        self._encoders = ThreadPoolExecutor(2, "encoder")

    def run(self, producer_gone: bool = False) -> bool:
        """Write the entries that are in the ring, up to `BATCH_BYTES`; whether there was any. Raises OSError
        when the disk cannot be written."""
        batch = list(self.ring.entries(BATCH_BYTES, producer_gone))
        for (rows, _), group in groupby(batch, lambda e: (e.kind == SAMPLES, e.episode)):
            entries = list(group)
            # else these rows belong to an episode that was discarded, or finished before
            in_progress = rows and self._find(entries[0])
            encodings = [self._encode(e) if in_progress else [] for e in entries]
            for entry, samples in zip(entries, encodings, strict=True):
                self._take(entry, samples)
                self.ring.free(entry.end)
        return bool(batch)

    def run_dry(self, reason: str) -> list[Path]:
        """Empty the ring, then finish the episode in progress, if any, as interrupted by `reason`. Returns
        all episodes that were finished."""
        while self.run(producer_gone=True):
            pass
        if self._episode is not None:
            self._finish({"interrupted": reason})
        return self.episodes

    def close(self) -> None:
        self._encoders.shutdown()
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    def _find(self, entry: Entry) -> bool:
        """Whether the entry's episode is in progress; it is resumed if need be."""
        if self._id != entry.episode:
            self._id = entry.episode
            if self._episode is not None:
                self._episode.close()
            folder = self.store / IN_PROGRESS / f"{entry.episode:012x}"
            self._episode = mending.resume(folder, self.power) if (folder / LOG).is_file() else None
        return self._episode is not None

    def _encode(self, entry: Entry) -> list[Any]:
        """The samples of an entry; frames may be futures of samples."""
        assert self._episode is not None
        samples, at = [], 0
        while at < len(entry.payload):
            stream_number, flags, size, t_capture, t_receive, *shape = ROW.unpack_from(entry.payload, at)
            at += ROW.size
            stream = self._episode.streams[stream_number]
            raw = entry.payload[at : at + size]
            at += size
            if stream.kind:
                dims = len(stream.shape)
                frame = np.frombuffer(raw, stream.dtype).reshape(shape[:dims])
                sample = (stream_number, flags, t_capture, t_receive, frame, stream)
                # encode in this thread as long as it keeps up: that leaves a processor free for the control
                # loop to wake on at once
                behind = self.ring.share_used > BEHIND
                samples.append(self._encoders.submit(_sample, *sample) if behind else _sample(*sample))
            else:
                samples.append(Sample(stream_number, flags, t_capture, t_receive, bytes(raw)))
        return samples

    def _take(self, entry: Entry, samples: list[Any]) -> None:
        if entry.kind == START:
            self._start(entry)
        elif entry.kind == SAMPLES:
            if self._episode is not None and samples and entry.seq > self._episode.last_seq:
                self._episode.append(entry.seq, [c if isinstance(c, Sample) else c.result() for c in samples])
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
        """Begin an episode, unless a process that was killed has begun, or even finished, it before."""
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
        """Finish the last step for a process that was killed between finishing an episode and moving it."""
        folder = self.store / IN_PROGRESS / f"{entry.episode:012x}"
        if folder.is_dir():
            self.episodes += finish_cut_off(folder, self.store / EPISODES, KILLED)

    def _finish(self, meta: dict[str, Any]) -> None:
        episode = self._episode
        assert episode is not None
        if not any(episode.rows):
            episode.discard()
        else:
            counts = self.ring.dropped[: len(episode.streams)].tolist()
            drops = {s.key: n for s, n in zip(episode.streams, counts, strict=True) if n}
            if drops:
                meta = {**meta, "dropped": drops}
            self.episodes.append(episode.finish(meta, self.store / EPISODES, next_number(self.store)))
        self._episode = None


def _sample(
    number: int, flags: int, t_capture: int, t_receive: int, frame: np.ndarray, stream: Stream
) -> Sample:
    assert stream.kind
    return Sample(
        number, flags, t_capture, t_receive, encode(fit(frame, stream), stream.kind, stream.quality)
    )
