"""The log of a recording in progress: every row that was appended, and what the recording is of. Read here,
written by in_progress.py."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google_crc32c import value as crc32c

from ..codec import Kind, without_crc
from ..features import require_name
from ..frames import shard_path

LOG = Path(".recording") / "log"
RECORD = struct.Struct("<IIB3xQ")  # CRC-32C of all that follows, bytes of payload, kind, sequence number
KIND = 8  # where in a record it stands
HEADER, SAMPLES, END = 1, 2, 3
ENTRY = struct.Struct("<HBxIqq")  # stream, flags, bytes of data, t_capture_ns, t_receive_ns
PLACE = struct.Struct("<IQI")  # shard, first byte, bytes
MAX_PAYLOAD = 1 << 28


class UnreadableLog(ValueError):
    """The beginning of a log is not ours; nothing can be recovered from it."""


class DamagedLog(ValueError):
    """Rows that are whole follow what is not; see mending.py."""


@dataclass(frozen=True)
class Stream:
    """One array of an episode. kind: the codec of frames, None for vectors. by_tick: whether every row comes
    with a control tick, else at the stream's own rate; None where nobody knows (recordings of before it was
    noted). ValueError where the key would lead out of the episode's folder."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind | None = None
    quality: int = 95
    by_tick: bool | None = None

    def __post_init__(self) -> None:
        require_name(self.key)


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a stream, by its number; data: a vector's bytes, or an encoded frame."""

    stream: int
    flags: int
    t_capture_ns: int
    t_receive_ns: int
    data: bytes


def record(kind: int, seq: int, payload: bytes) -> bytes:
    head = RECORD.pack(0, len(payload), kind, seq)[4:]
    return crc32c(head + payload).to_bytes(4, "little") + head + payload


@dataclass(frozen=True)
class Log:
    """What a log holds, as it was found. end: of its first record, which says what is recorded."""

    folder: Path
    raw: bytes
    streams: tuple[Stream, ...]
    meta: dict[str, Any]
    end: int

    @staticmethod
    def read(folder: Path) -> Log:
        """UnreadableLog, OSError."""
        raw = (folder / LOG).read_bytes()
        _, end, kind, _, payload = next(_records(raw, 0), (0, 0, 0, 0, b""))
        if kind != HEADER:
            raise UnreadableLog(f"{folder / LOG} does not begin like a recording")
        try:
            header = json.loads(bytes(payload))
            if header["format"] != "ulna-recording" or int(header["version"]) > 1:
                raise UnreadableLog(f"{folder / LOG} was written by a newer Ulna: update Ulna")
            streams = tuple(Stream(**{**s, "shape": tuple(s["shape"])}) for s in header["streams"])
            return Log(folder, raw, streams, dict(header["meta"]), end)
        except UnreadableLog:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableLog(f"{folder / LOG} does not begin like a recording ({error!r})") from None

    def records(self, past_damage: bool) -> Iterator[Record]:
        """Of the rows and of the end, whole ones."""
        return _records(self.raw, self.end, past_damage)

    def samples(self, payload: memoryview) -> list[Sample]:
        """The rows of a record; of a frame its place."""
        at, found = 0, []
        while at < len(payload):
            stream, flags, size, t_capture, t_receive = ENTRY.unpack_from(payload, at)
            data = bytes(payload[at + ENTRY.size : at + ENTRY.size + size])
            found.append(Sample(stream, flags, t_capture, t_receive, data))
            at += ENTRY.size + size
        return found

    def frame(self, s: Sample) -> bytes | None:
        """The encoded frame that a row names, None where its bytes are not those that were written."""
        shard, start, size = PLACE.unpack(s.data)
        try:
            with open(shard_file(self.folder, self.streams[s.stream], shard), "rb") as file:
                frame = os.pread(file.fileno(), size, start)
            without_crc(frame)
        except (OSError, ValueError):
            return None
        return frame

    def whole(self, payload: memoryview) -> list[tuple[Sample, bytes]] | None:
        """The rows of a record with their frames; None when one of these is not there."""
        found = []
        for s in self.samples(payload):
            frame = self.frame(s) if self.streams[s.stream].kind else b""
            if frame is None:
                return None
            found.append((s, frame))
        return found


Record = tuple[int, int, int, int, memoryview]  # where it begins and ends, kind, sequence number, payload
A_RECORD = re.compile(
    rb"[\x02\x03]\0\0\0"
)  # the kind of one of rows, or of the end, and what fills up after it


def _records(raw: bytes, at: int, past_damage: bool = False) -> Iterator[Record]:
    """Each whole record from `at`, up to the first that is not, or over it to the next that is."""
    view = memoryview(raw)
    while (record := _record_at(view, at)) is not None or past_damage:
        if record is None:
            kinds = (m.start() - KIND for m in A_RECORD.finditer(raw, at + 1 + KIND))
            record = next((r for place in kinds if (r := _record_at(view, place)) is not None), None)
            if record is None:
                return
        yield record
        at = record[1]


def _record_at(raw: memoryview, at: int) -> Record | None:
    if at + RECORD.size > len(raw):
        return None
    crc, size, kind, seq = RECORD.unpack_from(raw, at)
    end = at + RECORD.size + size
    if size > MAX_PAYLOAD or end > len(raw) or crc32c(bytes(raw[at + 4 : end])) != crc:
        return None
    return at, end, kind, seq, raw[at + RECORD.size : end]


def shard_file(folder: Path, stream: Stream, shard: int) -> Path:
    return shard_path(folder / stream.key / "value", shard, len(stream.shape))
