"""Who may ask the viewer for what.

Reading is free for programs of this machine while the viewer listens on loopback; on any other address
everything needs the token that is in the URL. Edits always need it, in a header, which no other site's page
can send. Other sites' pages are turned away by the `Host` (a name of theirs that was made to point here) and
by `Origin` and `Sec-Fetch-Site`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from ...drivers import web

TOKEN_HEADER = "x-ulna-token"
COOKIE = "ulna-view"
HEADERS = {**web.HEADERS, "Content-Security-Policy": f"{web.POLICY}; img-src 'self' blob: data:"}


@dataclass(frozen=True)
class Access:
    """loopback: whether only this machine can connect."""

    token: str
    loopback: bool
    read_only: bool

    def is_opened_with_token(self, scope: Scope) -> bool:
        """Whether a request is of the page itself, with the token in its URL."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return scope["path"] == "/" and self._is_token(query.get("token", [""])[-1])

    def cookie(self, scope: Scope) -> str:
        """For images and videos, which are requested by elements that can send no header."""
        port = (scope.get("server") or ("", 0))[1]
        return f"{COOKIE}-{port}={self.token}; HttpOnly; SameSite=Strict; Path=/"

    def refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence of a request that is refused; None of one that may pass."""
        method, path, host = scope["method"], scope["path"], headers.get("host", "")
        if self.loopback and not web.is_for_this_machine(headers):
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
        elif not (
            self.loopback
            or by_header
            or self.is_opened_with_token(scope)
            or any(map(self._is_token, _cookies(headers)))
        ):
            return 401, "Open the URL that `ulna data view` printed; it carries a key."
        return None

    def _is_token(self, text: str) -> bool:
        return web.is_token(text, self.token)


def _cookies(headers: Mapping[str, str]) -> list[str]:
    """What may be the token: of any port, for a tunnel may give the viewer another one, and browsers send all
    of a host."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return []
    return [m.value for name, m in cookies.items() if name.startswith(f"{COOKIE}-")]
