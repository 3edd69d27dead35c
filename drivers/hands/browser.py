"""A web page as teleoperator: pointer, joystick, keys, a phone's tilt or WebXR move the tip.

The page is served by this process, in a thread of its own, so that `read` only looks. By default only this
machine can open it; with `host = "0.0.0.0"` a phone can, over HTTPS, by the QR code that is shown. Whoever
drives needs the key in the URL."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import itertools
import json
import logging
import re
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .. import web
from ..arm import DeviceError
from ..config import setting
from ..teleoperator import Hand
from .browser_session import Session
from .certificate import state_dir, tls_context

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

ASSETS = Path(__file__).parent / "assets"
HEADERS = {**web.HEADERS, "Cache-Control": "no-store"}
MOST_BYTES = 4096  # a message of the page has about 300
MOST_PAGES = 8
STATE_S = 0.5


@dataclass(frozen=True)
class Config:
    """host: address to listen on; `127.0.0.1` for this machine only, `0.0.0.0` for a phone. port: 0 picks a
    free one. timeout_s: a hand not heard of for so long has let go. speed_m_s, turn_rad_s: of joystick and
    keys pushed all the way, at scale 1. certificate, key: PEM files to use instead of a self-signed
    certificate."""

    host: str = "127.0.0.1"
    port: int = setting(0, 0, 65535)
    timeout_s: float = setting(0.3, 0.05, 5, "s")
    speed_m_s: float = setting(0.15, 0.005, 2, "m/s")
    turn_rad_s: float = setting(1.0, 0.05, 6, "rad/s")
    certificate: str = ""
    key: str = ""


def make(name: str, config: Config) -> BrowserTeleoperator:
    return BrowserTeleoperator(name, config)


class BrowserTeleoperator:
    """`url` opens the page, once `open` was called; `say` shows a line on it. announce: is told how to open
    the page."""

    def __init__(
        self,
        name: str,
        config: Config,
        announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        state: Path | None = None,
    ) -> None:
        self.name, self.config = name, config
        self.token = secrets.token_urlsafe(18)
        self.url = ""
        self._announce, self._state = announce, state
        self._lock = threading.Lock()
        self._session = self._fresh()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def _fresh(self) -> Session:
        return Session(self.config.timeout_s, self.config.speed_m_s, self.config.turn_rad_s)

    def open(self) -> None:
        if self._thread is not None:
            return
        loopback = web.is_loopback(self.config.host)
        shown = self.config.host if self.config.host not in ("0.0.0.0", "::", "") else _own_address()
        context, fingerprint = self._tls(loopback, shown)
        listening = _listen(self.config.host or "0.0.0.0", self.config.port)
        port = listening.getsockname()[1]
        site = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
        self.url = f"{'https' if context else 'http'}://{site}/?token={self.token}"
        self._session = self._fresh()
        started: list[BaseException] = []
        ready = threading.Event()

        def run() -> None:
            try:
                asyncio.run(self._serve(listening, context, loopback, ready))
            except BaseException as error:  # noqa: BLE001  told to the thread that opens
                started.append(error)
            finally:
                listening.close()
                ready.set()

        self._thread = threading.Thread(target=run, name=f"teleoperation page {self.name}", daemon=True)
        self._thread.start()
        ready.wait()
        if started:
            self.close()
            raise DeviceError(f"the page of {self.name} could not be served: {started[0]}")
        self._announce(_invitation(self.name, self.url, loopback, fingerprint))

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # ended meanwhile
                loop.call_soon_threadsafe(stop.set)
        thread.join()
        self.url = ""

    def read(self) -> Hand:
        if self._thread is None or not self._thread.is_alive():
            return Hand(False)
        with self._lock:
            return self._session.read(time.monotonic_ns())

    def say(self, text: str) -> None:
        """A line for the operator, such as which episode runs."""
        with self._lock:
            self._session.note = text[:200]

    def _tls(self, loopback: bool, shown: str) -> tuple[ssl.SSLContext | None, str]:
        if self.config.certificate or self.config.key:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(self.config.certificate, self.config.key or None)
            except (OSError, ssl.SSLError) as error:
                raise DeviceError(
                    f"{self.name}: the certificate {self.config.certificate!r} with the key {self.config.key!r} cannot be used: "
                    f"{error}"
                ) from None
            return context, ""
        if loopback:
            return None, ""  # browsers trust this machine's own address without
        names = sorted({shown, "localhost", "127.0.0.1"})
        return tls_context(names, self._state or state_dir())

    async def _serve(
        self, listening: socket.socket, tls: ssl.SSLContext | None, loopback: bool, ready: threading.Event
    ) -> None:
        from websockets.asyncio.server import serve

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        numbers = itertools.count()
        quiet = logging.getLogger("ulna.drivers.hands.browser")  # strangers who knock wrongly are no news
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False

        async def page(connection: ServerConnection) -> None:
            await self._page(connection, next(numbers))

        async with serve(
            page,
            sock=listening,
            ssl=tls,
            process_request=lambda c, r: self._answer(r, loopback, tls is not None),
            compression=None,  # costs more time than these few bytes
            server_header=None,
            max_size=MOST_BYTES,
            max_queue=64,
            open_timeout=5,
            ping_interval=3,
            ping_timeout=6,
            close_timeout=1,
            logger=quiet,
        ):
            ready.set()
            await self._stop.wait()

    def _answer(self, request: Request, loopback: bool, tls: bool) -> Response | None:
        """A file of the page, a refusal, or None: go on with the WebSocket."""
        parts = urlsplit(request.path)
        host = request.headers.get("Host", "")
        if loopback and not web.is_loopback(web.hostname(host)):
            return _response(421, "This page answers to localhost only.")
        given = parse_qs(parts.query).get("token", [""])[-1]
        known = secrets.compare_digest(given.encode(), self.token.encode())
        if parts.path == "/socket":
            origin = request.headers.get("Origin")
            if origin is not None and origin != f"{'https' if tls else 'http'}://{host}":
                return _response(403, "A page of another site may not drive this robot.")
            return None if known else _response(401, "Open the URL that was printed; it carries a key.")
        name = "teleop.html" if parts.path == "/" else parts.path.removeprefix("/")
        if name == "teleop.html" and not known:
            return _response(401, "Open the URL that was printed when the robot started; it carries a key.")
        files = {p.name: p for p in ASSETS.iterdir() if p.suffix in web.TYPES}
        if name not in files:
            return _response(404, "There is nothing here.")
        return _response(200, files[name].read_bytes(), web.TYPES[files[name].suffix])

    async def _page(self, connection: ServerConnection, number: int) -> None:
        from websockets.exceptions import ConnectionClosed

        with self._lock:
            full = len(self._session.pages) >= MOST_PAGES
            if not full:
                self._session.join(number, _who(connection))
        if full:
            await connection.close(1013, "too many pages are open")
            return
        telling = asyncio.create_task(self._tell(connection, number))
        try:
            async for text in connection:
                if not isinstance(text, str):
                    raise ValueError("messages are text")  # noqa: TRY004  like any other nonsense
                with self._lock:
                    answer = self._session.hear(number, text, time.monotonic_ns())
                if answer is not None:
                    await connection.send(json.dumps(answer))
        except ConnectionClosed:
            pass
        except ValueError as error:
            await connection.close(1008, str(error)[:100])
        finally:
            with self._lock:
                self._session.leave(number)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell(self, connection: ServerConnection, number: int) -> None:
        """The page's state, at once when it changes."""
        last: dict[str, Any] = {}
        told_s = 0.0
        while True:
            with self._lock:
                state = self._session.state(number, time.monotonic_ns())
            if state != last or time.monotonic() - told_s > STATE_S:
                last, told_s = state, time.monotonic()
                await connection.send(
                    json.dumps({**state, "name": self.name, "timeout_s": self.config.timeout_s})
                )
            await asyncio.sleep(0.05)


