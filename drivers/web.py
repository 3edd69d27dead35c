"""What a page served on this machine needs: where to listen, who is asking, and the headers that keep other
sites out of it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from urllib.parse import urlsplit

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


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
