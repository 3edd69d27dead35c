"""A web page as teleoperator: pointer, joystick, keys, a phone's tilt or WebXR move the tip, beside what the
cameras see and where the joints are.

The page is served by this process, in a thread of its own, so that `read` only looks. By default only this
machine can open it; with `host = "0.0.0.0"` a phone can, over HTTPS, by the QR code that is printed. Driving
needs the key in the URL."""

from __future__ import annotations

import errno
import io
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..arm import DeviceError
from ..config import setting
from ..screen import Screen
from ..teleoperator import Hand
from .browser_session import Session

if TYPE_CHECKING:
    from .. import web
    from ..web_site import Site


@dataclass(frozen=True)
class Config:
    """The fields of `[teleoperators.browser]`."""

    host: str = "127.0.0.1"
    """Address to listen on: `127.0.0.1` for this machine only, `0.0.0.0` for a phone."""
    port: int = setting(0, 0, 65535)
    """0 picks a free one."""
    timeout_s: float = setting(0.3, 0.05, 5, "s")
    """A hand that was not heard of for longer has let go."""
    speed_m_s: float = setting(0.15, 0.005, 2, "m/s")
    """Of the tip with the joystick or a key pushed all the way, at scale 1."""
    turn_rad_s: float = setting(1.0, 0.05, 6, "rad/s")
    """Of the tip's turning with the joystick or a key pushed all the way, at scale 1."""
    certificate: str = ""
    """PEM file to use instead of a self-signed certificate."""
    key: str = ""
    """PEM file with the key of `certificate`; empty: it is in the same file."""


def make(name: str, config: Config) -> BrowserTeleoperator:
    return BrowserTeleoperator(name, config)


class BrowserTeleoperator:
    """`url` opens the page, once `open` was called; it shows what `screen` is told. announce: called with the
    text that says how to open the page. drives: whether the page moves the robot; else it only shows it, and
    `read` is never active."""

    def __init__(
        self,
        name: str,
        config: Config,
        announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        state: Path | None = None,
        drives: bool = True,
    ) -> None:
        self.name, self.config, self.drives = name, config, drives
        self.screen = Screen()
        self.token = secrets.token_urlsafe(18)
        self.url = ""
        self._announce, self._state = announce, state
        self._lock = threading.Lock()
        self._session = self._fresh()
        self._server: web.Server | None = None

    def _fresh(self) -> Session:
        config = self.config
        return Session(config.timeout_s, config.speed_m_s, config.turn_rad_s, self.screen, self.drives)

    def open(self) -> None:
        if self._server is not None:
            return
        from . import browser_page

        site = self._site()
        self.url = f"{site.url}?token={self.token}"
        self._session = self._fresh()
        server = browser_page.server(self.name, self._session, self._lock, self.token, site)
        try:
            server.start(f"teleoperation page {self.name}")
        except Exception as error:
            self.url = ""
            raise DeviceError(f"the page of {self.name} could not be served: {error}") from error
        self._server = server
        self._announce(_invitation(self.name, self.url, site, self.drives))

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.url = ""

    def read(self) -> Hand:
        if self._server is None or not self._server.is_alive:
            return Hand(False)
        with self._lock:
            return self._session.read(time.monotonic_ns())

    def _site(self) -> Site:
        from ..web_site import open_site

        c = self.config
        try:
            return open_site(c.host, c.port, c.certificate, c.key, self._state)
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {error}") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "something else uses this port: choose another, or 0 for a free one"
            else:
                why = str(error.strerror or error)
            raise DeviceError(f"the page cannot be served at {c.host}:{c.port}: {why}") from None


def _invitation(name: str, url: str, site: Site, drives: bool) -> str:
    if site.loopback:
        return f"{name}: open {url}" if drives else f"{name}: look at it at {url}"
    import segno

    code = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(out=code, border=2, compact=True)
    lines = [f"{name}: scan this with the phone, or open {url}", code.getvalue().rstrip("\n")]
    return "\n".join([*lines, *filter(None, [site.warning])])
