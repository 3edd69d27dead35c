"""Motion JPEG over HTTP: the streams of different servers, damaged pictures, and servers that are no
cameras."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.cameras import opencv
from ulna.drivers.cameras.http_mjpeg import HttpMjpeg, decode
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