def _response(status: int, body: str | bytes, kind: str = "text/plain") -> Response:
    from http import HTTPStatus

    from websockets.datastructures import Headers
    from websockets.http11 import Response

    data = body.encode() if isinstance(body, str) else body
    headers = Headers(HEADERS)
    headers["Content-Type"] = f"{kind}; charset=utf-8"
    headers["Content-Length"] = str(len(data))
    headers["Connection"] = "close"
    return Response(status, HTTPStatus(status).phrase, headers, data)


def _who(connection: ServerConnection) -> str:
    """Address and kind of device, for the other pages."""
    agent = connection.request.headers.get("User-Agent", "") if connection.request is not None else ""
    found = re.search(r"iPhone|iPad|Android|Quest|Macintosh|Windows|CrOS|Linux", agent)
    address = str((connection.remote_address or ("?",))[0])
    return f"{found[0]} at {address}" if found else address


def _listen(host: str, port: int) -> socket.socket:
    try:
        return web.listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "something else uses this port: choose another, or 0 for a free one"
        else:
            why = str(error.strerror or error)
        raise DeviceError(f"the page cannot be served at {host}:{port}: {why}") from None


def _own_address() -> str:
    """The address that others of this network reach this machine by. Nothing is sent: UDP only looks up the
    way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return str(s.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _invitation(name: str, url: str, loopback: bool, fingerprint: str) -> str:
    if loopback:
        return f"{name}: open {url}"
    import segno

    code = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(out=code, border=2, compact=True)
    lines = [f"{name}: scan this with the phone, or open {url}", code.getvalue().rstrip("\n")]
    if fingerprint:
        lines.append(
            "The certificate is this machine's own, so the browser warns once; its SHA-256 is " + fingerprint
        )
    return "\n".join(lines)
