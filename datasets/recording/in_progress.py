"""An episode while it is written: it grows in its final layout, beside a log that makes every row durable as
it comes.

    in-progress/<id>/<stream>/value/c/...   shards of frames, appended to; their index follows when they are full
    in-progress/<id>/.recording/log         every row: vectors whole, frames by their place in a shard

A record of the log is one `append`, ends complete or not at all (length and CRC-32C), and is written after
the frames that it names, so a process killed at any instant leaves everything that `append` returned for.
After a power cut the disk may lack what the log names, or the log what the disk holds; `resume` checks every
frame and goes back to the last good record. See recording_log.py for the log, and mending.py for files that
are damaged before their end.

The episode is finished when its own zarr.json is there, which comes last and by a rename; the rename of the
folder into `episodes/` follows. Whoever finds the folder can therefore finish it, again and again, with the
same result."""

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
    """`create` or `resume`, `append` rows, then `finish` or `discard`; `close` leaves it as it is, to be
    resumed."""

    def __init__(self, folder: Path, streams: Sequence[Stream], meta: Mapping[str, Any], power: bool) -> None:
        self.folder, self.streams, self.meta = folder, tuple(streams), dict(meta)
        self.last_seq = -1
        self.end: dict[str, Any] | None = None  # what an END record held
        self.rows = [0] * len(self.streams)
        self._columns: list[list[tuple[int, int, int]]] = [
            [] for _ in streams
        ]  # t_capture_ns, t_receive_ns, flags
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
        """power: rows survive a power cut too, at most half a second behind."""
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
        """The episode up to its last whole record; what lies behind that is cut off. UnreadableLog, OSError;
        DamagedLog where whole records lie behind it, and nothing is changed."""
        log = Log.read(folder)
        episode = InProgress(folder, log.streams, log.meta, power)
        try:
            episode._log, episode._log_end = os.open(folder / LOG, os.O_RDWR | os.O_CLOEXEC), log.end
            for begin, end, kind, seq, payload in log.records(past_damage=True):
                samples = log.whole(payload) if kind == SAMPLES else []
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
            if power:  # what the one before us wrote it may not have synced
                sync_tree(folder)
        except BaseException:
            episode.close()
            raise
        return episode

    def append(self, seq: int, samples: Sequence[Sample]) -> None:
        """Durable when it returns (see the module). All of `samples` or, after a kill, none. OSError: none;
        or, with `power`, what was appended before could not be brought to the disk's platters."""
        if self._power:
            self._power.require()
        parts: list[bytes] = []
        noted: list[int] = []
        try:
            for s in samples:
                data = s.data
                if self.streams[s.stream].kind:
                    place = self._write_frame(s)
                    data = PLACE.pack(len(self._places[s.stream]) // FRAMES_PER_SHARD, *place)
                    self._note_frame(s, place)
                    noted.append(s.stream)
                parts += (ENTRY.pack(s.stream, s.flags, len(data), s.t_capture_ns, s.t_receive_ns), data)
            self._record(SAMPLES, seq, b"".join(parts))
        except OSError:
            for stream in noted:
                self._places[stream].pop()
                self._crcs[stream].pop()
            raise
        for s in samples:
            self._note_row(s)

    def finish(self, meta: Mapping[str, Any], episodes: Path, number: int) -> Path:
        """Make it an episode of the folder `episodes`, under `number`; meta joins what `create` was given.
        OSError: it stays in progress, whole."""
        self.complete(meta)
        return put_in_place(self.folder, episodes, number, self._power is not None)

    def note_end(self, seq: int, payload: bytes | memoryview) -> None:
        """It was ended before, by this."""
        self._record(END, seq, bytes(payload))
        self.end = json.loads(bytes(payload))

    def complete(self, meta: Mapping[str, Any]) -> None:
        """All of `finish` but its place."""
        if self.end is None:
            self._record(END, self.last_seq + 1, json.dumps(dict(meta)).encode())
            self.end = dict(meta)
        for i, stream in enumerate(self.streams):
            if stream.kind:
                self._finish_frames(i, stream)
            elif self.rows[i] or stream.key != REQUESTED:
                self._finish_vectors(i, stream)
        there = [i for i, s in enumerate(self.streams) if (self.folder / s.key).is_dir()]
        attrs = {
            **self.meta,
            **meta,
            "length": self.rows[[s.key for s in self.streams].index(ACTION)],
            "streams": {self.streams[i].key: self._noted(i) for i in there},
            "content": self._digest(there),
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
        """Forget it. Renamed first, so that a kill does not leave half of it to be recovered."""
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
        """Frames before the log that names them."""
        return [f for f in (*list(self._shards.values()), self._log) if f >= 0]

    # the log

    def _record(self, kind: int, seq: int, payload: bytes) -> None:
        whole = record(kind, seq, payload)
        try:
            write_all(self._log, whole, self._log_end)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._log, self._log_end)
            raise
        self._log_end += len(whole)
        self.last_seq = seq

    def _replay(self, samples: Sequence[tuple[Sample, bytes]]) -> None:
        """Take the rows of one record, each with its frame, if it names one."""
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
        """Put the index behind the frames of the stream's last shard, and close it."""
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
        """After `resume`: away with what no record names; complete the shards that are full, reopen the last
        one."""
        for i, stream in enumerate(self.streams):
            if not stream.kind:
                continue
            places, shard = self._places[i], 0
            for shard, first in enumerate(range(0, len(places), FRAMES_PER_SHARD)):
                of_shard = places[first : first + FRAMES_PER_SHARD]
                file = os.open(self._shard_file(i, shard), os.O_RDWR | os.O_CLOEXEC)
                os.ftruncate(file, sum(of_shard[-1]))
                if len(of_shard) == FRAMES_PER_SHARD:
                    try:
                        write_all(file, shard_index(of_shard), sum(of_shard[-1]))
                    finally:
                        os.close(file)
                else:
                    self._shards[i] = file
            following = shard + 1 if places else 0
            with contextlib.suppress(FileNotFoundError):
                self._shard_file(i, following).unlink()

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

    def _noted(self, i: int) -> dict[str, Any]:
        by_tick = self.streams[i].by_tick
        return {"rows": self.rows[i], **({} if by_tick is None else {"by_tick": by_tick})}

    def _digest(self, streams: Sequence[int]) -> str:
        """Of all rows, times and flags; what is noted about the episode (task, success, …) has no part in
        it."""
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
    """Whether everything of an episode in progress is written and only its place is missing."""
    return (folder / "zarr.json").is_file()


def put_in_place(folder: Path, episodes: Path, number: int, power: bool = False) -> Path:
    """The last step: the log goes, and the folder becomes an episode."""
    shutil.rmtree(folder / LOG.parent, ignore_errors=True)
    target = episodes / f"{number:06d}-{folder.name}"
    os.rename(folder, target)
    if power:
        sync_folders(episodes, folder.parent)
    return target


def forget(folder: Path) -> None:
    gone = folder.parent / f".discarded-{folder.name}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
