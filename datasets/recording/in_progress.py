"""An episode that is being written. It grows in its final layout, beside a log that makes each row durable
when it comes.

    in-progress/<id>/<stream>/value/c/...   shards of frames; a shard gets its index when it is full
    in-progress/<id>/.recording/log         every row: vectors whole, frames by their place in a shard

Each `append` writes one record of the log, after the frames that the record names. A record has a length and
a CRC-32C, so that an incomplete one is recognised. A process that is killed at any instant thus leaves
everything that `append` returned for. After a power cut, frames that the log names may be missing from the
disk, or records of the log; `resume` checks every frame and goes back to the last good record. See log.py for
the log, and mending.py for files that are damaged before their end.

An episode is complete when its zarr.json is there, which is written last and appears by a rename. Then its
folder is renamed into `episodes/`. A folder that was left behind can therefore be finished at any time, any
number of times, with the same result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..durable import Committer, sync_folders, sync_tree, write_all
from ..features import ACTION, REQUESTED
from ..frames import FRAMES_PER_SHARD, array_json, shard_index
from ..vectors import write_vector
from .log import END, ENTRY, HEADER, LOG, PLACE, SAMPLES, DamagedLog, Log, Sample, Stream, record, shard_file


class InProgress:
    """`create` or `resume` it, `append` rows, then `finish` or `discard` it; `close` leaves it to be resumed.

    rows: how many rows each stream has. end: what an END record held, if there is one."""

    def __init__(self, folder: Path, streams: Sequence[Stream], meta: Mapping[str, Any], power: bool) -> None:
        self.folder, self.streams, self.meta = folder, tuple(streams), dict(meta)
        self.last_seq = -1
        self.end: dict[str, Any] | None = None
        self.rows = [0] * len(self.streams)
        # t_capture_ns, t_receive_ns, flags of each row
        self._columns: list[list[tuple[int, int, int]]] = [[] for _ in streams]
        self._vectors: list[list[bytes]] = [[] for _ in streams]
        self._places: list[list[tuple[int, int]]] = [[] for _ in streams]
        self._crcs: list[list[int]] = [[] for _ in streams]
        self._shards: dict[int, int] = {}  # stream -> its open file
        self._log = -1
        self._log_end = 0
        self._power = Committer(self._open_files) if power else None

    @staticmethod
    def create(
        folder: Path, streams: Sequence[Stream], meta: Mapping[str, Any], power: bool = False
    ) -> InProgress:
        """Begin an episode in `folder`. power: rows older than half a second survive a power cut too."""
        (folder / LOG).parent.mkdir(parents=True)
        episode = InProgress(folder, streams, meta, power)
        episode._log = os.open(folder / LOG, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        header = {
            "format": "ulna-recording",
            "version": 1,
            "meta": dict(meta),
            "streams": list(map(asdict, streams)),
        }
        try:
            episode._record(HEADER, 0, json.dumps(header).encode())
            if power:
                os.fsync(episode._log)
                sync_folders(folder / LOG.parent, folder, folder.parent)
        except BaseException:
            episode.close()
            raise
        episode.last_seq = -1
        return episode

    @staticmethod
    def resume(folder: Path, power: bool = False) -> InProgress:
        """The episode up to its last whole record; what follows that is cut off.

        Raises UnreadableLog or OSError; DamagedLog where whole records follow damaged bytes, and then changes
        nothing."""
        log = Log.read(folder)
        episode = InProgress(folder, log.streams, log.meta, power)
        try:
            episode._log, episode._log_end = os.open(folder / LOG, os.O_RDWR | os.O_CLOEXEC), log.end
            for begin, end, kind, seq, payload in log.records(past_damage=True):
                samples = log.samples_with_frames(payload) if kind == SAMPLES else []
                if samples is None:
                    continue
                if begin != episode._log_end:
                    raise DamagedLog(f"{folder / LOG} is damaged at byte {episode._log_end}")
                if kind == END:
                    episode.end = json.loads(bytes(payload))
                episode._replay(samples)
                episode.last_seq, episode._log_end = seq, end
            os.ftruncate(episode._log, episode._log_end)
            episode._cut_shards()
            if power:  # the process before us may not have synced what it wrote
                sync_tree(folder)
        except BaseException:
            episode.close()
            raise
        return episode

    def append(self, seq: int, samples: Sequence[Sample]) -> None:
        """Append all of `samples` or, if killed, none of them; durable when it returns (see the module).

        Raises OSError when none could be written or, with `power`, when rows appended earlier could not be
        synced to disk."""
        if self._power:
            self._power.require()
        parts: list[bytes] = []
        frame_streams: list[int] = []
        try:
            for s in samples:
                data = s.data
                if self.streams[s.stream].kind:
                    place = self._write_frame(s)
                    data = PLACE.pack(len(self._places[s.stream]) // FRAMES_PER_SHARD, *place)
                    self._note_frame(s, place)
                    frame_streams.append(s.stream)
                parts += (ENTRY.pack(s.stream, s.flags, len(data), s.t_capture_ns, s.t_receive_ns), data)
            self._record(SAMPLES, seq, b"".join(parts))
        except OSError:
            for stream in frame_streams:
                self._places[stream].pop()
                self._crcs[stream].pop()
            raise
        for s in samples:
            self._note_row(s)

    def finish(self, meta: Mapping[str, Any], episodes: Path, number: int) -> Path:
        """Move it into the folder `episodes` under `number`; `meta` joins the attributes that `create` was
        given. Raises OSError; then the episode stays in progress, whole."""
        self.complete(meta)
        return put_in_place(self.folder, episodes, number, self._power is not None)

    def note_end(self, seq: int, payload: bytes | memoryview) -> None:
        """Take over the END record of another log."""
        self._record(END, seq, bytes(payload))
        self.end = json.loads(bytes(payload))

    def complete(self, meta: Mapping[str, Any]) -> None:
        """Everything that `finish` does but the move into `episodes`."""
        if self.end is None:
            self._record(END, self.last_seq + 1, json.dumps(dict(meta)).encode())
            self.end = dict(meta)
        for i, stream in enumerate(self.streams):
            if stream.kind:
                self._finish_frames(i, stream)
            elif self.rows[i] or stream.key != REQUESTED:
                self._finish_vectors(i, stream)
        present = [i for i, s in enumerate(self.streams) if (self.folder / s.key).is_dir()]
        attrs = {
            **self.meta,
            **meta,
            "length": self.rows[[s.key for s in self.streams].index(ACTION)],
            "streams": {self.streams[i].key: self._stream_attrs(i) for i in present},
            "content": self._digest(present),
        }
        group = {"zarr_format": 3, "node_type": "group", "attributes": attrs}
        new = self.folder / ".zarr.json"
        new.write_text(json.dumps(group, indent=1))
        self.close()
        if self._power:
            self._power.require()
            sync_tree(self.folder)
        os.replace(new, self.folder / "zarr.json")
        if self._power:
            sync_folders(self.folder)

    def discard(self) -> None:
        """Remove it. It is renamed first, so that a kill does not leave half of it to be recovered."""
        self.close()
        forget(self.folder)

    def close(self) -> None:
        if self._power:
            self._power.stop()
        for file in (*self._shards.values(), self._log):
            with contextlib.suppress(OSError):
                os.close(file)
        self._shards, self._log = {}, -1

    def _open_files(self) -> list[int]:
        """Open files in the order of syncing: frames before the log that names them."""
        return [f for f in (*list(self._shards.values()), self._log) if f >= 0]

    # the log

    def _record(self, kind: int, seq: int, payload: bytes) -> None:
        data = record(kind, seq, payload)
        try:
            write_all(self._log, data, self._log_end)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._log, self._log_end)
            raise
        self._log_end += len(data)
        self.last_seq = seq

    def _replay(self, samples: Sequence[tuple[Sample, bytes]]) -> None:
        """Take in the rows of one record, each with its encoded frame."""
        for s, frame in samples:
            if self.streams[s.stream].kind:
                _, start, size = PLACE.unpack(s.data)
                self._note_frame(replace(s, data=frame), (start, size))
            self._note_row(s)

    def _note_row(self, s: Sample) -> None:
        self.rows[s.stream] += 1
        self._columns[s.stream].append((s.t_capture_ns, s.t_receive_ns, s.flags))
        if not self.streams[s.stream].kind:
            self._vectors[s.stream].append(s.data)

    # the shards

    def _write_frame(self, s: Sample) -> tuple[int, int]:
        shard, in_shard = divmod(len(self._places[s.stream]), FRAMES_PER_SHARD)
        start = sum(self._places[s.stream][-1]) if in_shard else 0
        if not in_shard and s.stream in self._shards:
            self._complete_shard(s.stream)
        if s.stream not in self._shards:
            path = self._shard_file(s.stream, shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._shards[s.stream] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if self._power:
                self._power.new_folders |= {p for p in path.parents if p.is_relative_to(self.folder)}
        write_all(self._shards[s.stream], s.data, start)
        return start, len(s.data)

    def _note_frame(self, s: Sample, place: tuple[int, int]) -> None:
        self._places[s.stream].append(place)
        self._crcs[s.stream].append(int.from_bytes(s.data[-4:], "little"))

    def _shard_file(self, stream: int, shard: int) -> Path:
        return shard_file(self.folder, self.streams[stream], shard)

    def _complete_shard(self, stream: int) -> None:
        """Write the index behind the frames of the stream's last shard, and close that file."""
        places = self._places[stream]
        first = (len(places) - 1) // FRAMES_PER_SHARD * FRAMES_PER_SHARD
        file = self._shards.pop(stream)
        try:
            write_all(file, shard_index(places[first:]), sum(places[-1]))
        finally:
            if self._power:
                self._power.retire(file)
            else:
                os.close(file)

    def _cut_shards(self) -> None:
        """Part of `resume`: cut off frames that no record names, complete the full shards, and reopen the
        last one."""
        for i, stream in enumerate(self.streams):
            if not stream.kind:
                continue
            places, shard = self._places[i], 0
            for shard, first in enumerate(range(0, len(places), FRAMES_PER_SHARD)):
                places_in_shard = places[first : first + FRAMES_PER_SHARD]
                file = os.open(self._shard_file(i, shard), os.O_RDWR | os.O_CLOEXEC)
                os.ftruncate(file, sum(places_in_shard[-1]))
                if len(places_in_shard) == FRAMES_PER_SHARD:
                    try:
                        write_all(file, shard_index(places_in_shard), sum(places_in_shard[-1]))
                    finally:
                        os.close(file)
                else:
                    self._shards[i] = file
            next_shard = shard + 1 if places else 0
            with contextlib.suppress(FileNotFoundError):
                self._shard_file(i, next_shard).unlink()

    # finishing

    def _finish_frames(self, i: int, stream: Stream) -> None:
        folder = self.folder / stream.key / "value"
        folder.mkdir(parents=True, exist_ok=True)
        if i in self._shards:
            self._complete_shard(i)
        text = array_json(self.rows[i], stream.shape, stream.dtype, stream.kind or "blosc", stream.quality)
        (folder / "zarr.json").write_text(text)
        self._finish_columns(i, stream)

    def _finish_vectors(self, i: int, stream: Stream) -> None:
        values = np.frombuffer(b"".join(self._vectors[i]), stream.dtype).reshape(self.rows[i], *stream.shape)
        write_vector(self.folder / stream.key / "value", values)
        self._finish_columns(i, stream)

    def _finish_columns(self, i: int, stream: Stream) -> None:
        columns = np.array(self._columns[i], np.int64).reshape(-1, 3)
        write_vector(self.folder / stream.key / "t_capture_ns", columns[:, 0])
        write_vector(self.folder / stream.key / "t_receive_ns", columns[:, 1])
        if columns[:, 2].any():
            write_vector(self.folder / stream.key / "flags", columns[:, 2].astype(np.uint8))
        (self.folder / stream.key / "zarr.json").write_text(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
        )

    def _stream_attrs(self, i: int) -> dict[str, Any]:
        by_tick = self.streams[i].by_tick
        return {"rows": self.rows[i], **({} if by_tick is None else {"by_tick": by_tick})}

    def _digest(self, streams: Sequence[int]) -> str:
        """A digest of all rows, times and flags, without the episode's labels (task, success, …)."""
        digest = hashlib.blake2b(digest_size=16)
        for i in sorted(streams, key=lambda i: self.streams[i].key):
            s = self.streams[i]
            digest.update(json.dumps([s.key, list(s.shape), s.dtype, s.kind, self.rows[i]]).encode())
            digest.update(np.array(self._columns[i], np.int64).tobytes())
            digest.update(
                np.array(self._crcs[i], np.uint32).tobytes() if s.kind else b"".join(self._vectors[i])
            )
        return digest.hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether an episode in progress is complete, and only has to be moved into `episodes`."""
    return (folder / "zarr.json").is_file()


def put_in_place(folder: Path, episodes: Path, number: int, power: bool = False) -> Path:
    """The last step: remove the log, and rename the folder into `episodes`. Its new path."""
    shutil.rmtree(folder / LOG.parent, ignore_errors=True)
    target = episodes / f"{number:06d}-{folder.name}"
    os.rename(folder, target)
    if power:
        sync_folders(episodes, folder.parent)
    return target


def forget(folder: Path) -> None:
    """Remove a folder of `in-progress`. The rename comes first, so that half of it is never recovered."""
    target = folder.parent / f".discarded-{folder.name}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, target)
    shutil.rmtree(target, ignore_errors=True)
