"""The page that drives: WebSockets of well and badly behaved clients, and a real Chromium whose pointer
drags."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.chromium import CHROMIUM, Page, browser
from contracts.teleoperation_page import SOON_S, Client, client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ulna.drivers import web
from ulna.drivers.arm import DeviceError
from ulna.drivers.hands.browser import BrowserTeleoperator, Config
from ulna.drivers.hands.browser_session import Session
from ulna.drivers.teleoperator import FAILURE, FINISH, SUCCESS, Hand

pytestmark = pytest.mark.realtime

OUTCOMES = {SUCCESS: "Worked", FAILURE: "Failed"}
WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def teleoperator(tmp_path: Path | None = None, **config: Any) -> Iterator[BrowserTeleoperator]:
    announcements: list[str] = []
    device = BrowserTeleoperator("so101", Config(**config), announcements.append, tmp_path)
    device.open()
    try:
        assert device.url in announcements[0]
        yield device
    finally:
        device.close()


def until(
    device: BrowserTeleoperator,
    condition: Callable[[Hand], Any],
    meanwhile: Callable[[], object] = lambda: None,
) -> Hand:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        meanwhile()
        hand = device.read()
        if condition(hand):
            return hand
        time.sleep(0.01)
    raise AssertionError(f"not within {SOON_S} s; the last one: {device.read()}")


def test_a_hand_moves_while_it_is_held_and_stops_when_it_lets_go() -> None:
    with teleoperator(speed_m_s=0.2, timeout_s=5.0) as device, client(device) as page:
        assert not device.read().active
        hand = until(device, lambda h: h.active, lambda: page.hand(True, linear=[1, 0, 0], gripper=0.25))
        assert hand.linear.tolist() == pytest.approx([0.2, 0, 0])
        assert hand.gripper == 0.25
        assert hand.displacement is None
        rotation = [0.0, 0.0, np.sin(0.2), np.cos(0.2)]
        page.clutch += 1
        hand = until(
            device,
            lambda h: h.active and h.displacement is not None,
            lambda: page.hand(True, displacement=[0.01, 0, 0.02], rotation=rotation),
        )
        assert hand.displacement == pytest.approx([0.01, 0, 0.02])
        assert hand.rotation == pytest.approx(
            np.array([[np.cos(0.4), -np.sin(0.4), 0], [np.sin(0.4), np.cos(0.4), 0], [0, 0, 1]])
        )
        page.hand(False)
        until(device, lambda h: not h.active)
        device.screen.say("recording", "episode 1", OUTCOMES)
        page.say({"kind": "event", "event": "success"})
        assert until(device, lambda h: h.events).events == ("success",)
        assert page.next_message(lambda m: m["kind"] == "event")["label"] == "Worked"


def test_a_button_counts_only_while_the_robot_offers_it() -> None:
    with teleoperator(timeout_s=5.0) as device, client(device) as page:
        for buttons in ({}, {FINISH: "Begin"}):
            device.screen.say("waiting", "", buttons)
            page.say({"kind": "event", "event": "success"})
            page.say({"kind": "ping"})
            assert page.next_message(lambda m: "t" in m)["buttons"] == buttons
            assert device.read().events == ()
        device.screen.say("recording", "Episode 1 of 2", OUTCOMES)
        page.say({"kind": "event", "event": "failure"})
        assert until(device, lambda h: h.events).events == ("failure",)
        state = page.next_message(lambda m: m.get("phase") == "recording")
        assert (state["note"], state["seconds"]) == ("Episode 1 of 2", 0)


def test_a_hand_that_falls_silent_has_let_go_and_must_press_anew() -> None:
    with teleoperator(timeout_s=0.3) as device, client(device) as page:
        until(device, lambda h: h.active, lambda: page.hand(True, linear=[0, 1, 0]))
        silent = time.monotonic()
        until(device, lambda h: not h.active)
        assert time.monotonic() - silent > 0.05
        page.next_message(lambda m: m.get("lapsed", False))
        for _ in range(10):  # the same press goes on: it stays void
            page.hand(True, linear=[0, 1, 0])
            assert not device.read().active
            time.sleep(0.01)
        page.clutch += 1
        until(device, lambda h: h.active, lambda: page.hand(True, linear=[0, 1, 0]))


def test_a_hand_whose_page_goes_away_has_let_go() -> None:
    with teleoperator(timeout_s=5.0) as device:
        with client(device) as page:
            until(device, lambda h: h.active, lambda: page.hand(True))
            page.connection.socket.close()  # without a word
        closed_s = time.monotonic()
        until(device, lambda h: not h.active)
        assert time.monotonic() - closed_s < 5.0


def test_a_second_operator_watches_and_takes_over_only_from_a_hand_at_rest() -> None:
    with teleoperator(timeout_s=5.0) as device, client(device) as first:
        first.next_message(lambda m: m.get("role") == "drives")
        with client(device) as second:
            assert second.next_message(lambda m: m["kind"] == "state")["role"] == "watches"
            until(device, lambda h: h.active, lambda: first.hand(True, linear=[1, 0, 0]))
            second.hand(True, linear=[-1, 0, 0])
            second.say({"kind": "take"})
            device.screen.say("recording", "episode 1", OUTCOMES)
            second.say({"kind": "event", "event": "failure"})
            answer = second.next_message(lambda m: m["kind"] == "state" and m["held"])
            assert answer["role"] == "watches"
            assert "127.0.0.1" in answer["holder"]
            hand = until(device, lambda h: h.active, lambda: first.hand(True, linear=[1, 0, 0]))
            assert hand.linear[0] > 0
            assert not hand.events
            first.hand(False)
            until(device, lambda h: not h.active)
            second.say({"kind": "take"})
            second.next_message(lambda m: m.get("role") == "drives")
            first.next_message(lambda m: m.get("role") == "watches")
            first.hand(True, linear=[1, 0, 0])
            hand = until(device, lambda h: h.active, lambda: second.hand(True, linear=[-1, 0, 0]))
            assert hand.linear[0] < 0
        until(device, lambda h: not h.active)  # the second left
        first.next_message(lambda m: m.get("role") == "drives")


def test_a_page_that_pressed_while_it_watched_drives_with_its_next_press() -> None:
    session = Session(5.0, 0.1, 1.0)
    session.join(1, "first")
    session.join(2, "second")

    def reads(now_ns: int, active: bool, clutch: int) -> bool:
        said = {"kind": "hand", "active": active, "clutch": clutch, "t": now_ns * 1e-6}
        session.hear(2, json.dumps(said | {"linear": [1, 0, 0], "angular": [0, 0, 0]}), now_ns)
        return session.read(now_ns).active

    assert not reads(1, True, 1)
    session.leave(1)
    assert not reads(2, True, 1)
    assert session.state(2, 2)["lapsed"], "its page says that it has to press anew"
    assert [reads(3, False, 1), reads(4, True, 2)] == [False, True]


def test_a_new_press_reads_as_let_go_once_so_that_its_pose_begins_anew() -> None:
    with teleoperator(timeout_s=5.0) as device, client(device) as page:
        until(device, lambda h: h.active, lambda: page.hand(True, displacement=[0.2, 0, 0]))
        page.clutch += 1
        page.hand(True, displacement=[0, 0, 0])
        hands: list[Hand] = []
        until(device, lambda h: hands.append(h) or (h.active and h.displacement == pytest.approx([0, 0, 0])))
        assert [h.active for h in hands[-2:]] == [False, True]


def test_what_waited_in_the_network_moves_nothing() -> None:
    """By a clock that stands, so that no computer is too slow for it."""
    session, ms = Session(0.3, 1.0, 1.0), 1_000_000
    session.join(0, "a page")

    def hand(sent_ms: float, heard_ms: float, clutch: int) -> bool:
        message = {
            "kind": "hand",
            "active": True,
            "clutch": clutch,
            "linear": [1, 0, 0],
            "angular": [0, 0, 0],
            "t": sent_ms,
        }
        session.hear(0, json.dumps(message), round(heard_ms * ms))
        return session.read(round(heard_ms * ms)).active

    assert hand(0, 1000, 1)
    assert hand(200, 1210, 1)
    assert not hand(250, 2000, 1)  # 0.75 s late
    assert not hand(1000, 2010, 1)  # on time again, but of the press that was broken off
    assert hand(1100, 2110, 2)


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        "[]",
        '{"kind": "fly"}',
        '{"kind": "hand"}',
        '{"kind": "event", "event": "quit"}',
        '{"kind": "hand", "active": true, "clutch": 1, "linear": [NaN, 0, 0], "angular": [0, 0, 0], "t": 0}',
        (
            '{"kind": "hand", "active": true, "clutch": 1, "linear": [0, 0, 0], "angular": [0, 0, 0], '
            '"rotation": [0, 0, 0, 9], "t": 0}'
        ),
        '{"kind": "hand", "active": 1, "clutch": 1, "linear": [0, 0, 0], "angular": [0, 0, 0], "t": 0}',
        "[" * 4000,
        "x" * 5000,
        b"\x00",
    ],
)
def test_a_page_that_speaks_nonsense_is_dropped(message: str | bytes) -> None:
    with teleoperator() as device, client(device) as page:
        page.connection.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            page.next_message(lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1008, 1009)
        assert not device.read().active


def test_who_lacks_the_key_or_comes_from_another_site_is_refused() -> None:
    with teleoperator() as device:
        site = device.url.split("?")[0]
        with (
            pytest.raises(InvalidStatus, match="401"),
            connect(site.replace("http", "ws") + "socket?token=guess", proxy=None),
        ):
            pass
        with pytest.raises(InvalidStatus, match="403"), client(device, origin="http://evil.example"):
            pass
        own: Any = site.rstrip("/")
        with client(device, origin=own) as page:
            page.next_message(lambda m: m.get("role") == "drives")
        for path, host, status in (
            ("", None, 401),
            ("?token=wrong", None, 401),
            ("../browser.py", None, 404),
            ("teleop.js", "evil.example", 421),
        ):
            request = urllib.request.Request(site + path, headers={"Host": host} if host else {})
            with pytest.raises(urllib.error.HTTPError) as refused:
                WEB.open(request, timeout=SOON_S)
            with refused.value as answer:
                assert answer.code == status
        with WEB.open(device.url, timeout=SOON_S) as answer:
            assert b"teleop.js" in answer.read()
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        known = {"Cookie": cookie.split(";")[0]}
        with WEB.open(urllib.request.Request(site, headers=known), timeout=SOON_S) as answer:
            assert b"teleop.js" in answer.read(), "a page that is loaded again needs no key in its URL"
        socket_url = site.replace("http", "ws") + "socket"
        with connect(socket_url, additional_headers=known, origin=own, proxy=None) as connection:
            assert json.loads(connection.recv(timeout=SOON_S))["kind"] in ("robot", "state")
        stranger = BrowserTeleoperator("so101", Config(port=int(site.rsplit(":", 1)[1].strip("/"))))
        with pytest.raises(DeviceError, match="something else uses this port"):
            stranger.open()
    assert not device.read().active


def test_a_stranger_who_connects_and_says_nothing_whole_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FIRST_REQUEST_S", 0.2)
    with teleoperator(timeout_s=5.0) as device, client(device) as page:
        port = int(device.url.split("/")[2].rsplit(":", 1)[1])
        for words in (b"", b"GET / HTTP/1.1\r\nHost: local"):
            with socket.create_connection(("127.0.0.1", port), timeout=SOON_S) as stranger:
                stranger.sendall(words)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
        until(device, lambda h: h.active, lambda: page.hand(True))


def test_a_phone_is_served_over_tls_with_the_same_certificate_every_time(tmp_path: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # self-signed: the phone's owner agrees once
    certificates = set()
    for _ in range(2):
        with teleoperator(
            tmp_path, host="0.0.0.0", timeout_s=5.0
        ) as device:  # a busy machine is late at times
            assert device.url.startswith("https://")
            port = int(device.url.split("/")[2].rsplit(":", 1)[1])
            url = f"wss://127.0.0.1:{port}/socket?token={device.token}"
            with connect(url, ssl=context, proxy=None, origin=f"https://127.0.0.1:{port}") as connection:  # type: ignore[arg-type]
                page = Client(connection)
                until(device, lambda h: h.active, lambda: page.hand(True))  # noqa: B023
                tls_socket = connection.socket
                assert isinstance(tls_socket, ssl.SSLSocket)
                certificates.add(tls_socket.getpeercert(binary_form=True))
    assert len(certificates) == 1
    assert not (next(tmp_path.iterdir()).stat().st_mode & 0o077)


# -- Chromium ------------------------------------------------------------------------------------------------


def drag(page: Page, kind: str, x: float, y: float) -> None:
    page.call(
        "Input.dispatchMouseEvent",
        type=kind,
        x=x,
        y=y,
        button="left",
        buttons=int(kind != "mouseReleased"),
        clickCount=1,
    )


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_pointer_in_chromium_drives_and_lets_go(tmp_path: Path) -> None:
    with teleoperator(timeout_s=2.0) as device, browser(tmp_path / "profile") as page:
        page.size(1280, 800)
        page.open(device.url)
        page.wait("document.body.dataset.role === 'drives'")
        until(device, lambda _: page.run("document.body.dataset.link") == "ready")
        left, top, width, height = page.run(
            "(() => { const r = document.querySelector('#pad').getBoundingClientRect(); "
            "return [r.left, r.top, r.width, r.height] })()"
        )
        x, y = left + width / 2, top + height / 2

        drag(page, "mousePressed", x, y)
        drag(page, "mouseMoved", x, y - 50)  # up on the screen is ahead
        hand = until(device, lambda h: h.active and h.displacement is not None and h.displacement[0] > 0)
        assert hand.displacement is not None
        assert abs(hand.displacement[1]) < 1e-9
        drag(page, "mouseMoved", x - 40, y - 50)
        until(device, lambda h: h.displacement is not None and h.displacement[1] > 0.005)
        page.wait("document.body.dataset.link === 'moving'")
        drag(page, "mouseReleased", x - 40, y - 50)
        until(device, lambda h: not h.active)

        page.click("[data-mode=stick]")
        drag(page, "mousePressed", x, y)
        drag(page, "mouseMoved", x, y + height / 3)
        hand = until(device, lambda h: h.active and h.linear[0] < 0)
        assert hand.displacement is None
        page.run("dispatchEvent(new Event('blur'))")  # another window comes to the front
        until(device, lambda h: not h.active)
        drag(page, "mouseReleased", x, y)

        page.call("Input.dispatchKeyEvent", type="keyDown", key="a", code="KeyA", windowsVirtualKeyCode=65)
        assert until(device, lambda h: h.active).linear[1] > 0
        page.call("Input.dispatchKeyEvent", type="keyUp", key="a", code="KeyA", windowsVirtualKeyCode=65)
        until(device, lambda h: not h.active)

        assert page.run("document.querySelector('.episode').hidden") is True, "nothing is recorded"
        page.press("y")
        device.screen.say("recording", "Episode 1 of 2", OUTCOMES)
        page.wait("!document.querySelector('[data-event=success]').hidden")
        assert device.read().events == (), "a key from before"
        page.click("[data-event=success]")
        assert until(device, lambda h: h.events).events == ("success",)
        assert page.errors == []
        assert all(status in (101, 200) for status, _ in page.replies)

        drag(page, "mousePressed", x, y)
        drag(page, "mouseMoved", x, y - height / 3)
        until(device, lambda h: h.active)
        page.call("Page.navigate", url="about:blank")  # the tab goes on to something else
        until(device, lambda h: not h.active)

        page.open(device.url)
        page.wait("document.body.dataset.role === 'drives'")
        drag(page, "mousePressed", x, y)
        drag(page, "mouseMoved", x, y - height / 3)
        until(device, lambda h: h.active)
    assert not device.read().active


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_browser_that_is_closed_while_it_drives_lets_go(tmp_path: Path) -> None:
    with teleoperator(timeout_s=2.0) as device:
        with browser(tmp_path / "profile") as page:
            page.size(390, 844)
            page.open(device.url)
            page.wait("document.body.dataset.role === 'drives'")
            x, y = page.run(
                "(() => { const r = document.querySelector('#height').getBoundingClientRect(); "
                "return [r.left + r.width / 2, r.top + r.height / 2] })()"
            )
            drag(page, "mousePressed", x, y)
            drag(page, "mouseMoved", x, y - 60)
            hand = until(device, lambda h: h.active and h.displacement is not None and h.displacement[2] > 0)
            assert hand.displacement is not None
        until(device, lambda h: not h.active)
