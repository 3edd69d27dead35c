"""Where a page is served: plain HTTP for this machine alone, HTTPS for every other. One answer for all
pages."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from . import web
from .arm import DeviceError
from .certificate import state_dir, tls_context

EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Site:
    """listening: the socket. loopback: whether only this machine can connect. url: by which browsers reach
    it, ending in `/`. tls: None for plain HTTP. fingerprint: SHA-256 of this machine's own certificate; ""
    where it is not used."""

    listening: socket.socket
    loopback: bool
    url: str
    tls: ssl.SSLContext | None = None
    fingerprint: str = ""

    @property
    def warning(self) -> str:
        """What to say of the certificate; "" where browsers accept it by themselves."""
        if not self.fingerprint:
            return ""
        return (
            "The certificate is this machine's own, so the browser warns once; its SHA-256 is "
            f"{self.fingerprint}"
        )


def open_site(host: str, port: int, certificate: str = "", key: str = "", state: Path | None = None) -> Site:
    """Listen at `host` and `port` (0 picks a free one).

    certificate, key: PEM files to use instead of this machine's own certificate, which lies in `state` (by
    default in the user's state folder). OSError: it cannot listen. DeviceError: the certificate cannot be
    used, or not be kept."""
    everywhere = host in EVERYWHERE
    listening = web.listen("0.0.0.0" if host == "" else host, port)
    try:
        name, port = listening.getsockname()[:2]
        loopback = web.is_loopback(name)
        address = _own_address() if everywhere else host
        tls, fingerprint = None, ""
        if certificate or key:
            tls = _given(certificate, key)
        elif not loopback:  # browsers trust this machine's own address without a certificate
            tls, fingerprint = tls_context(sorted({address, "localhost", "127.0.0.1"}), state or state_dir())
    except BaseException:
        listening.close()
        raise
    site = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return Site(listening, loopback, f"{'https' if tls else 'http'}://{site}/", tls, fingerprint)


def _given(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise DeviceError(
            f"the certificate {certificate!r} with the key {key!r} cannot be used: {error}"
        ) from None
    return context


def _own_address() -> str:
    """The address by which others on the network reach this machine. Nothing is sent: connecting a UDP socket
    only looks up the route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return str(s.getsockname()[0])
        except OSError:
            return "127.0.0.1"
