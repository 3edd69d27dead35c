"""Hands at a twin: joints that are moved, servos that are plugged in, and the page for both."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.chromium import CHROMIUM, browser
from contracts.twin import ask, twin

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos import so101
from ulna.drivers.servos.feetech import FeetechBus
from ulna.robot.twin.station import StationConfig, devices

pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def new() -> Iterator[dict[str, Any]]:
    """A factory-new SO-101 with its leader, as users start it; what it says of itself."""
    with twin("so101", "--leader", "--factory-new") as info:
        yield info


def refusal(info: dict[str, Any], name: str, body: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(info, name, body)
    with refused.value:
        return json.loads(refused.value.read())["error"]


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_nothing_is_plugged_in_before_a_hand_does_it(new: dict[str, Any]) -> None:
    bus = FeetechBus(new["ports"]["arm"], 1_000_000, 0.02)
    bus.open()
    try:
        ask(new, "plug", {"servo": "none"})
        assert bus.scan(range(8)) == {}
        assert ask(new, "plug", {"servo": "gripper"}) == {"plugged": ["gripper"]}
        wait_for(lambda: bus.scan(range(8)) == {1: 777})
        both = ask(new, "plug", {"servo": ["gripper", "wrist_roll"], "device": "arm"})
        assert both == {"plugged": ["wrist_roll", "gripper"]}
        on = {name for name, joint in ask(new, "joints")["arm"].items() if joint["plugged"]}
        assert on == {"wrist_roll", "gripper"}
        assert not any(joint["plugged"] for joint in ask(new, "joints")["leader"].values())
    finally:
        bus.close()
    assert not Path(new["toml"]).with_name("arm-calibration.json").exists(), "it is not calibrated"


@pytest.mark.parametrize("device", ["arm", "leader"])
def test_a_joint_goes_where_the_hand_takes_it_and_stays(new: dict[str, Any], device: str) -> None:
    answer = ask(new, "move", {"device": device, "joint": "elbow_flex", "position_rad": -0.5})
    assert answer["resists"] == []
    assert answer["position_rad"]["elbow_flex"] == pytest.approx(-0.5, abs=0.05)
    time.sleep(0.3)
    assert ask(new, "joints")[device]["elbow_flex"]["position_rad"] == pytest.approx(-0.5, abs=0.05)
    several = ask(new, "move", {"device": device, "joints": {"shoulder_pan": 0.4, "gripper": 1.0}})
    assert several["position_rad"] == pytest.approx({"shoulder_pan": 0.4, "gripper": 1.0}, abs=0.05)
    assert ask(new, "release", {"device": device}) == {"ok": True}


def test_a_joint_with_torque_does_not_give_way(new: dict[str, Any]) -> None:
    ask(new, "plug", {"servo": "shoulder_pan"})
    bus = FeetechBus(new["ports"]["arm"], 1_000_000, 0.02)
    bus.open()
    try:
        wait_for(lambda: bus.scan([1]) == {1: 777})
        bus.write_checked("torque_enable", 1, 1)
        before = ask(new, "joints")["arm"]["shoulder_pan"]
        assert before["torque"]
        answer = ask(new, "move", {"joint": "shoulder_pan", "position_rad": before["position_rad"] - 0.8})
        assert answer["resists"] == ["shoulder_pan"]
        time.sleep(0.3)
        now = ask(new, "joints")["arm"]["shoulder_pan"]["position_rad"]
        assert now == pytest.approx(before["position_rad"], abs=0.05)
        bus.write_checked("torque_enable", 1, 0)
        answer = ask(new, "move", {"joint": "shoulder_pan", "position_rad": before["position_rad"] - 0.8})
        assert answer["resists"] == []
        assert answer["position_rad"]["shoulder_pan"] == pytest.approx(before["position_rad"] - 0.8, abs=0.05)
    finally:
        bus.close()
        ask(new, "release", {})


def test_a_sweep_brings_every_joint_to_both_its_ends(new: dict[str, Any]) -> None:
    limits, seen = so101.JOINTS, []
    sweep = threading.Thread(target=ask, args=(new, "sweep", {}))
    sweep.start()
    while sweep.is_alive():
        seen.append([joint["position_rad"] for joint in ask(new, "joints")["arm"].values()])
        time.sleep(0.005)
    assert list(map(min, zip(*seen, strict=True))) == pytest.approx(limits.lower.tolist(), abs=0.06)
    assert list(map(max, zip(*seen, strict=True))) == pytest.approx(limits.upper.tolist(), abs=0.06)


@pytest.mark.parametrize(
    ("order", "body", "words"),
    [
        ("move", {"joint": "elbow", "position_rad": 0.0}, "did you mean elbow_flex"),
        ("move", {"joint": "elbow_flex", "position_rad": 3.0}, "goes from -1.69 to 1.69 rad, not to 3"),
        ("move", {"joint": "elbow_flex", "position_rad": "far"}, "a number of radians"),
        ("move", {"joint": "elbow_flex", "position_rad": float("nan")}, "is not finite"),
        ("move", {"joint": "elbow_flex"}, "needs 'position_rad'"),
        ("move", {"joints": ["elbow_flex"]}, "joints is an object"),
        ("move", {"joint": "elbow_flex", "position_rad": 0, "device": "leadr"}, "did you mean leader"),
        ("plug", {"servo": "griper"}, "did you mean gripper"),
        ("plug", {}, "needs 'servo'"),
    ],
)
def test_what_a_hand_cannot_do_is_one_sentence(
    new: dict[str, Any], order: str, body: dict[str, Any], words: str
) -> None:
    assert words in refusal(new, order, body)


def test_only_servos_can_be_factory_new() -> None:
    with pytest.raises(DeviceError, match=r"ur5e has no servos to be factory-new: so101 and .* have some"):
        devices(StationConfig("ur5e", factory_new=True))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_the_page_moves_joints_and_plugs_servos(new: dict[str, Any], tmp_path: Path) -> None:
    ask(new, "plug", {"servo": "none"})
    ask(new, "move", {"joint": "wrist_roll", "position_rad": 0.0})
    with browser(tmp_path) as page:
        page.open(new["control"])  # without a slash at its end, as it is printed
        page.wait("document.querySelectorAll('tbody tr').length === 12")
        page.wait("document.querySelectorAll('tr.off').length === 12")
        roll = "input[aria-label='arm: wrist_roll']"
        page.click(roll, 0.75)  # half-way from the middle to its end
        wait_for(lambda: abs(ask(new, "joints")["arm"]["wrist_roll"]["position_rad"] - 1.4) < 0.2)
        page.wait(
            "document.querySelectorAll('section tr:nth-child(5) .angle')[0].textContent.startsWith('8')"
        )
        page.click("section tr:nth-child(6) button")
        page.wait("document.querySelectorAll('tr.off').length === 11")
        assert ask(new, "joints")["arm"]["gripper"]["plugged"]
        page.click("button[data-servo=all]")
        page.wait("document.querySelectorAll('tr.off').length === 6")
        assert page.errors == []
        assert {status for status, _ in page.replies} <= {200, 307}
