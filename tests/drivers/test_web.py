"""Bounds that every page of ours has: how much a client may send, how long it may take, what JSON it may
send, and that a stranger's key is none."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ulna.drivers import web
from ulna.drivers.web_access import Access
from ulna.drivers.web_site import Site, open_site

PROMPT_S = 0.2


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A page that answers a POST with the JSON that it was sent, and any GET without looking at a body."""
    monkeypatch.setattr(web, "FIRST_REQUEST_S", PROMPT_S)
    monkeypatch.setattr(web, "BODY_S", PROMPT_S)
    with serving(open_site("127.0.0.1", 0, state=tmp_path)) as site:
        yield site


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    async def echo(request: Request) -> Response:
        try:
            return JSONResponse(await web.read_json(request))
        except web.BadBody as error:
            return web.error(str(error), error.status)

    access = Access("test", "the key", site.loopback)
    app = Starlette(
        routes=[Route("/", lambda _: Response("here")), Route("/echo", echo, methods=["POST"])],
        middleware=[Middleware(web.Guard, refusal=access.stranger)],
    )
    server = web.Server(app, site.listening, site.tls)
    server.start("test")
    try:
        yield site
    finally:
        server.close()


def connected(site: Site) -> socket.socket:
    return socket.create_connection(site.listening.getsockname()[:2], timeout=5)


def head(words: str, **headers: object) -> bytes:
    lines = [
        words + " HTTP/1.1",
        "Host: localhost",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and body of what comes until the server closes or says no more."""
    raw = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := client.recv(65536):
            raw += part
            if b"\r\n\r\n" in raw and raw.endswith(b"}"):
                break
    return int(raw.split()[1]), raw.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[" * 20_000 + "]" * 20_000, "nested more than 64 deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        ('{"a": 1e999}', "1e999 is not finite"),
        ('{"a": -1e999}', "-1e999 is not finite"),
        ('{"a": NaN}', "NaN is not finite"),
        ('{"a": Infinity}', "Infinity is not finite"),
        ('{"a": 1' + "0" * 5000 + "}", "has more than 64 bits"),
        ("{", "no JSON that can be used"),
        ("[1]", "must be a JSON object"),
        ('"\\ud800', "no JSON that can be used"),
        ("\x00", "no JSON that can be used"),
    ],
)
def test_json_that_cannot_be_used_is_told_in_a_sentence(site: Site, body: str, says: str) -> None:
    with connected(site) as client:
        client.sendall(head("POST /echo", content_length=len(body.encode())) + body.encode())
        status, text = answer(client)
    assert (status, says in json.loads(text)["error"]) == (400, True), text


def test_json_that_can_be_used_comes_as_it_was_sent(site: Site) -> None:
    sent = {"a": [1, 2.5, -3, True, None, "ü\u2028"], "b": {}}
    with connected(site) as client:
        body = json.dumps(sent).encode()
        client.sendall(head("POST /echo", content_length=len(body)) + body)
        assert json.loads(answer(client)[1]) == sent


@pytest.mark.parametrize("path", ["/echo", "/", "/nowhere"])
@pytest.mark.parametrize("chunked", [False, True])
def test_200_mb_are_not_swallowed(site: Site, path: str, chunked: bool) -> None:
    sent = 0
    with connected(site) as client:
        length = {"transfer_encoding": "chunked"} if chunked else {"content_length": 200_000_000}
        client.sendall(head(f"POST {path}", **length))
        piece = b"x" * 65536
        data = b"10000\r\n" + piece + b"\r\n" if chunked else piece
        with contextlib.suppress(OSError):
            while sent < 200_000_000:
                client.sendall(data)
                sent += len(piece)
    assert sent < 20_000_000, "what fits into the buffers between us and the server"


def test_a_body_that_is_too_long_is_refused_by_its_head(site: Site) -> None:
    with connected(site) as client:
        client.sendall(head("POST /echo", content_length=web.MOST_BODY + 1))
        status, text = answer(client)
    assert (status, "at most" in json.loads(text)["error"]) == (413, True)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: local",
        head("POST /echo", content_length=100) + b"{",
        head("POST /echo", transfer_encoding="chunked") + b"1\r\n{",
        head("GET /") + b"GET / HTTP/1.1\r\nHo",
        head("GET /") + head("POST /echo", content_length=9),
    ],
)
def test_what_a_client_leaves_half_said_ends_the_connection(site: Site, words: bytes) -> None:
    with connected(site) as client:
        client.sendall(words)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):
                pass
    assert time.monotonic() - began < 4, "sooner than a connection that is kept for the next request"


def test_a_client_may_ask_often_and_pause_on_one_connection(site: Site) -> None:
    with connected(site) as client:
        for _ in range(3):
            client.sendall(head("POST /echo", content_length=2) + b"{}")
            assert answer(client) == (200, "{}")
            time.sleep(PROMPT_S / 2)


def test_beyond_this_machine_a_page_comes_over_tls_and_a_silent_handshake_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "FIRST_REQUEST_S", 1.0)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with serving(open_site("0.0.0.0", 0, state=tmp_path)) as site:
        port = site.listening.getsockname()[1]
        assert site.url.startswith("https://")
        assert site.url.endswith(f":{port}/")
        assert "SHA-256" in site.warning
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            with trusting.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=5)) as client:
                client.sendall(head("POST /echo", content_length=2) + b"{}")
                assert answer(client) == (200, "{}")
            with contextlib.suppress(ConnectionResetError):
                assert plain.recv(1) == b"", "it never said hello"
