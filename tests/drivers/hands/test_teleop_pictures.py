"""What the teleoperation page shows of the robot: pictures, joints, what goes on; asked as the page asks, and
in a real Chromium."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts.chromium import CHROMIUM, browser
from contracts.teleoperation_page import client, picture

from ulna.drivers.hands import browser_pictures
from ulna.drivers.hands.browser import BrowserTeleoperator, Config
from ulna.drivers.screen import Description
from ulna.drivers.teleoperator import AGAIN, FINISH, SUCCESS

pytestmark = pytest.mark.realtime
CAMERAS = ("front", "left wrist/top")


@contextlib.contextmanager
def page_of(cameras: tuple[str, ...] = CAMERAS, drives: bool = True) -> Iterator[BrowserTeleoperator]:
    device = BrowserTeleoperator("browser", Config(timeout_s=5.0), lambda _: None, drives=drives)
    device.screen.describe(
        Description(
            "mine", ("pan", "turn", "grip"), ("rad", "rad", "m"), (-1, -np.inf, 0), (1, np.inf, 0.1), cameras
        )
    )
    device.open()
    try:
        yield device
    finally:
        device.close()


def grey(value: int, height: int = 240, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def show(device: BrowserTeleoperator, rgb: np.ndarray, t_ns: int, age_s: float = 0.0) -> None:
    pictures = {camera: (rgb, t_ns, round(age_s * 1e9)) for camera in device.screen.description.cameras}
    device.screen.show(np.array([0.5, 2.0, 0.02]), True, pictures)


def decoded(body: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_each_new_picture_is_given_once_in_the_size_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(browser_pictures, "WAIT_S", 0.2)
    with page_of() as device:
        show(device, grey(50), 1)
        first = picture(device.url, "front")
        assert first.status == 200
        assert decoded(first.body).shape == (240, 320, 3), "never larger than it is"
        assert abs(int(decoded(first.body).mean()) - 50) <= 1
        assert picture(device.url, "front", first.number).status == 204
        show(device, grey(50), 1)  # the same capture once more
        assert picture(device.url, "front", first.number).status == 204
        later = threading.Timer(0.1, show, (device, grey(200), 2))
        later.start()
        second = picture(device.url, "front", first.number, "width=150&quality=1&")
        later.join()
        assert decoded(second.body).shape == (120, 160, 3)
        assert abs(int(decoded(second.body).mean()) - 200) <= 1
        assert picture(device.url, "left%20wrist%2Ftop").status == 200


def test_wrong_requests_for_a_picture_are_refused() -> None:
    with page_of() as device:
        show(device, grey(50), 1)
        for url in (device.url.split("?")[0] + "?", device.url + "x"):
            assert picture(url, "front").status == 401
        assert picture(device.url, "rear").status == 404
        for after in ("x", "1e9", "9" * 5000, "-"):
            assert picture(device.url, "front", after).status == 400
        assert picture(device.url, "front", more="width=-7&quality=999999999999&").status == 200


def test_joints_and_what_goes_on_are_told() -> None:
    with page_of() as device, client(device) as page:
        robot = page.next_message(lambda m: m["kind"] == "robot")
        assert robot["name"] == "mine"
        assert robot["cameras"] == list(CAMERAS)
        assert robot["joints"][1] == {"name": "turn", "unit": "rad", "lower": None, "upper": None}
        assert page.next_message(lambda m: m["kind"] == "state")["joints"] is None
        show(device, grey(9), 1)
        state = page.next_message(lambda m: m.get("joints"))
        assert state["joints"] == [0.5, 2.0, 0.02]
        assert (state["old"], state["doubtful"], state["must_let_go"]) == ({}, False, False)
        device.screen.must_let_go = True
        device.screen.show(np.array([np.nan, 2.0, 0.02]), False, {"front": (grey(9), 1, 3_200_000_000)})
        state = page.next_message(lambda m: m.get("doubtful"))
        assert state["joints"] == [None, 2.0, 0.02]
        assert state["old"] == {"front": 3}
        assert state["must_let_go"]


def test_a_page_that_only_looks_moves_nothing() -> None:
    with page_of(drives=False) as device, client(device) as page:
        device.screen.say("recording", "", {SUCCESS: "Worked"})
        page.say({"kind": "take"})
        page.hand(True)
        page.say({"kind": "event", "event": SUCCESS})
        page.say({"kind": "ping"})
        assert page.next_message(lambda m: "t" in m)["role"] == "looks"
        hand = device.read()
        assert not hand.active
        assert not hand.events


def test_who_stops_reading_neither_holds_the_robot_up_nor_takes_memory() -> None:
    """Fifty large pictures are asked for by each of four pages, and none is taken."""
    noise = np.random.default_rng(0).integers(0, 255, (960, 1280, 3), np.uint8)
    with page_of(("front",)) as device, contextlib.ExitStack() as stack:
        site, token = device.url.split("//")[1].split("/?token=")
        head = f"GET /camera/front?width=1280 HTTP/1.1\r\nHost: {site}\r\nX-Ulna-Token: {token}\r\n\r\n"
        request = head.encode()
        show(device, noise, 0)
        for _ in range(4):
            stuck = stack.enter_context(socket.socket())
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", int(site.rsplit(":", 1)[1])))
            stuck.sendall(50 * request)
        time.sleep(0.3)
        before = resident_mb()
        took = []
        for t in range(1, 101):
            began = time.thread_time()
            show(device, noise, t)
            took.append(time.thread_time() - began)
            time.sleep(0.005)
        assert np.median(took) < 0.001, "nothing is copied or coded here"
        # one picture is 1 MB as a file, and 4 MB before
        assert resident_mb() - before < 60
        # who reads is served meanwhile
        assert decoded(picture(device.url, "front", more="width=160&").body).shape == (120, 160, 3)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_chromium_shows_pictures_joints_and_the_buttons_that_count(tmp_path: Path) -> None:
    with page_of() as device, browser(tmp_path / "profile") as page:
        show(device, grey(40), 1)
        page.size(1280, 800)
        page.open(device.url)
        page.wait("document.querySelectorAll('#views img').length === 2")
        page.wait("[...document.querySelectorAll('#views img')].every((i) => i.naturalWidth > 0)")
        assert page.run("document.querySelector('.large figcaption').textContent") == "front"
        assert page.run("document.querySelectorAll('#joints output')[2].textContent") == "0.020 m"
        assert page.run("document.querySelector('.episode').hidden") is True

        brightness = (
            "((i) => { const c = document.createElement('canvas').getContext('2d'); c.drawImage(i, 0, 0);"
            " return c.getImageData(5, 5, 1, 1).data[0] })(document.querySelector('.large img'))"
        )
        assert abs(page.run(brightness) - 40) < 4
        show(device, grey(220), 2)
        page.wait(f"{brightness} > 200")

        page.click("figure:not(.large) button")
        page.wait("document.querySelector('.large figcaption').textContent === 'left wrist/top'")

        visible = (
            "[...document.querySelectorAll('[data-event]')].filter((b) => b.offsetParent)"
            ".map((b) => b.textContent)"
        )
        device.screen.say("waiting", "Press and drag to begin.", {FINISH: "Begin", AGAIN: "Last one again"})
        page.wait("document.querySelector('#note').textContent === 'Press and drag to begin.'")
        assert page.run(visible) == ["Begin", "Last one again"]
        device.screen.say("free", "Nothing is recorded.")
        page.wait("document.querySelector('.episode').hidden")

        page.wait(
            "[...document.querySelectorAll('#views output')].some((o) => o.textContent.endsWith('s old'))"
        )
        assert page.errors == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_chromium_asks_for_smaller_pictures_where_the_way_is_slow(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    with page_of(("front",)) as device, browser(tmp_path / "profile") as page:
        ended = threading.Event()

        def film() -> None:
            while not ended.wait(0.05):
                show(device, noise, time.monotonic_ns())

        filming = threading.Thread(target=film)
        filming.start()
        try:
            page.size(1280, 800)
            page.open(device.url)
            width = "document.querySelector('#views img')?.naturalWidth"
            page.wait(f"{width} === 640")
            slow = {
                "offline": False,
                "latency": 20,
                "downloadThroughput": 300_000,
                "uploadThroughput": 300_000,
            }
            page.call("Network.emulateNetworkConditions", **slow)
            page.wait(f"{width} < 480")
            assert page.errors == []
        finally:
            ended.set()
            filming.join()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_chromium_offers_nothing_to_press_on_a_page_that_only_looks(tmp_path: Path) -> None:
    with page_of(("front",), drives=False) as device, browser(tmp_path / "profile") as page:
        show(device, grey(40), 1)
        page.size(390, 844)
        page.open(device.url)
        page.wait("document.querySelector('#views img')?.naturalWidth > 0")
        assert page.run("document.querySelector('#pad').offsetParent === null")
        assert page.run("document.querySelector('#take').offsetParent === null")
        assert page.errors == []
