"""Who may ask a page of ours: one guard for all of them.

Whoever was given the URL with the key may. The page takes the key out of the URL at the first visit and is
known by a cookie from then on. Other sites' pages are refused by the `Host` header (a foreign name that was
made to point here), by `Origin` and by `Sec-Fetch-Site`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from . import web

TOKEN_HEADER = "x-ulna-token"


@dataclass(frozen=True)
class Access:
    """name: of the page, in its cookie and sentences. loopback: whether only this machine can connect."""

    name: str
    token: str
    loopback: bool

    def stranger(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence of the refusal of what another site's page asks; None for the others."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.loopback and not web.is_for_this_machine(headers):
            return 421, f"This {self.name} answers to localhost, not to {host[:100]!r}."
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "A page of another site may not ask this."
        is_navigation = (
            scope.get("method") == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
        )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_navigation:
            return 403, "A page of another site may not ask this."
        return None

    def has_key(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request brings the key: in a header, in the cookie, or in the URL of a first visit."""
        return (
            self.is_key(headers.get(TOKEN_HEADER, ""))
            or self.is_first_visit(scope)
            or any(map(self.is_key, self._cookies(headers)))
        )

    def is_first_visit(self, scope: Scope) -> bool:
        """Whether the key is in the URL of the page itself, or of its WebSocket."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        is_page = scope["path"] == "/" or scope["type"] == "websocket"
        return is_page and self.is_key(query.get("token", [""])[-1])

    def is_key(self, text: str) -> bool:
        return web.is_token(text, self.token)

    def cookie(self, scope: Scope) -> str:
        """The cookie that a first visit is answered with. It serves where an element that loads a picture, a
        video or a WebSocket can send no header."""
        port = (scope.get("server") or ("", 0))[1]
        secure = "; Secure" if scope["scheme"] in ("https", "wss") else ""
        return f"ulna-{self.name}-{port}={self.token}; HttpOnly; SameSite=Strict; Path=/{secure}"

    def _cookies(self, headers: Mapping[str, str]) -> list[str]:
        """Values of the page's cookies. Those of any port count: browsers send all cookies of a host, and
        through a tunnel the page may have another port."""
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return []
        return [m.value for name, m in cookies.items() if name.startswith(f"ulna-{self.name}-")]
