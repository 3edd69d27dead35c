"""Motion JPEG over HTTP, read directly: `multipart/x-mixed-replace` as IP cameras, mjpg-streamer and phone
apps send it.

Unlike FFmpeg's reader this one reads `X-Timestamp`, the camera's own clock, drops damaged frames, and skips
to the newest frame when decoding cannot keep up."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import select
import socket
import ssl
import time
from email.message import Message
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from ..arm import DeviceError
from ..clock_offset import ClockOffset
from .capture import Refused

OPEN_TIMEOUT_S = 3.0
LATEST_S = 1e11  # a later X-Timestamp is not one (nor are inf and nan)
LARGEST = 64 << 20  # bytes of one JPEG; a larger length is an error


class NotMultipart(DeviceError):
    """The address answers, with something that is not a stream of JPEG parts."""


class HttpMjpeg:
    """One connection to one stream, for one thread. latency_s: from capture to arrival of the quickest
    frames. read_timeout_s: how long the stream may be silent before the connection is given up."""

    def __init__(self, url: str, latency_s: float, read_timeout_s: float) -> None:
        self._parts, self._latency_s, self._silence_s = urlsplit(url), latency_s, read_timeout_s
        self.name = without_password(url)
        # outlives a connection: a camera that greets with an old picture does not pass it off as new
        self._clock = ClockOffset(latency_s)
        self._socket: socket.socket | None = None
        self._boundary, self._buffer = b"", bytearray()
        self._number = self._receive_ns = 0

    def open(self) -> None:
        """DeviceError: no camera answers. NotMultipart: something else than JPEG parts does. Refused: a
        password is missing or wrong, or the path does not exist."""
        p = self._parts
        port = p.port or (443 if p.scheme == "https" else 80)
        # HTTP/1.0: then no server cuts the stream into chunks of its own
        request = [
            f"GET {urlunsplit(('', '', p.path or '/', p.query, ''))} HTTP/1.0",
            f"Host: {p.netloc.rpartition('@')[2]}",
        ]
        if p.username is not None:
            secret = f"{unquote(p.username)}:{unquote(p.password or '')}".encode()
            request.append("Authorization: Basic " + base64.b64encode(secret).decode())
        try:
            self._socket = socket.create_connection((p.hostname or "", port), OPEN_TIMEOUT_S)
            if p.scheme == "https":
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=p.hostname)
            self._socket.sendall("\r\n".join([*request, "", ""]).encode("latin-1", "replace"))
            status, headers, rest = self._answer(self._socket)
        except (OSError, ValueError, http.client.HTTPException) as e:
            raise DeviceError(f"no camera answers at {self.name} ({e or type(e).__name__})") from None
        if status in (401, 403) and "digest" in headers.get("WWW-Authenticate", "").lower():
            raise NotMultipart(f"{self.name} wants a password by Digest, which only FFmpeg's reader knows")
        if status in (401, 403):
            raise Refused(
                f"{self.name} wants a password: write http://user:password@… into device"
                if p.username is None
                else f"{self.name} does not accept this user and password"
            )
        if status == 404:
            raise Refused(f"{self.name} has no such path (404): look up the stream's address in its manual")
        if 300 <= status < 400:
            raise NotMultipart(f"{self.name} sends us to {headers.get('Location')}: write that into device")
        if status != 200:
            raise DeviceError(f"{self.name} answers with the error {status}")
        kind, chunked = headers.get_content_type(), "Transfer-Encoding" in headers
        if not kind.startswith("multipart/") or chunked:
            raise NotMultipart(
                f"{self.name} sends {kind}{' in chunks' if chunked else ''}, no multipart JPEG"
            )
        boundary = str(headers.get_param("boundary") or "").removeprefix("--")
        self._boundary, self._buffer = f"--{boundary}".encode(), bytearray(rest)
        self._number, self._receive_ns = 0, time.monotonic_ns()

    @staticmethod
    def _answer(connection: socket.socket) -> tuple[int, Message, bytes]:
        """Status and headers of the response, and the part of its body that came with them. ValueError: this
        is not HTTP."""
        data, deadline = b"", time.monotonic() + OPEN_TIMEOUT_S
        while (end := data.find(b"\r\n\r\n")) < 0:
            chunk = connection.recv(65536)
            data += chunk
            if not chunk or len(data) > 1 << 20 or time.monotonic() > deadline:
                raise ValueError("it does not speak HTTP" if data else "it hung up")
        first, _, headers = data[: end + 4].partition(b"\r\n")
        words = first.split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise ValueError("it does not speak HTTP")
        return int(words[1]), http.client.parse_headers(io.BytesIO(headers)), data[end + 4 :]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(self, timeout_s: float) -> tuple[np.ndarray, int, int, int] | None:
        """(RGB `(H, W, 3)` uint8, t_capture_ns, t_receive_ns, number of the part) of the newest part that was
        not read before; None when none came, or it is not a whole JPEG. DeviceError: the stream ended or is
        silent."""
        deadline = time.monotonic() + timeout_s
        while (newest := self._newest_part()) is None:
            if self._wait(max(0.0, deadline - time.monotonic())):
                self._drain_socket()
            elif time.monotonic_ns() - self._receive_ns > self._silence_s * 1e9:
                raise DeviceError(f"{self.name} sent nothing for {self._silence_s:.1f} s")
            elif time.monotonic() >= deadline:
                return None
        jpeg, capture_ns, receive_ns, number = newest
        color = decode(jpeg)
        return None if color is None else (color, capture_ns, receive_ns, number)

    def _newest_part(self) -> tuple[bytes, int, int, int] | None:
        """(JPEG, t_capture_ns, t_receive_ns, number) of the newest whole part in the buffer, None when there
        is none. All whole parts are removed from the buffer."""
        newest, receive_ns = None, self._receive_ns
        try:
            while (part := _first_part(self._buffer, self._boundary)) is not None:
                jpeg, stamp_s, end = part
                del self._buffer[:end]
                if stamp_s is None:
                    capture_ns = receive_ns - round(self._latency_s * 1e9)
                else:
                    capture_ns = self._clock.capture_ns(round(stamp_s * 1e9), receive_ns)
                newest = (jpeg, capture_ns, receive_ns, self._number)
                self._number += 1
        except ValueError as e:
            raise DeviceError(f"{self.name} sends no stream of pictures ({e})") from None
        return newest

    def _drain_socket(self) -> None:
        """Read all that the socket holds, so that the last part in the buffer is the newest there is."""
        assert self._socket is not None
        for _ in range(256):  # a server faster than we are must not keep us here
            try:
                data = self._socket.recv(1 << 18)
            except OSError as e:
                raise DeviceError(f"{self.name} broke off ({e or type(e).__name__})") from None
            if not data:
                raise DeviceError(f"{self.name} closed the connection")
            self._buffer += data
            self._receive_ns = time.monotonic_ns()
            if not self._wait(0):
                return

    def _wait(self, timeout_s: float) -> bool:
        assert self._socket is not None
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True  # deciphered already, so that the socket looks empty
        return bool(select.select([self._socket], [], [], timeout_s)[0])


def _first_part(buffer: bytearray, boundary: bytes) -> tuple[bytes, float | None, int] | None:
    """The JPEG of the first whole part in `buffer`, its `X-Timestamp` in s or None, and the index behind it;
    None when there is no whole part yet. ValueError: a part without an end, or with an impossible length."""
    start = buffer.find(boundary)
    head_end = buffer.find(b"\r\n\r\n", start)
    if len(buffer) > LARGEST:
        raise ValueError(f"{LARGEST} bytes without a whole frame")
    if start < 0 or head_end < 0:
        return None
    begin, length, stamp_s = head_end + 4, None, None
    for line in bytes(buffer[start:head_end]).lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip() == b"content-length":
            length = int(value)
            if not 0 < length <= LARGEST:
                raise ValueError(f"a part of {length} bytes")
        elif name.strip() == b"x-timestamp":
            with contextlib.suppress(ValueError):
                clock_s = float(value)
                stamp_s = clock_s if 0 <= clock_s < LATEST_S else None
    if length is not None:
        end = begin + length
        return (bytes(buffer[begin:end]), stamp_s, end) if len(buffer) >= end else None
    # a server that gives no length: up to the next boundary, or to a JPEG's end mark at the end of the buffer
    end = buffer.find(b"\r\n" + boundary, begin)
    if end < 0:
        end = len(buffer.rstrip(b"\r\n"))
        if not buffer.endswith(b"\xff\xd9", begin, end):
            return None
    return bytes(buffer[begin:end]), stamp_s, end


def decode(jpeg: bytes) -> np.ndarray | None:
    """RGB `(H, W, 3)` uint8; None for a JPEG that is cut off or damaged.

    libjpeg fills the part that it cannot read, and reports that on stderr only, so stderr goes to a file
    meanwhile."""
    import cv2

    if not (jpeg.startswith(b"\xff\xd8") and jpeg.rstrip(b"\0\r\n").endswith(b"\xff\xd9")):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    color, log, stderr = None, os.memfd_create("libjpeg"), os.dup(2)
    try:
        os.dup2(log, 2)
        with contextlib.suppress(cv2.error):  # a damaged header: more pixels than OpenCV lets one have
            color = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        complaint = os.pread(log, 4096, 0)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(log)
    # some cameras put filling bytes before the end marker, when the picture is complete
    bad = b"Corrupt JPEG" in complaint and b"extraneous bytes before marker 0xd9" not in complaint
    return None if bad else color


def without_password(url: str) -> str:
    """`url` without user and password, for messages."""
    p = urlsplit(url)
    return urlunsplit(p._replace(netloc=p.netloc.rpartition("@")[2]))
