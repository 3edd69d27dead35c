"""Who moves a robot sees it: on the page that moves it, or on one that only shows a simulated arm. Recording
waits for the person at the page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.teleoperation_page import SOON_S, Client, client, picture

from ulna.datasets.store import EpisodeStore
from ulna.drivers.teleoperator import Hand
from ulna.robot.cli import main
from ulna.robot.config import load_robot
from ulna.robot.loop import run_episode
from ulna.robot.onlooker import OVERVIEW, onlooker_for
from ulna.robot.people import TeleoperatorAgent

pytestmark = pytest.mark.realtime


class Person:
    """Somebody at the page, in a thread of their own, whose address is read from standard error."""

    def __init__(self, capfd: pytest.CaptureFixture[str], does: Callable[[str], None]) -> None:
        self.capfd, self.does = capfd, does
        self.errors: list[BaseException] = []
        self.err = ""
        self._thread = threading.Thread(target=self._act, daemon=True)
        self._thread.start()

    def _act(self) -> None:
        try:
            deadline = time.monotonic() + SOON_S
            while (url := re.search(r"http://\S+", self.err)) is None:
                assert time.monotonic() < deadline, "no page was announced"
                time.sleep(0.02)
                self.err += self.capfd.readouterr().err
            self.does(url[0])
        except BaseException as error:  # noqa: BLE001  raised where it is joined
            self.errors.append(error)

    def join(self) -> None:
        self._thread.join(SOON_S)
        assert not self.errors, self.errors


def next_picture(url: str, after: str) -> tuple[str, bytes]:
    deadline = time.monotonic() + SOON_S
    while (answer := picture(url, OVERVIEW, after)).status != 200:
        assert time.monotonic() < deadline
        assert answer.status == 204
    return answer.number, answer.body


def test_teleoperate_with_nothing_said_shows_the_simulated_arm_as_it_moves(
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[bytes] = []
    joints: list[list[float]] = []

    def does(url: str) -> None:
        with client(url) as page:
            robot = page.next_message(lambda m: m.get("cameras"))
            assert (robot["name"], robot["cameras"]) == ("sim:so101", [OVERVIEW])
            assert robot["stand"] == 180, "the overview faces the robot, and so does who looks through it"
            state = page.next_message(lambda m: m.get("joints") and m["phase"] == "free")
            assert (state["note"], state["buttons"]) == ("Nothing is recorded.", {})
            joints.append(state["joints"])
            seen.append(next_picture(url, "")[1])
            for _ in range(20):
                page.hand(True, linear=[0, 1, 0])
                time.sleep(0.05)
            seen.append(next_picture(url, "")[1])
            page.say({"kind": "ping"})
            joints.append(page.next_message(lambda m: "t" in m)["joints"])
        os.kill(os.getpid(), signal.SIGINT)

    person = Person(capfd, does)
    assert main(["teleoperate", "--seconds", str(2 * SOON_S)]) in (0, 130)
    person.join()
    assert abs(joints[0][0] - joints[1][0]) > 0.05, "the shoulder turned"
    assert seen[0] != seen[1]


def test_a_simulated_arm_that_something_else_moves_is_shown_on_a_page_that_only_looks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Gamepad:
        name = "gamepad"

        def open(self) -> None: ...

        def close(self) -> None: ...

        def read(self) -> Hand:
            return Hand(False)

    said: dict[str, Any] = {}

    def does(url: str) -> None:
        with client(url) as page:
            said.update(page.next_message(lambda m: m["kind"] == "state" and m["joints"]))
            said["picture"] = next_picture(url, "")[1]

    rig = load_robot("sim:so101", realtime=True)
    agent = TeleoperatorAgent(Gamepad(), rig.robot, "so101")
    with onlooker_for(agent, rig) as onlooker, rig:
        assert onlooker is not None
        person = Person(capfd, does)
        run_episode(
            rig.robot, agent, [onlooker], task="", seed=0, max_ticks=400, stop=lambda: "picture" in said
        )
        person.join()
    assert said["role"] == "looks"
    assert "sim:so101: look at it at http://127.0.0.1:" in person.err


def test_recording_waits_for_the_person_who_begins_marks_and_repeats_on_the_page(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def phase(page: Client, name: str) -> dict[str, Any]:
        return page.next_message(lambda m: m.get("phase") == name and "t" not in m)

    def held(page: Client, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Press and drag until a message meets `condition`."""
        deadline = time.monotonic() + SOON_S
        while time.monotonic() < deadline:
            page.hand(True, displacement=[0.0, 0.02, 0.0])
            with contextlib.suppress(TimeoutError):
                if condition(message := json.loads(page.connection.recv(timeout=0.02))):
                    return message
        raise AssertionError("no such message came")

    def does(url: str) -> None:
        with client(url) as page:
            asked = phase(page, "waiting")
            assert asked["note"] == "Press and drag to begin episode 1 of 2."
            assert asked["buttons"] == {"finish": "Begin"}
            page.say({"kind": "event", "event": "success"})  # not asked for
            runs = held(page, lambda m: m.get("phase") == "recording")  # the press begins the episode
            shoulder = runs["joints"][0]
            held(page, lambda m: m.get("seconds") is not None and abs(m["joints"][0] - shoulder) > 0.02)
            assert runs["note"].startswith("Episode 1 of 2, at most 10 s: ")
            assert set(runs["buttons"]) == {"success", "failure", "again", "finish"}
            page.say({"kind": "event", "event": "success"})
            asked = held(page, lambda m: m.get("phase") == "waiting" and m["must_let_go"])
            assert asked["note"] == "Press and drag to begin episode 2 of 2."
            assert set(asked["buttons"]) == {"finish", "again", "drop last"}
            page.hand(False)
            page.say({"kind": "event", "event": "finish"})  # Begin
            phase(page, "recording")
            page.say({"kind": "event", "event": "failure"})

    person = Person(capfd, does)
    words = ["--task", "reach", "--agent", "browser", "--episodes", "2", "--max-seconds", "10"]
    assert main(["record", *words, "--out", str(tmp_path / "data")]) == 0
    person.join()
    episodes = EpisodeStore.open(tmp_path / "data").episodes
    assert [e.attrs["success"] for e in episodes] == [True, False]


@pytest.mark.parametrize("command", [["teleoperate"], ["record", "--out", "nowhere"]])
def test_a_phone_is_let_in_only_where_there_is_a_page_for_it(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--agent", "keyboard", "--phone"]) == 2
    assert "--phone lets a phone open the page of --agent browser" in capfd.readouterr().err
