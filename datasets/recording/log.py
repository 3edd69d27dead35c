"""The log of a recording in progress: a header that names its streams, then every row that was appended. Read
here, written by in_progress.py."""

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
KIND = 8  # byte of a record at which its kind stands
HEADER, SAMPLES, END = 1, 2, 3
ENTRY = struct.Struct("<HBxIqq")  # stream, flags, bytes of data, t_capture_ns, t_receive_ns
PLACE = struct.Struct("<IQI")  # shard, first byte, bytes
MAX_PAYLOAD = 1 << 28


class UnreadableLog(ValueError):
    """A log does not begin like one of ours; nothing can be recovered from it."""


class DamagedLog(ValueError):
    """Whole rows follow damaged bytes; see mending.py."""


@dataclass(frozen=True)
class Stream:
    """One array of an episode. kind: the codec of frames, None for vectors. by_tick: whether every row comes
    with a control tick, else at the stream's own rate; None in recordings made before this was noted. Raises
    ValueError where the key would lead out of the episode's folder."""

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
    """One row. stream: the number of its stream. data: a vector's bytes, an encoded frame, or, as read from
    a log, the place of a frame (PLACE)."""

    stream: int
    flags: int
    t_capture_ns: int
    t_receive_ns: int
    data: bytes


def record(kind: int, seq: int, payload: bytes) -> bytes:
    """The bytes of one record of a log."""
    head = RECORD.pack(0, len(payload), kind, seq)[4:]
    return crc32c(head + payload).to_bytes(4, "little") + head + payload


@dataclass(frozen=True)
class Log:
    """What a log holds. end: the position behind its first record, the header."""

    folder: Path
    raw: bytes
    streams: tuple[Stream, ...]
    meta: dict[str, Any]
    end: int

    @staticmethod
    def read(folder: Path) -> Log:
        """The log of the recording `folder`. Raises UnreadableLog or OSError."""
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
        """The whole records behind the header; those behind damaged bytes too, with `past_damage`."""
        return _records(self.raw, self.end, past_damage)

    def samples(self, payload: memoryview) -> list[Sample]:
        """The rows of a record; the data of a frame is its place."""
        at, samples = 0, []
        while at < len(payload):
            stream, flags, size, t_capture, t_receive = ENTRY.unpack_from(payload, at)
            data = bytes(payload[at + ENTRY.size : at + ENTRY.size + size])
            samples.append(Sample(stream, flags, t_capture, t_receive, data))
            at += ENTRY.size + size
        return samples

    def frame(self, s: Sample) -> bytes | None:
        """The encoded frame that a row names; None where it is missing or its checksum is wrong."""
        shard, start, size = PLACE.unpack(s.data)
        try:
            with open(shard_file(self.folder, self.streams[s.stream], shard), "rb") as file:
                frame = os.pread(file.fileno(), size, start)
            without_crc(frame)
        except (OSError, ValueError):
            return None
        return frame

    def samples_with_frames(self, payload: memoryview) -> list[tuple[Sample, bytes]] | None:
        """The rows of a record, each with its encoded frame (b"" for a vector); None when a frame is
        missing."""
        pairs = []
        for s in self.samples(payload):
            frame = self.frame(s) if self.streams[s.stream].kind else b""
            if frame is None:
                return None
            pairs.append((s, frame))
        return pairs


Record = tuple[int, int, int, int, memoryview]  # begin, end, kind, sequence number, payload
# the kind SAMPLES or END, and the three zeros that follow it
RECORD_START = re.compile(rb"[\x02\x03]\0\0\0")


def _records(raw: bytes, at: int, past_damage: bool = False) -> Iterator[Record]:
    """The whole records from `at` to the first damaged one; with `past_damage`, those behind it too."""
    view = memoryview(raw)
    while (record := _record_at(view, at)) is not None or past_damage:
        if record is None:
            kinds = (m.start() - KIND for m in RECORD_START.finditer(raw, at + 1 + KIND))
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
