"""A page as the script of the real teleoperation page speaks, without a browser."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from websockets.sync.client import ClientConnection, connect

from ulna.drivers.hands.browser import BrowserTeleoperator

SOON_S = 20.0
_WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Client:
    """One page. clutch: number of its present press."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.clutch = connection, 1
        self.state: dict[str, Any] = {}

    def hand(self, active: bool, clutch: int | None = None, **more: Any) -> None:
        message = {"kind": "hand", "active": active, "clutch": self.clutch if clutch is None else clutch}
        self.say({**message, "linear": [0, 0, 0], "angular": [0, 0, 0], **more})

    def say(self, message: dict[str, Any]) -> None:
        self.connection.send(json.dumps({"t": time.monotonic() * 1e3, **message}))

    def next_message(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The next message that meets `condition`."""
        deadline = time.monotonic() + SOON_S
        while time.monotonic() < deadline:
            message = json.loads(self.connection.recv(timeout=SOON_S))
            if condition(message):
                return message
        raise AssertionError("no such message came")


@contextlib.contextmanager
def client(page: BrowserTeleoperator | str, **more: Any) -> Iterator[Client]:
    """page: the device, or the URL that opens it."""
    url = page if isinstance(page, str) else page.url
    with connect(url.replace("http", "ws", 1).replace("/?", "/socket?"), proxy=None, **more) as connection:
        yield Client(connection)


class Answer(NamedTuple):
    status: int
    number: str
    body: bytes


def picture(url: str, camera: str, after: str = "", more: str = "") -> Answer:
    """What is answered to the request for a picture. url: that opens the page. more: of the query, ending in
    `&`."""
    site, _, token = url.partition("/?token=")
    at = f"{site}/camera/{camera}?after={after}&{more}"
    try:
        with _WEB.open(urllib.request.Request(at, headers={"X-Ulna-Token": token}), timeout=SOON_S) as answer:
            return Answer(answer.status, answer.headers.get("X-Number", ""), answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return Answer(refused.code, "", refused.read())
