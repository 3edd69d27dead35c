"""Shared by everything that is served over HTTP: the listening socket, the server with its thread, the bounds
of what a client may send and how long it may take, and the headers that keep other sites out. Who may ask is
in web_access.py, where a page is served in web_site.py. It loads starlette and uvicorn; import it when you
serve."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import math
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FIRST_REQUEST_S = 5  # within which the head of a request must be complete
BODY_S = 10  # and its body
MOST_BODY = 1 << 16
MOST_DEPTH = 64  # of JSON


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. OSError when that fails; its `strerror` says why."""
    if not 0 <= port <= 65535:
        raise OSError(errno.EINVAL, "a port is a number in 0..65535")
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


class Server(uvicorn.Server):
    """Serves an ASGI app at a listening socket, which it closes when it ends: with `start` and `close` in a
    thread of its own, or with `run_here` and `stop` in the caller's. tls: for HTTPS. log_level: of what
    uvicorn writes to standard error. options: further ones of `uvicorn.Config`."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        tls: ssl.SSLContext | None = None,
        log_level: str = "warning",
        **options: Any,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            log_level=log_level,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # a client may not claim another client's address
            timeout_graceful_shutdown=1,
            **{"ws": "none", **options},
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._listening = listening
        self._ready: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread of `start` serves."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, name: str) -> None:
        """Serve in a thread called `name`; returns when a client can connect. Raises the error that the
        server could not start with."""
        ready, failures = threading.Event(), list[BaseException]()

        def serve() -> None:
            try:
                self.run_here(ready.set)
            except BaseException as error:  # noqa: BLE001  raised in the thread that starts
                failures.append(error)
            finally:
                ready.set()

        self._thread = threading.Thread(target=serve, name=name, daemon=True)
        self._thread.start()
        ready.wait()
        if failures:
            self._thread.join()
            raise failures[0]

    def close(self) -> None:
        """End the thread of `start`."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def run_here(self, ready: Callable[[], None], signals: tuple[int, ...] = ()) -> None:
        """Serve until `stop` or one of `signals`; `ready` is called when a client can connect."""

        async def main() -> None:
            for number in signals:
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
            await self.serve([self._listening])

        self._ready = ready
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(main())
        finally:
            self._listening.close()

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ours: uvicorn raises them again when it is done, as if Ctrl-C were a failure


class _Loop(asyncio.SelectorEventLoop):
    """A handshake of TLS that is not done in time is given up, as is a request."""

    async def create_server(self, *words: Any, **options: Any) -> asyncio.Server:  # type: ignore[override]
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = FIRST_REQUEST_S
        return await super().create_server(*words, **options)


class _Connection(H11Protocol):
    """A connection on which the head of every request must be complete within 5 s and its body within 10
    more, and on which a peer that is gone is noticed: strangers must not use up our open files and memory."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stage: tuple[Any, Any] = (None, None)
        self._since = self.loop.time()
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            for option, value in (("KEEPIDLE", 20), ("KEEPINTVL", 5), ("KEEPCNT", 3)):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._watch()

    def _watch(self) -> None:
        """Abort the connection if the client owes us the rest of a request for too long."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # a WebSocket by now
            return
        now, stage = self.loop.time(), (self.conn.their_state, self.cycle)
        if stage != self._stage:
            self._stage, self._since = stage, now
        owes = {h11.IDLE: FIRST_REQUEST_S, h11.SEND_BODY: BODY_S}
        waits_for = owes.get(stage[0])
        if waits_for is not None and now - self._since >= waits_for:
            self.transport.abort()
        else:
            self.loop.call_later(min(FIRST_REQUEST_S, BODY_S) / 5, self._watch)


def error(sentence: str, status: int) -> Response:
    return JSONResponse({"error": sentence}, status)


class Guard:
    """An ASGI middleware, for requests and WebSockets. refusal: takes a scope and its headers and gives the
    status and the sentence to refuse it with, or None to let it pass. refuse: makes the response of sentence
    and status. headers: added to every response that does not set them itself.

    A body of more than `MOST_BODY` bytes is refused, by what its head says or at the first byte too many. A
    body that nobody read is not read to its end after the answer: the connection is closed."""

    def __init__(
        self,
        app: ASGIApp,
        refusal: Callable[[Scope, Headers], tuple[int, str] | None],
        refuse: Callable[[str, int], Response] = error,
        headers: Mapping[str, str] = HEADERS,
    ) -> None:
        self.app, self.refusal, self.refuse, self.headers = app, refusal, refuse, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_headers = Headers(scope=scope)
        length = request_headers.get("content-length", "0")
        has_rest = length != "0" or "transfer-encoding" in request_headers
        size = 0

        async def bounded() -> Message:
            nonlocal has_rest, size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BODY:
                raise TooLong
            has_rest = has_rest and bool(message.get("more_body"))
            return message

        async def answer(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                if has_rest:
                    headers["connection"] = "close"
            await send(message)

        refusal = self.refusal(scope, request_headers)
        if refusal is None and int(length or 0) > MOST_BODY:
            refusal = TooLong.status, TooLong.sentence
        if refusal is not None:
            status, sentence = refusal
            await self.refuse(sentence, status)(scope, receive, answer)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)  # its messages need no headers, and should lose no time here
        else:
            await self.app(scope, bounded, answer)


class BadBody(ValueError):
    """The body of a request cannot be used; the message is one sentence. status: of the answer."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class TooLong(BadBody):
    status = 413
    sentence = f"a request has at most {MOST_BODY} bytes"

    def __init__(self) -> None:
        super().__init__(self.sentence, self.status)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request, {} where there is no body. Raises BadBody: it is too long,
    not JSON, no object, nested more than `MOST_DEPTH` deep, or a number in it is not finite."""
    body = b""
    async for part in request.stream():
        body += part
    try:
        value = json.loads(body or b"{}", parse_float=_finite, parse_int=_whole, parse_constant=_finite)
    except RecursionError:
        raise BadBody(f"the body is nested more than {MOST_DEPTH} deep") from None
    except ValueError as reason:
        raise BadBody(f"the body is no JSON that can be used: {reason}") from None
    if not isinstance(value, dict):
        raise BadBody("the body must be a JSON object")
    layer: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        layer = [v for part in layer for v in _parts(part)]
        if not layer:
            return value
    raise BadBody(f"the body is nested more than {MOST_DEPTH} deep")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text.replace("Infinity", "inf"))):
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"the number {text[:40]} has more than 64 bits")
    return int(text)


def is_loopback(name: str) -> bool:
    """Whether only this machine can be meant. name: `localhost` or an address, with or without a zone
    (`::1%lo`)."""
    try:
        return name == "localhost" or ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def hostname(host: str) -> str:
    """The host of a `Host` header, without port and brackets; empty when the header is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_for_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request names a loopback host: the pages of a site whose name was made to point here do
    not."""
    return is_loopback(hostname(headers.get("host", "")))


def is_token(text: str, token: str) -> bool:
    """Whether `text` is the token; takes the same time whether or not it is."""
    return secrets.compare_digest(text.encode(), token.encode())


def assets(folder: Path) -> dict[str, Path]:
    """The files of a page, by name."""
    return {path.name: path for path in folder.iterdir() if path.suffix in TYPES}


def asset(path: Path, **headers: str) -> Response:
    """One of `assets` as a response."""
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=headers)
