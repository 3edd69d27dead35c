"""JPEG pictures found in a stream of bytes by their own markers, as browsers find them.

Servers of motion JPEG declare one boundary and send another, leave lengths out or give wrong ones, and end
lines as they like; the pictures themselves are always there. A picture is walked from marker to marker (ITU-T
T.81, annex B: each segment says its length), so a preview inside its EXIF data is not taken for a picture."""

from __future__ import annotations

import re

LARGEST = 64 << 20  # bytes without the end of a picture
LARGEST_SIDE = 8192  # px; what claims to be larger is damaged, and is not decoded
HEAD = 4096  # bytes before a picture that are looked through for what its server says about it

BEGIN = b"\xff\xd8\xff"
# within the coded picture: 0xff followed by 0 is data, and by 0xd0..0xd7 a mark to resume at
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
START, END, SCAN = 0xD8, 0xD9, 0xDA
TABLES = frozenset((0xC4, 0xCC, 0xDB, SCAN, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)))  # may stand between scans
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # they hold height and width


class JpegStream:
    """Fed with bytes as they come, in pieces of any size. It keeps at most `LARGEST` of them."""

    def __init__(self) -> None:
        self._buffer, self._head = bytearray(), b""
        self._inside, self._at, self._in_scan = False, 0, False

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """(picture, the bytes before it, `HEAD` of them at most) of each picture that `data` ends, in order;
        an empty picture is one that broke off. ValueError: `LARGEST` bytes came without the end of one."""
        self._buffer += data
        pictures = []
        while (picture := self._next()) is not None:
            pictures.append(picture)
        if len(self._buffer) > LARGEST:
            raise ValueError(f"{LARGEST} bytes without the end of a picture")
        return pictures

    def _next(self) -> tuple[bytes, bytes] | None:
        buffer = self._buffer
        if not self._inside:
            start = buffer.find(BEGIN)
            if start < 0:
                del buffer[:-HEAD]
                return None
            self._head = bytes(buffer[max(0, start - HEAD) : start])
            del buffer[:start]
            self._inside, self._at, self._in_scan = True, 2, False
        try:
            end = self._end()
        except ValueError:
            end = 0
            del buffer[:2]  # the next one may begin anywhere behind
        if end is None:
            return None
        picture = bytes(buffer[:end])
        del buffer[:end]
        self._inside = False
        return picture, self._head

    def _end(self) -> int | None:
        """The index behind the picture at the beginning of the buffer; None where more is to come.
        ValueError: what follows is no picture, or it breaks off."""
        buffer = self._buffer
        while True:
            if self._in_scan:
                marker = MARKER.search(buffer, self._at)
                if marker is None:
                    self._at = max(self._at, len(buffer) - 1)  # its last byte may be half a marker
                    return None
                code = buffer[marker.start() + 1]
                if code == END:
                    return marker.end()
                if code == START:
                    raise ValueError("another picture begins")
                self._at = marker.end()
                if code not in TABLES:  # damage; the decoder will say so
                    continue
                self._at, self._in_scan = marker.start(), False
            while buffer[self._at : self._at + 2] == b"\xff\xff":
                self._at += 1
            segment = buffer[self._at : self._at + 9]
            if segment[:1] not in (b"", b"\xff"):
                raise ValueError("no marker")
            if len(segment) < 4 or (segment[1] in FRAMES and len(segment) < 9):
                return None
            code, length = segment[1], int.from_bytes(segment[2:4], "big")
            if code in (0x00, START, END) or length < 2:
                raise ValueError("no segment")
            if code in FRAMES:
                height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
                if max(height, width) > LARGEST_SIDE or width == 0:
                    raise ValueError("no size of a picture")
            self._at += 2 + length
            self._in_scan = code == SCAN
