"""Which requests the viewer accepts.

While the viewer listens on loopback, programs of this machine may read without the key; on any other address
every request needs it. Edits always need it, in a header, which no other site's page can send. What all pages
have in common is in `drivers.web_access`."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from ...drivers import web
from ...drivers.web_access import TOKEN_HEADER, Access

HEADERS = {**web.HEADERS, "Content-Security-Policy": f"{web.POLICY}; img-src 'self' blob: data:"}


@dataclass(frozen=True)
class ViewerAccess(Access):
    read_only: bool

    def refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence of the refusal of a request; None when it may pass."""
        if (refusal := self.stranger(scope, headers)) is not None:
            return refusal
        if scope["method"] not in ("GET", "HEAD"):
            if self.read_only:
                return 403, "The viewer was started with --read-only: nothing can be changed."
            if not self.is_key(headers.get(TOKEN_HEADER, "")):
                return (
                    403,
                    "To change anything, open the URL that `ulna data view` printed; it carries a key.",
                )
        elif not (self.loopback or self.has_key(scope, headers)):
            return 401, "Open the URL that `ulna data view` printed; it carries a key."
        return None
