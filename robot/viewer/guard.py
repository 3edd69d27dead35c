"""Who may ask the viewer for what.

Reading is free for programs of this machine while the viewer listens on loopback; on any other address
everything needs the token that is in the URL. Edits always need it, in a header, which no other site's page
can send. Other sites' pages are turned away by the `Host` (a name of theirs that was made to point here) and
by `Origin` and `Sec-Fetch-Site`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...drivers import web

TOKEN_HEADER = "x-ulna-token"
COOKIE = "ulna-view"
HEADERS = {**web.HEADERS, "Content-Security-Policy": f"{web.POLICY}; img-src 'self' blob: data:"}


class Guard:
    """An ASGI middleware. loopback: whether only this machine can connect."""

    def __init__(self, app: ASGIApp, token: str, loopback: bool, read_only: bool) -> None:
        self.app, self.token, self.loopback, self.read_only = app, token, loopback, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        by_url = scope["path"] == "/" and self._is_token(query.get("token", [""])[-1])
        refused = self._refusal(scope["method"], scope["path"], headers, by_url)
        port = (scope.get("server") or ("", 0))[1]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("cache-control", "no-store")
                if by_url:  # images and videos are asked for by elements that can send no header
                    cookie = f"{COOKIE}-{port}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    out.append("set-cookie", cookie)
            await send(message)

        if refused is None:
            await self.app(scope, receive, answer)
        else:
            status, sentence = refused
            await JSONResponse({"error": sentence}, status)(scope, receive, answer)

    def _refusal(
        self, method: str, path: str, headers: Mapping[str, str], by_url: bool
    ) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.loopback and not web.is_loopback(web.hostname(host)):
            return 421, f"This viewer answers to localhost, not to {host[:100]!r}."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "A page of another site may not ask this."
        opened = path == "/" and method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opened:
            return 403, "A page of another site may not ask this."
        by_header = self._is_token(headers.get(TOKEN_HEADER, ""))
        if method not in ("GET", "HEAD"):
            if self.read_only:
                return 403, "The viewer was started with --read-only: nothing can be changed."
            if not by_header:
                return (
                    403,
                    "To change anything, open the URL that `ulna data view` printed; it carries a key.",
                )
        elif not (self.loopback or by_header or by_url or any(map(self._is_token, _cookies(headers)))):
            return 401, "Open the URL that `ulna data view` printed; it carries a key."
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def _cookies(headers: Mapping[str, str]) -> list[str]:
    """What may be the token: of any port, for a tunnel may give the viewer another one, and browsers send all
    of a host."""
    try:
        found = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return []
    return [m.value for name, m in found.items() if name.startswith(f"{COOKIE}-")]
