"""The page on a phone or a headset: the phone's tilt and WebXR poses, given by script to a real Chromium."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.chromium import CHROMIUM, Page, browser

from ulna.drivers.hands.browser import BrowserTeleoperator, Config
from ulna.drivers.teleoperator import Hand

SOON_S = 20.0
S, C = np.sin(np.pi / 8), np.cos(np.pi / 8)  # of a quaternion that turns by 45 degrees
pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]

# a screen that one touches
PHONE = """
const asked = matchMedia;
matchMedia = (q) => q.includes("hover: none") ? { matches: true, addEventListener() {} } : asked(q);
"""
# a person who takes time to answer whether the page may know the tilt: `answer("granted")`
SLOW_PERSON = """
let answer;
DeviceOrientationEvent.requestPermission = () => new Promise((resolve) => (answer = resolve));
"""
# a headset with one controller: where it is, whether it is seen, and what is pressed
HEADSET = """
delete window.XRWebGLLayer;
const at = { p: [0, 0, 0], q: [0, 0, 0, 1], lost: false };
const axes = (v) => Object.fromEntries(v.map((x, i) => ["xyzw"[i], x]));
class Session extends EventTarget {
  visibilityState = "visible";
  updateRenderState() {}
  async requestReferenceSpace() { return {}; }
  requestAnimationFrame(step) { this.step = step; }
  async end() { this.dispatchEvent(new Event("end")); }
}
const session = new Session();
const pose = () => at.lost ? null : { emulatedPosition: false, transform: { position: axes(at.p), orientation: axes(at.q) } };
setInterval(() => session.step?.(0, { getPose: pose, getViewerPose: pose }), 16);
const controller = { targetRayMode: "tracked-pointer", gripSpace: {} };
const fire = (name) => session.dispatchEvent(Object.assign(new Event(name), { inputSource: controller }));
Object.defineProperty(navigator, "xr", { value: {
  isSessionSupported: async (kind) => kind === "immersive-vr",
  requestSession: async () => session,
} });
"""


@contextlib.contextmanager
def driving(profile: Path, device_js: str) -> Iterator[tuple[BrowserTeleoperator, Page]]:
    device = BrowserTeleoperator("so101", Config(timeout_s=2.0), lambda _: None)
    device.open()
    try:
        with browser(profile) as page:
            page.size(1280, 800)
            page.call("Page.addScriptToEvaluateOnNewDocument", source=device_js)
            page.open(device.url)
            page.wait("document.body.dataset.role === 'drives'")
            yield device, page
            assert page.errors == []
    finally:
        device.close()


def until(device: BrowserTeleoperator, wanted: Callable[[Hand], object]) -> Hand:
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        hand = device.read()
        if wanted(hand):
            return hand
        time.sleep(0.01)
    raise AssertionError(f"not within {SOON_S} s; the last one: {device.read()}")


def near(found: np.ndarray | None, wanted: object) -> bool:
    return found is not None and bool(np.allclose(found, np.asarray(wanted), atol=1e-6))


def about(axis: int, degrees: float) -> np.ndarray:
    """`(3, 3)`: a turn about x, y or z of the robot."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    out = np.eye(3)
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    out[[i, j, i, j], [i, j, j, i]] = c, c, -s, s
    return out


def test_a_phone_that_is_tilted_turns_the_tip(tmp_path: Path) -> None:
    with driving(tmp_path / "profile", PHONE) as (device, page):
        page.tilt(0, 0, 0)
        page.click("#tilt")
        page.wait("document.querySelector('#tilt').checked")
        x, y = page.run(
            "(() => { const r = document.querySelector('#pad').getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2] })()"
        )
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **held)
        until(device, lambda h: h.active)
        for angles, turn in (
            ((0, 30, 0), about(1, -30)),  # its top rises: so does the tip's nose
            ((30, 0, 0), about(2, 30)),  # to the left
            ((0, 0, 30), about(0, 30)),  # its left side rises
        ):
            page.tilt(*angles)
            until(device, lambda h, turn=turn: h.active and near(h.rotation, turn))
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y - 50, **held)
        hand = until(device, lambda h: h.displacement is not None and h.displacement[0] > 0)
        assert near(hand.rotation, about(0, 30)), "both at once"
        page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y - 50, **held)
        until(device, lambda h: not h.active)


def test_tilt_counts_as_on_when_the_person_has_agreed_and_the_phone_told_it(tmp_path: Path) -> None:
    state = "(({checked, disabled}) => [checked, disabled])(document.querySelector('#tilt'))"
    with driving(tmp_path / "profile", PHONE + SLOW_PERSON) as (_, page):
        page.tilt(0, 0, 0)
        page.click("#tilt")
        page.wait("typeof answer === 'function'")
        assert page.run(state) == [False, True], "not on before the person has agreed"
        page.run("answer('denied')")
        page.wait("!document.querySelector('#toast').hidden")
        assert page.run(state) == [False, False]
        page.run("answer = undefined")
        page.click("#tilt")
        page.wait("typeof answer === 'function'")
        page.run("answer('granted')")
        page.wait("document.querySelector('#tilt').checked")
        assert page.run(state) == [True, False]


def test_a_phone_without_the_sensor_says_so(tmp_path: Path) -> None:
    with driving(tmp_path / "profile", PHONE) as (_, page):
        page.click("#tilt")
        page.wait("document.querySelector('#toast').textContent === 'This phone does not tell its tilt'")
        assert page.run("document.querySelector('#tilt').checked") is False


def test_a_headsets_controller_leads_while_it_is_pressed_and_seen(tmp_path: Path) -> None:
    with driving(tmp_path / "profile", HEADSET) as (device, page):
        page.wait("!document.querySelector('#xr-line').hidden")
        page.click("#xr")
        page.wait("document.querySelector('#xr').textContent === 'Stop'")
        page.run("at.p = [0, 0, -0.3]")
        assert not device.read().active, "nothing is pressed"

        page.run("fire('selectstart')")
        until(device, lambda h: h.active and near(h.displacement, [0, 0, 0]))
        page.run("at.p = [0.05, 0.02, -0.4]")  # WebXR's x is to the right, y up, z towards the person
        until(device, lambda h: h.active and near(h.displacement, [0.1, -0.05, 0.02]))
        page.run(f"at.q = [0, {S}, 0, {C}]")
        until(device, lambda h: h.active and near(h.rotation, about(2, 45)))
        page.run("fire('squeezestart')")
        until(device, lambda h: h.active and h.gripper is not None and h.gripper < 1)
        page.run("fire('squeezeend')")

        page.run("at.lost = true")
        until(device, lambda h: not h.active)
        page.run("at.lost = false, at.p = [1, 1, 1]")
        page.wait("at.p[0] === 1")
        assert not device.read().active, "one that was lost from sight must be pressed anew"
        page.run("fire('selectend'), fire('selectstart')")
        until(device, lambda h: h.active and near(h.displacement, [0, 0, 0]))

        page.run("session.visibilityState = 'hidden', fire('visibilitychange')")  # the headset is taken off
        until(device, lambda h: not h.active)
        page.run("session.visibilityState = 'visible', fire('selectstart')")
        until(device, lambda h: h.active)
        page.click("#xr")  # Stop
        until(device, lambda h: not h.active)
        page.wait("document.querySelector('#xr').textContent !== 'Stop'")
