"""The bytes of WebSocket frames (RFC 6455 §5)."""

from __future__ import annotations

import struct

import numpy as np

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame_head(opcode: int, length: int) -> bytes:
    if length < 126:
        return struct.pack("!BB", 0x80 | opcode, length)
    if length < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, 127, length)


def close_frame(code: int, reason: str) -> bytes:
    body = struct.pack("!H", code) + reason.encode()[:123]
    return frame_head(CLOSE, len(body)) + body


def unmask(payload: np.ndarray, mask: bytes) -> None:
    """In place: four bytes at a time, then the rest."""
    whole = len(payload) & ~3
    key = np.frombuffer(mask, np.uint8)
    if whole:
        words = payload[:whole].view(np.uint32)
        words ^= key.view(np.uint32)
    if whole < len(payload):
        payload[whole:] ^= key[: len(payload) - whole]
