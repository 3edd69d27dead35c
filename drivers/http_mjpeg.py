"""Motion JPEG over HTTP, read directly: `multipart/x-mixed-replace` as IP cameras, mjpg-streamer and phone apps send it.

Beside FFmpeg's reader this one passes a frame on when its last byte is there (not when the next one begins), skips to the newest frame
when decoding cannot keep up, and hears `X-Timestamp`, the camera's own clock.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import threading
import time
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from .arm import DeviceError
from .capture import Refused
from .clock_offset import ClockOffset

OPEN_TIMEOUT_S = 3.0
LARGEST = 64 << 20  # bytes of one JPEG; a length beyond is no length


class NotMultipart(DeviceError):
    """The address answers, with something that is not a stream of JPEG parts."""


class HttpMjpeg:
    """One connection to one stream. latency_s: from capture to arrival, of the quickest frames. read_timeout_s: of silence before
    the connection is given up. A thread takes parts off the network as they come; `read` decodes the newest."""

    def __init__(self, url: str, latency_s: float, read_timeout_s: float) -> None:
        parts = urlsplit(url)
        self._parts, self._read_timeout_s, self._latency_s = parts, read_timeout_s, latency_s
        self.name = without_password(url)
        # outlives a connection: a camera that greets with an old picture does not pass it off as new
        self._clock = ClockOffset(latency_s)
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._socket: socket.socket
        self._fresh = threading.Condition()
        self._part: tuple[bytes, int, int, int] | None = None
        self._ended = ""
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """DeviceError: nobody answers. NotMultipart. Refused: a password is missing, the path does not exist."""
        p = self._parts
        kind = http.client.HTTPSConnection if p.scheme == "https" else http.client.HTTPConnection
        connection = kind(p.hostname or "", p.port, timeout=OPEN_TIMEOUT_S)
        self._connection = connection
        headers = {}
        if p.username is not None:
            secret = f"{unquote(p.username)}:{unquote(p.password or '')}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(secret).decode()
        try:
            connection.connect()
            # kept, because a response without length takes it away from the connection
            self._socket = connection.sock
            connection.request("GET", urlunsplit(("", "", p.path or "/", p.query, "")), headers=headers)
            response = self._response = connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            raise DeviceError(f"no camera answers at {self.name} ({e or type(e).__name__})") from None
        if response.status in (401, 403):
            raise Refused(
                f"{self.name} wants a password: write http://user:password@… into device"
                if p.username is None
                else f"{self.name} does not accept this user and password"
            )
        if response.status == 404:
            raise Refused(f"{self.name} has no such path (404): look up the stream's address in its manual")
        if response.status != 200:
            raise DeviceError(f"{self.name} answers {response.status} {response.reason}")
        if not response.headers.get_content_type().startswith("multipart/"):
            raise NotMultipart(f"{self.name} sends {response.headers.get_content_type()}, no multipart JPEG")
        boundary = str(response.headers.get_param("boundary") or "").removeprefix("--")
        self._part, self._ended = None, ""
        self._socket.settimeout(self._read_timeout_s)
        self._thread = threading.Thread(
            target=self._receive, args=(response, f"--{boundary}".encode()), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._thread.join()
            self._thread = None
        if self._response is not None:
            self._response.close()
            self._response = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def read(self, timeout_s: float) -> tuple[np.ndarray, int, int, int] | None:
        """(RGB `(H, W, 3)` uint8, t_capture_ns, t_receive_ns, number of the part) of the newest part that was not read yet.

        None: none came, or what came is no whole JPEG. DeviceError: the stream ended."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._part is not None or self._ended, timeout_s)
            part, self._part = self._part, None
        if part is None:
            if self._ended:
                raise DeviceError(f"{self.name} {self._ended}")
            return None
        jpeg, capture_ns, receive_ns, number = part
        color = decode(jpeg)
        return None if color is None else (color, capture_ns, receive_ns, number)

    def _receive(self, response: http.client.HTTPResponse, boundary: bytes) -> None:
        number, why = 0, "closed the connection"
        try:
            while (part := _next_part(response, boundary)) is not None:
                jpeg, stamp_s = part
                receive_ns = time.monotonic_ns()
                if stamp_s is None:
                    capture_ns = receive_ns - round(self._latency_s * 1e9)
                else:
                    capture_ns = self._clock.capture_ns(round(stamp_s * 1e9), receive_ns)
                with self._fresh:
                    self._part = (jpeg, capture_ns, receive_ns, number)
                    self._fresh.notify()
                number += 1
        except TimeoutError:
            why = f"sent nothing for {self._read_timeout_s:.1f} s"
        except (OSError, http.client.HTTPException, ValueError) as e:
            why = f"broke off ({e or type(e).__name__})"
        with self._fresh:
            self._ended = why
            self._fresh.notify()


def _next_part(response: http.client.HTTPResponse, boundary: bytes) -> tuple[bytes, float | None] | None:
    """The next JPEG and its `X-Timestamp`, s; None at the end of the stream. ValueError: a length that is none."""
    while not (line := response.readline(4096)).startswith(boundary):
        if not line:
            return None
    length, stamp_s = None, None
    while (line := response.readline(4096)).strip():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
            if not 0 < length <= LARGEST:
                raise ValueError(f"a part of {length} bytes")
        elif name.strip().lower() == b"x-timestamp":
            with contextlib.suppress(ValueError):
                stamp_s = float(value)
    if length is not None:
        jpeg = response.read(length)
        return (jpeg, stamp_s) if len(jpeg) == length else None
    # a server that names no length: the JPEG ends with the line before the next boundary, which stays out of it
    lines: list[bytes] = []
    size = 0
    while not (line := response.readline(65536)).startswith(boundary):
        lines.append(line)
        size += len(line)
        if not line or size > LARGEST:
            return None
        if line.endswith((b"\xff\xd9\r\n", b"\xff\xd9\n")):
            break
    return b"".join(lines), stamp_s


def decode(jpeg: bytes) -> np.ndarray | None:
    """RGB `(H, W, 3)` uint8; None for one that is cut off or damaged: half a picture is no picture.

    libjpeg fills what it cannot read with something and says so on stderr alone, so stderr is turned to a file meanwhile.
    """
    import cv2

    if not (jpeg.startswith(b"\xff\xd8") and jpeg.rstrip(b"\0\r\n").endswith(b"\xff\xd9")):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    told, stderr = os.memfd_create("libjpeg"), os.dup(2)
    try:
        os.dup2(told, 2)
        color = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        complaint = os.pread(told, 4096, 0)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(told)
    # some cameras put filling bytes before the end marker, when the picture is complete
    bad = b"Corrupt JPEG" in complaint and b"extraneous bytes before marker 0xd9" not in complaint
    return None if bad else color


def without_password(url: str) -> str:
    """`url` as it may stand in a message."""
    p = urlsplit(url)
    return urlunsplit(p._replace(netloc=p.netloc.rpartition("@")[2]))
