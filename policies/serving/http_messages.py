"""What the policy server needs of HTTP: the head of a request, and a whole answer."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True)
class Head:
    """Of an HTTP request."""

    method: str
    path: str
    """Without its query."""
    headers: dict[str, str]
    """By their names in small letters; of one that is given twice, the last."""

    @property
    def is_upgrade(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"


@dataclass(frozen=True)
class Answer:
    """To an HTTP request; the connection is closed after it."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"

    def encoded(self) -> bytes:
        """As it is sent; the connection is closed after it."""
        phrase = HTTPStatus(self.status).phrase
        lines = [
            f"HTTP/1.1 {self.status} {phrase}",
            f"Content-Type: {self.kind}",
            f"Content-Length: {len(self.body)}",
            "Connection: close",
            *(["Retry-After: 2"] if self.status in (429, 503) else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def head_of(data: bytes) -> Head | None:
    """None where it is no HTTP request. data: its lines before the empty one."""
    try:
        first, *lines = data.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                return None
            headers[name.lower()] = value.strip()
    except ValueError:
        return None
    if not version.startswith("HTTP/1.") or not target.startswith("/") or not method.isalpha():
        return None
    return Head(method, target.partition("?")[0], headers)
