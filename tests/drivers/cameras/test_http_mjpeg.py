"""Motion JPEG over HTTP: the streams of different servers, damaged pictures, and servers that are no
cameras."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras import opencv
from ulna.drivers.cameras.http_mjpeg import HttpMjpeg, decode
from ulna.drivers.cameras.jpeg_stream import LARGEST, JpegStream
from ulna.drivers.twins.faults import CameraFaults
from ulna.drivers.twins.mjpeg import MjpegTwin, wandering_bars

pytestmark = pytest.mark.realtime

SIZE = (120, 160)
PATIENCE_S = 20.0  # of a loaded machine


def test_damaged_jpegs_never_pass() -> None:
    twin = MjpegTwin(wandering_bars(*SIZE), size=SIZE, seed=3)
    picture = np.ascontiguousarray(wandering_bars(*SIZE)()[0])
    faults = CameraFaults(corrupt=1.0)
    head, body = twin._encode(picture, time.monotonic_ns(), CameraFaults()).split(b"\r\n\r\n", 1)
    assert b"X-Timestamp" in head
    good = decode(body[:-2])
    assert good is not None
    assert abs(good.astype(int) - picture).mean() < 5
    pictures = [decode(twin._encode(picture, 0, faults).split(b"\r\n\r\n", 1)[1][:-2]) for _ in range(100)]
    bad = [p for p in pictures if p is not None and abs(p.astype(int) - picture).mean() > 8]
    assert len(bad) <= 2, "noise that happens to be a JPEG"


@pytest.mark.parametrize("kind", ["whole", "no length", "dashes", "in pieces", "old greeting"])
def test_servers_of_other_makes(kind: str) -> None:
    """Streams as different servers write them, byte for byte; the newest whole part is what is read."""
    import cv2

    def jpeg(value: int) -> bytes:
        return cv2.imencode(".jpg", np.full((*SIZE, 3), value, np.uint8))[1].tobytes()

    def part(value: int, stamp_s: float) -> bytes:
        length = "" if kind == "no length" else f"Content-Length: {len(jpeg(value))}\r\n"
        stamp = f"X-Timestamp: {stamp_s:.3f}\r\n" if kind == "old greeting" else ""
        return f"--x\r\nContent-Type: image/jpeg\r\n{length}{stamp}\r\n".encode() + jpeg(value) + b"\r\n"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = HttpMjpeg(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.0, 5.0)

        def connect() -> socket.socket:
            opening = threading.Thread(target=stream.open)
            opening.start()
            server, _ = listener.accept()
            server.recv(4096)
            boundary = "--x" if kind == "dashes" else "x"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary={boundary}\r\n\r\n"
            server.sendall(head.encode())
            opening.join()
            return server

        try:
            with connect() as server:
                for i, value in enumerate((60, 120, 180)):
                    if kind == "in pieces":
                        data = part(value, 0)
                        for at in range(0, len(data), 97):
                            server.sendall(data[at : at + 97])
                            time.sleep(0.001)
                    else:
                        server.sendall(part(value, 1000.0 + i))
                    picture = None
                    while picture is None:
                        picture = stream.read(PATIENCE_S)
                    color, capture_ns, receive_ns, number = picture
                    assert abs(color.astype(int) - value).max() < 5
                    assert number == i
                    assert capture_ns <= receive_ns <= time.monotonic_ns()
                server.sendall(part(1, 1003.0) + part(2, 1004.0) + part(3, 1005.0))
                numbers = []
                while 5 not in numbers:
                    picture = stream.read(PATIENCE_S)
                    assert picture is not None
                    numbers.append(picture[3])
                assert stream.read(0.01) is None
            with pytest.raises(DeviceError, match="closed the connection"):
                stream.read(PATIENCE_S)
            stream.close()
            if kind == "old greeting":
                time.sleep(0.3)
                with connect() as server:
                    server.sendall(part(3, 1005.0))
                    read_after = stream.read(PATIENCE_S)
                    assert read_after is not None
                    assert read_after[2] - read_after[1] > 0.25e9, (
                        "a picture from before the break is not taken for new"
                    )
        finally:
            stream.close()


@pytest.mark.parametrize("stamp", ["inf", "-inf", "nan", "1e300", "yesterday"])
def test_a_stamp_that_is_no_time_is_left_aside(stamp: str) -> None:
    import cv2

    jpeg = cv2.imencode(".jpg", np.full((*SIZE, 3), 90, np.uint8))[1].tobytes()
    head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n"
    part = f"--x\r\nContent-Length: {len(jpeg)}\r\nX-Timestamp: {stamp}\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as server:
                server.recv(4096)
                server.sendall(f"{head}{part}".encode() + jpeg)

        thread = threading.Thread(target=serve)
        thread.start()
        stream = HttpMjpeg(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.01, 5.0)
        try:
            stream.open()
            picture = stream.read(PATIENCE_S)
        finally:
            stream.close()
            thread.join()
    assert picture is not None
    assert picture[2] - picture[1] == 10_000_000, "by its arrival"


def test_a_damaged_header_is_a_damaged_picture() -> None:
    import cv2

    jpeg = bytearray(cv2.imencode(".jpg", np.full((*SIZE, 3), 90, np.uint8))[1].tobytes())
    at = jpeg.find(b"\xff\xc0") + 5  # height and width
    jpeg[at : at + 4] = b"\xff\xdc\xff\xdc"
    assert decode(bytes(jpeg)) is None


def _jpeg(value: int, preview: bool = False, progressive: bool = False) -> bytes:
    """A grey picture; with a preview, itself a JPEG, in its EXIF segment."""
    import cv2

    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    jpeg = cv2.imencode(".jpg", np.full((*SIZE, 3), value, np.uint8), options)[1].tobytes()
    if not preview:
        return jpeg
    small = cv2.imencode(".jpg", np.full((16, 16, 3), 255 - value, np.uint8))[1].tobytes()
    exif = b"Exif\0\0" + small
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def _serve(pieces: Iterable[bytes], listener: socket.socket) -> None:
    with listener, contextlib.suppress(OSError), listener.accept()[0] as server:
        server.recv(4096)
        for piece in pieces:
            server.sendall(piece)
        server.recv(1)  # until the reader hangs up


@contextlib.contextmanager
def _server(pieces: Iterable[bytes]) -> Iterator[str]:
    """The address of a server that sends `pieces` to its one client."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    thread = threading.Thread(target=_serve, args=(pieces, listener))
    thread.start()
    yield url
    thread.join()


