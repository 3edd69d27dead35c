"""V4L2 camera nodes: whether a node captures, and in which modes.

Layouts and numbers are those of the kernel's `linux/videodev2.h`. A query opens the node without starting a
stream, which any number of processes may do beside the one that streams."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_QUERYCAP = 0x80685600
_ENUM_FMT = 0xC0405602
_ENUM_FRAMESIZES = 0xC02C564A
_ENUM_FRAMEINTERVALS = 0xC034564B
_DISCRETE = 1
_CAPTURE = {0x1: 1, 0x1000: 9}  # capability bit -> buffer type (single-planar, multi-planar)
_DEVICE_CAPS = 0x80000000
MOST = 1000  # entries of any list of a driver; a list without an end must not hang us


@dataclass(frozen=True)
class Mode:
    """fourcc: pixel format, `YUYV`, `MJPG`, … fps: the rates on offer, fastest first; empty when the driver
    lists none."""

    fourcc: str
    width: int
    height: int
    fps: tuple[float, ...]


@dataclass(frozen=True)
class Node:
    """card: the camera's name. bus: where it sits, `usb-0000:00:14.0-2`. capture: whether it gives pictures
    (a webcam has a second node that gives only metadata)."""

    card: str
    bus: str
    driver: str
    capture: bool
    modes: tuple[Mode, ...]


def ask(path: Path) -> Node | None:
    """The node at `path`; None when that is no V4L2 node. OSError: it cannot be opened."""
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        buffer = bytearray(104)
        try:
            fcntl.ioctl(handle, _QUERYCAP, buffer)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        driver, card, bus = (_text(buffer[a:b]) for a, b in ((0, 16), (16, 48), (48, 80)))
        all_caps, node_caps = struct.unpack_from("<II", buffer, 84)
        caps = node_caps if all_caps & _DEVICE_CAPS else all_caps
        kinds = [kind for bit, kind in _CAPTURE.items() if caps & bit]
        return Node(card, bus, driver, bool(kinds), tuple(_modes(handle, kinds[0])) if kinds else ())
    finally:
        os.close(handle)


def _modes(handle: int, kind: int) -> Iterator[Mode]:
    for entry in _entries(handle, _ENUM_FMT, 64, lambda i: struct.pack("<II", i, kind)):
        fourcc = bytes(entry[44:48])
        for size in _entries(handle, _ENUM_FRAMESIZES, 44, lambda i, f=fourcc: struct.pack("<I", i) + f):
            shape, width, height = struct.unpack_from("<III", size, 8)
            if shape != _DISCRETE:  # any size up to a largest one: take that
                width, height = struct.unpack_from("<I", size, 16)[0], struct.unpack_from("<I", size, 28)[0]
            request = fourcc + struct.pack("<II", width, height)
            rates = {
                round(denominator / numerator, 2)
                for entry in _entries(
                    handle, _ENUM_FRAMEINTERVALS, 52, lambda i, a=request: struct.pack("<I", i) + a
                )
                for numerator, denominator in [struct.unpack_from("<II", entry, 20)]
                if numerator
            }
            name = fourcc.decode("latin-1").strip()
            yield Mode(name, width, height, tuple(sorted(rates, reverse=True)))
            if shape != _DISCRETE:
                break


def _entries(handle: int, request: int, size: int, query: Callable[[int], bytes]) -> Iterator[bytearray]:
    for i in range(MOST):
        buffer = bytearray(query(i).ljust(size, b"\0"))
        with contextlib.suppress(OSError):  # EINVAL ends the list; a camera just unplugged ends it too
            fcntl.ioctl(handle, request, buffer)
            yield buffer
            continue
        return


def _text(raw: bytes | bytearray) -> str:
    return bytes(raw).split(b"\0")[0].decode("utf-8", "replace").strip()
