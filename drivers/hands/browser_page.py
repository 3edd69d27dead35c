"""The teleoperation page over HTTP: its files, the cameras' pictures, and the WebSocket between the open
pages and the `browser_session`. It loads starlette and uvicorn; import it when a page is to be served."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from .. import web
from ..web_access import Access
from ..web_site import Site
from .browser_pictures import Pictures
from .browser_session import Session

ASSETS = Path(__file__).parent / "assets"
MAX_MESSAGE_BYTES = 4096  # a message of the page has about 300
MAX_PAGES = 8
STATE_S = 0.5
# pictures are fetched with a report of how they came, so the page makes their addresses itself
HEADERS = {**web.HEADERS, "Content-Security-Policy": f"{web.POLICY}; img-src 'self' blob:"}


def server(name: str, session: Session, lock: threading.Lock, token: str, site: Site) -> web.Server:
    """A server of the page at `site`, for clients that have the token. lock: guards the session."""
    access = Access("teleoperation", token, site.loopback)
    page, pictures = _Page(name, session, lock, access), Pictures(session.screen)

    def refusal(scope: Scope, headers: Headers) -> tuple[int, str] | None:
        if (refusal := access.stranger(scope, headers)) is not None:
            return refusal
        path = scope["path"]
        is_secret = path in ("/", "/teleop.html") or path.startswith("/camera/")
        if (scope["type"] == "websocket" or is_secret) and not access.has_key(scope, headers):
            return 401, "Open the URL that was printed when the robot started; it carries a key."
        return None

    app = Starlette(
        routes=[
            WebSocketRoute("/socket", page.drive),
            Route("/camera/{camera:path}", pictures.newest),
            Route("/", page.file),
            Route("/{name}", page.file),
        ],
        middleware=[Middleware(web.Guard, refusal=refusal, refuse=PlainTextResponse, headers=HEADERS)],
    )
    return web.Server(
        app,
        site.listening,
        site.tls,
        log_level="critical",  # a stranger's wrong request is not worth a line
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # costs more time than these few bytes
        ws_ping_interval=3,
        ws_ping_timeout=6,
    )


class _Page:
    """The endpoints. The session tells the open pages apart by their numbers."""

    def __init__(self, name: str, session: Session, lock: threading.Lock, access: Access) -> None:
        self.name, self._session, self._lock, self._access = name, session, lock, access
        self._numbers = itertools.count()
        self._files = web.assets(ASSETS)

    def file(self, request: Request) -> Response:
        path = self._files.get(request.path_params.get("name", "teleop.html"))
        if path is None:
            return PlainTextResponse("There is nothing here.", 404)
        response = web.asset(path)
        if self._access.is_first_visit(request.scope):
            response.headers.append("set-cookie", self._access.cookie(request.scope))
        return response

    async def drive(self, connection: WebSocket) -> None:
        number = next(self._numbers)
        await connection.accept()
        with self._lock:
            full = len(self._session.pages) >= MAX_PAGES
            if not full:
                self._session.join(number, _operator(connection))
        if full:
            await connection.close(1013, "too many pages are open")
            return
        telling = asyncio.create_task(self._tell(connection, number))
        try:
            await self._hear(connection, number)
        except ValueError as error:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it went away meanwhile
                await connection.close(1008, str(error)[:100])
        finally:
            with self._lock:
                self._session.leave(number)
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _hear(self, connection: WebSocket, number: int) -> None:
        """Pass the page's messages to the session until the page goes away. ValueError: a message is
        malformed."""
        while True:
            message = await connection.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                raise ValueError("messages are text")
            with self._lock:
                answer = self._session.hear(number, text, time.monotonic_ns())
            if answer is not None:
                try:
                    await connection.send_text(json.dumps(answer))
                except (RuntimeError, WebSocketDisconnect):  # it went away meanwhile
                    return

    async def _tell(self, connection: WebSocket, number: int) -> None:
        """Send what the robot has, and the page's state when it changes and every `STATE_S` seconds."""
        last: dict[str, Any] = {}
        last_s = 0.0
        described = None
        while True:
            if (description := self._session.screen.description) is not described:
                described = description
                name = description.robot or self.name
                await connection.send_text(
                    json.dumps({"kind": "robot", **description.to_json(), "name": name})
                )
            with self._lock:
                state = self._session.state(number, time.monotonic_ns())
            if state != last or time.monotonic() - last_s > STATE_S:
                last, last_s = state, time.monotonic()
                timeout_s = self._session.timeout_ns / 1e9
                await connection.send_text(json.dumps({**state, "timeout_s": timeout_s}))
            await asyncio.sleep(0.05)


def _operator(connection: WebSocket) -> str:
    """Address and kind of device, for the other pages."""
    agent = connection.headers.get("user-agent", "")
    kind = re.search(r"iPhone|iPad|Android|Quest|Macintosh|Windows|CrOS|Linux", agent)
    address = connection.client.host if connection.client is not None else "?"
    return f"{kind[0]} at {address}" if kind else address