MULTIPART = "HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n"
# (headers of the response, headers of a part with LENGTH and STAMP to fill in, what follows a picture)
FRAMINGS = {
    "lines end with LF": (
        MULTIPART.replace("\r", ""),
        "--x\nContent-Length: LENGTH\nX-Timestamp: STAMP\n\n",
        "\n",
    ),
    "LF in parts only": (MULTIPART, "--x\nContent-Length: LENGTH\nX-Timestamp: STAMP\n\n", "\n"),
    "another boundary": (MULTIPART, "--other\r\nX-Timestamp: STAMP\r\n\r\n", "\r\n"),
    "quoted boundary": (MULTIPART.replace("=x", '="x y"'), "--x y\r\nX-Timestamp: STAMP\r\n\r\n", "\r\n"),
    "no boundary": (MULTIPART.replace("; boundary=x", ""), "X-Timestamp: STAMP\r\n\r\n", ""),
    "dashes twice": (MULTIPART.replace("=x", "=--x"), "----x\r\nX-Timestamp: STAMP\r\n\r\n", "\r\n"),
    "a length too small": (MULTIPART, "--x\r\nContent-Length: 9\r\nX-Timestamp: STAMP\r\n\r\n", "\r\n"),
    "a length too large": (
        MULTIPART,
        "--x\r\nContent-Length: 99999999999\r\nX-Timestamp: STAMP\r\n\r\n",
        "\r\n",
    ),
    "a length of nothing": (MULTIPART, "--x\r\nContent-Length: \r\nx-timestamp:STAMP\r\n\r\n", "\r\n"),
    "a preamble": (MULTIPART + "hello\r\n" * 9, "\r\n--x\r\nX-TIMESTAMP: STAMP\r\n\r\n", "\r\n"),
    "no empty line in parts": (MULTIPART, "--x\r\nX-Timestamp: STAMP\r\n", "\r\n"),
    "no empty line at all": (MULTIPART.replace("\r\n\r\n", "\r\n"), "--x\r\nX-Timestamp: STAMP\r\n", "\r\n"),
    "no content type": ("HTTP/1.0 200 OK\r\n\r\n", "--x\r\nX-Timestamp: STAMP\r\n\r\n", "\r\n"),
    "another content type": (
        "HTTP/1.0 200 OK\r\nContent-Type: video/x-motion-jpeg\r\n\r\n",
        "X-Timestamp: STAMP\r\n",
        "",
    ),
    "filling bytes": (MULTIPART, "--x\r\nX-Timestamp: STAMP\r\n\r\n", "\0\0\0\0\r\n"),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("picture", ["plain", "with a preview", "progressive"])
def test_pictures_are_found_however_they_are_framed(framing: str, picture: str) -> None:
    response, head, tail = FRAMINGS[framing]
    jpegs = [_jpeg(value, picture == "with a preview", picture == "progressive") for value in (40, 90, 200)]
    turns = [threading.Event() for _ in jpegs]

    def pieces() -> Iterator[bytes]:
        yield response.encode()
        for i, jpeg in enumerate(jpegs):
            turns[i].wait(PATIENCE_S)
            text = head.replace("LENGTH", str(len(jpeg))).replace("STAMP", f"{1000 + i}.5")
            yield text.encode() + jpeg + tail.encode()

    with _server(pieces()) as url:
        stream = HttpMjpeg(url, 0.0, 5.0)
        try:
            turns[0].set()
            stream.open()
            for i, value in enumerate((40, 90, 200)):
                turns[i].set()
                read = stream.read(PATIENCE_S)
                assert read is not None
                assert read[0].shape == (*SIZE, 3), "not the preview"
                assert abs(read[0].astype(int) - value).max() < 5
                assert read[3] == i
        finally:
            [turn.set() for turn in turns]
            stream.close()


def test_the_cameras_clock_is_read_however_lines_end(monkeypatch: pytest.MonkeyPatch) -> None:
    head = MULTIPART.replace("\r", "").encode()
    with _server([head, b"--y\nx-timestamp: 77.25\n\n" + _jpeg(50)]) as url:
        stream = HttpMjpeg(url, 0.01, 5.0)
        stamps: list[int] = []
        monkeypatch.setattr(stream._clock, "capture_ns", lambda ns, now_ns: stamps.append(ns) or now_ns)
        try:
            stream.open()
            assert stream.read(PATIENCE_S) is not None
            assert stamps == [77_250_000_000]
        finally:
            stream.close()


def test_a_picture_that_broke_off_is_left_out_and_the_next_one_is_whole() -> None:
    cut = _jpeg(50)[:-200]
    parts = [b"--x\r\n\r\n" + cut + b"\r\n", b"--x\r\n\r\n" + _jpeg(120) + b"\r\n"]
    with _server([MULTIPART.encode(), *parts]) as url:
        stream = HttpMjpeg(url, 0.0, 5.0)
        try:
            stream.open()
            read = stream.read(PATIENCE_S)
            assert read is not None
            assert abs(read[0].astype(int) - 120).max() < 5
            assert read[3] == 1, "the broken one counts as lost"
        finally:
            stream.close()


def test_a_stream_without_end_takes_no_memory_without_end() -> None:
    """After the beginning of a picture, more bytes than any picture has, as fast as they are taken."""
    begin = _jpeg(50)[:-2]
    with _server(itertools.chain([MULTIPART.encode(), begin], itertools.repeat(bytes(1 << 20)))) as url:
        stream = HttpMjpeg(url, 0.0, 5.0)
        try:
            stream.open()
            with pytest.raises(DeviceError, match="sends no stream of pictures"):
                all(stream.read(0.1) is None for _ in range(1000))
            assert len(stream._jpegs._buffer) <= LARGEST + (1 << 20)
        finally:
            stream.close()


def test_a_size_that_no_camera_has_is_not_decoded() -> None:
    jpeg = bytearray(_jpeg(50))
    at = jpeg.find(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\x7f\xff\x7f\xff"
    pictures = JpegStream().feed(bytes(jpeg) + _jpeg(60))
    assert [len(p) > 0 for p, _ in pictures] == [False, True]


def test_the_message_names_the_reader() -> None:
    """What comes is no picture: FFmpeg's reader is tried, and the message names both."""
    for reader, words in (("multipart", ['"ffmpeg"']), ("auto", ['"multipart"', '"ffmpeg"'])):
        answers = itertools.chain(
            [MULTIPART.encode()], (b"--x\r\n\r\nnothing" for _ in iter(lambda: time.sleep(0.05), 1))
        )
        with _server(answers) as url:
            source = opencv.source(asdict(opencv.Config(url, *SIZE, fps=1000, reader=reader)))
            with pytest.raises(DeviceError) as caught:
                source.open()
            source.close()
            assert all(word in str(caught.value) for word in words), caught.value


class _Answers(BaseHTTPRequestHandler):
    """A server that is not a camera."""

    def do_GET(self) -> None:
        code = {"/secret": 401, "/page": 200}.get(self.path, 404)
        if self.headers.get("Authorization") == "Basic dTpw":  # u:p
            code = 503
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_servers_that_are_no_cameras() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        at = f"127.0.0.1:{server.server_port}"
        try:
            for url, match in (
                (f"http://{at}/secret", "wants a password"),
                (f"http://u:p@{at}/secret", f"http://{at}/secret answers with the error 503"),
                (f"http://{at}/nothing", "no such path"),
                (f"http://{at}/page", "no multipart JPEG"),
            ):
                with pytest.raises(DeviceError, match=match):
                    opencv.make("front", opencv.Config(url, *SIZE, reader="multipart")).open()
        finally:
            server.shutdown()
            thread.join()
