"""What everything that is served over HTTP shares: the listening socket, the server with its thread, who may
ask, and the headers that keep other sites out. It loads starlette and uvicorn; import it when you serve."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
FIRST_REQUEST_S = 5


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. OSError, its `strerror` in words: it cannot be had."""
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
            proxy_headers=False,  # nobody may say that he is somebody else
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
        """Serve in a thread called `name`; returns when a client can connect. Raises what prevents it."""
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
            asyncio.run(main())
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


class _Connection(H11Protocol):
    """One whose first request has to come whole within 5 s: strangers must not use up our open files."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_S, self._abort_if_silent)

    def _abort_if_silent(self) -> None:
        if self.scope is None:
            self.transport.abort()


def error(sentence: str, status: int) -> Response:
    return JSONResponse({"error": sentence}, status)


class Guard:
    """An ASGI middleware, for requests and WebSockets. refusal: of a scope and its headers, the status and
    the sentence to refuse it with; None lets it pass. refuse: makes the answer of them. headers: of every
    answer that does not set them itself."""

    def __init__(
        self,
        app: ASGIApp,
        refusal: Callable[[Scope, Headers], tuple[int, str] | None],
        refuse: Callable[[str, int], Response] = error,
        headers: Mapping[str, str] = HEADERS,
    ) -> None:
        self.app, self.refusal, self.refuse, self.headers = app, refusal, refuse, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self.refusal(scope, Headers(scope=scope))
        if refusal is not None:
            status, sentence = refusal
            await self.refuse(sentence, status)(scope, receive, answer)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)  # its messages need no headers, and should lose no time here
        else:
            await self.app(scope, receive, answer)


def is_loopback(name: str) -> bool:
    """Whether only this machine can be meant. name: `localhost` or an address, with or without a zone
    (`::1%lo`)."""
    try:
        return name == "localhost" or ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def hostname(host: str) -> str:
    """Of a `Host` header, without port and brackets; empty when it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_for_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request names a loopback host: the pages of a site whose name was made to point here do
    not."""
    return is_loopback(hostname(headers.get("host", "")))


def is_token(text: str, token: str) -> bool:
    """Takes as long for a wrong one as for the right one."""
    return secrets.compare_digest(text.encode(), token.encode())


async def read_body(request: Request, max_bytes: int) -> bytes | None:
    """None of a body that is longer; the rest of it is not read."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            return None
    return body


def assets(folder: Path) -> dict[str, Path]:
    """The files of a page, by name."""
    return {path.name: path for path in folder.iterdir() if path.suffix in TYPES}


def asset(path: Path, **headers: str) -> Response:
    """One of `assets` as an answer."""
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=headers)
