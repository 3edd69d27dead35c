"""Motion JPEG over HTTP, read directly: `multipart/x-mixed-replace` as IP cameras, mjpg-streamer and phone
apps send it.

Unlike FFmpeg's reader this one reads `X-Timestamp`, the camera's own clock, drops damaged frames, and skips
to the newest frame when decoding cannot keep up. As in browsers, pictures are found whatever the server says
of boundaries and lengths, and however it ends its lines (`drivers.cameras.jpeg_stream`)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import os
import re
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
from .jpeg_stream import JpegStream

OPEN_TIMEOUT_S = 3.0
LATEST_S = 1e11  # a later X-Timestamp is not one (nor are inf and nan)
MOST_HEADERS = 1 << 20  # bytes
# the end of the response's headers: an empty line, or a picture where a server forgets that line
HEADERS_END = re.compile(rb"\n\r?\n|(?=\xff\xd8\xff)")
STAMP = re.compile(rb"^x-timestamp[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
# of a response that may hold JPEG pictures, whatever they are framed by; the empty one is not stated
KINDS = re.compile(r"multipart/.*|image/.*|.*jpeg.*|application/octet-stream|text/plain|")


class NotMultipart(DeviceError):
    """The address answers, with something that is not a stream of JPEG pictures."""


class HttpMjpeg:
    """One connection to one stream, for one thread. latency_s: from capture to arrival of the quickest
    frames. read_timeout_s: how long the stream may be silent before the connection is given up."""

    def __init__(self, url: str, latency_s: float, read_timeout_s: float) -> None:
        self._parts, self._latency_s, self._silence_s = urlsplit(url), latency_s, read_timeout_s
        self.name = without_password(url)
        # outlives a connection: a camera that greets with an old picture does not pass it off as new
        self._clock = ClockOffset(latency_s)
        self._socket: socket.socket | None = None
        self._jpegs = JpegStream()
        self._newest: tuple[bytes, int, int, int] | None = None
        self._number = self._receive_ns = 0
        self.received = False  # whether anything came after the response's headers

    def open(self) -> None:
        """DeviceError: no camera answers. NotMultipart: something else than JPEG pictures does. Refused: a
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
        kind = headers.get_content_type() if "Content-Type" in headers else ""
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        if KINDS.fullmatch(kind) is None or chunked:
            raise NotMultipart(
                f"{self.name} sends {kind or 'something'}{' in chunks' if chunked else ''}, no multipart JPEG"
            )
        self._jpegs, self._newest, self._number, self.received = JpegStream(), None, 0, False
        self._take(rest)

    @staticmethod
    def _answer(connection: socket.socket) -> tuple[int, Message, bytes]:
        """Status and headers of the response, and the part of its body that came with them. ValueError: this
        is not HTTP."""
        data, deadline = b"", time.monotonic() + OPEN_TIMEOUT_S
        while (end := HEADERS_END.search(data)) is None:
            chunk = connection.recv(65536)
            data += chunk
            if not chunk or len(data) > MOST_HEADERS or time.monotonic() > deadline:
                raise ValueError("it does not speak HTTP" if data else "it hung up")
        first, _, headers = data[: end.end()].partition(b"\n")
        words = first.split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise ValueError("it does not speak HTTP")
        return int(words[1]), http.client.parse_headers(io.BytesIO(headers)), data[end.end() :]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(self, timeout_s: float) -> tuple[np.ndarray, int, int, int] | None:
        """(RGB `(H, W, 3)` uint8, t_capture_ns, t_receive_ns, number of the picture) of the newest picture
        that was not read before; None when none came, or it is not whole. DeviceError: the stream ended, is
        silent, or holds no pictures."""
        deadline = time.monotonic() + timeout_s
        while self._newest is None:
            if self._wait(max(0.0, deadline - time.monotonic())):
                self._drain_socket()
            elif time.monotonic_ns() - self._receive_ns > self._silence_s * 1e9:
                raise DeviceError(f"{self.name} sent nothing for {self._silence_s:.1f} s")
            if self._newest is None and time.monotonic() >= deadline:
                return None
        (jpeg, capture_ns, receive_ns, number), self._newest = self._newest, None
        color = decode(jpeg)
        return None if color is None else (color, capture_ns, receive_ns, number)

    def _take(self, data: bytes) -> None:
        """Look for pictures in what came now, and keep the newest."""
        self._receive_ns = receive_ns = time.monotonic_ns()
        self.received = self.received or bool(data)
        try:
            pictures = self._jpegs.feed(data)
        except ValueError as e:
            raise DeviceError(f"{self.name} sends no stream of pictures ({e})") from None
        for jpeg, head in pictures:
            if jpeg:
                if (stamp_s := _stamp_s(head)) is None:
                    capture_ns = receive_ns - round(self._latency_s * 1e9)
                else:
                    capture_ns = self._clock.capture_ns(round(stamp_s * 1e9), receive_ns)
                self._newest = jpeg, capture_ns, receive_ns, self._number
            self._number += 1

    def _drain_socket(self) -> None:
        """Read all that the socket holds, so that the picture kept is the newest there is."""
        assert self._socket is not None
        for _ in range(256):  # a server faster than we are must not keep us here
            try:
                data, end = self._socket.recv(1 << 18), "closed the connection"
            except OSError as e:
                data, end = b"", f"broke off ({e or type(e).__name__})"
            if data:
                self._take(data)
            elif self._newest is None:
                only = " after one picture: is this the address of its stream?" if self._number == 1 else ""
                raise DeviceError(f"{self.name} {end}{only}")
            if not data or not self._wait(0):
                return

    def _wait(self, timeout_s: float) -> bool:
        assert self._socket is not None
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True  # deciphered already, so that the socket looks empty
        return bool(select.select([self._socket], [], [], timeout_s)[0])


def _stamp_s(head: bytes) -> float | None:
    """`X-Timestamp` in the headers before a picture, s; None where there is none, or no time."""
    stamps = STAMP.findall(head)
    with contextlib.suppress(ValueError):
        if stamps and 0 <= (clock_s := float(stamps[-1])) < LATEST_S:
            return clock_s
    return None


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
