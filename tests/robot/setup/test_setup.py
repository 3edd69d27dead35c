"""`ulna setup` of servos out of their boxes, on real ptys, by a person who does what it says, or does not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts.new_servos import FAMILIES, bench, plug

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos import so101
from ulna.drivers.servos.group import ServoGroup
from ulna.robot.cli import main
from ulna.robot.setup.guide import Guide
from ulna.robot.setup.kit import arms_of
from ulna.robot.setup.servos import check_chain, set_ids

pytestmark = pytest.mark.realtime

IDS = (1, 2, 3, 4, 5, 6)
NAMES = so101.NAMES


class Person(Guide):
    """Plugs the servos in that are asked for. mistakes: what to plug in instead, in turn, when a joint is
    asked for. answers: to questions."""

    def __init__(
        self, twin: Any, mistakes: dict[str, list[tuple[int, ...]]], answers: Iterable[bool] = ()
    ) -> None:
        super().__init__(False, 20.0)
        self.twin, self.mistakes, self.answers, self.words = twin, mistakes, list(answers), ""

    def say(self, text: str) -> None:
        before, self._last = self._last, self._last
        super().say(text)
        if text == before:
            return
        self.words += text + "\n"
        if asked := re.search(r"onnect the servo of (\w+)", text):
            self.asked = asked[1]
            self._plug()
        elif text.startswith("  ") and not text.startswith(("  STS", "  XL", "  It", "  Not")):
            self._plug()  # that was wrong: the next try
        if "connect all servos" in text:
            plug(self.twin, *range(6))

    def confirm(self, question: str) -> bool:
        self.say(question)
        return self.answers.pop(0)

    def _plug(self) -> None:
        turns = self.mistakes.get(self.asked, [])
        plug(self.twin, *(turns.pop(0) if turns else (NAMES.index(self.asked),)))


def group_of(kind: str, port: Path) -> ServoGroup:
    protocol = {"so101": "feetech", "koch": "dynamixel"}[kind]
    group = arms_of(kind)["follower"].servos(str(port), Path("none.json"), {})
    group.family = replace(group.family, bauds=FAMILIES[protocol].bauds)  # fewer speeds to look at
    group.bus.open()
    return group


@pytest.mark.parametrize(("kind", "protocol"), [("so101", "feetech"), ("koch", "dynamixel")])
def test_every_servo_gets_its_id_and_the_second_time_nothing_is_done(
    kind: str, protocol: str, tmp_path: Path
) -> None:
    with bench(protocol, tmp_path) as (_, twin):
        group, person = group_of(kind, tmp_path / "port"), Person(twin, {})
        try:
            assert set_ids(person, group)
            volts = check_chain(person, group)
            assert volts == pytest.approx([7.4] * 6 if kind == "so101" else [12.0] * 2 + [5.0] * 4)
            asked = re.findall(r"Connect the servo of (\w+)", person.words)
            assert asked == list(reversed(NAMES)), "from the gripper, as LeRobot does"
            again = Person(twin, {})
            assert not set_ids(again, group)
            assert "nothing to set" in again.words
        finally:
            group.bus.close()


def test_a_person_who_connects_other_servos_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    mistakes = {"gripper": [(4, 5), (5,)], "wrist_roll": [(5,), (4,)]}
    with bench("feetech", tmp_path) as (_, twin):
        group, person = group_of("so101", tmp_path / "port"), Person(twin, mistakes)
        try:
            set_ids(person, group)
            check_chain(person, group)
        finally:
            group.bus.close()
    assert "several servos answer at once as one (id 1): leave that of gripper alone" in person.words
    assert "This is still the servo of gripper (id 6): take it off." in person.words
    assert not any(mistakes.values())


def test_a_servo_of_the_wrong_model_is_not_taken(tmp_path: Path) -> None:
    with bench("dynamixel", tmp_path) as (_, twin):
        group, person = group_of("koch", tmp_path / "port"), Person(twin, {"gripper": [(0,)]})
        person.patience_s = 0.0
        try:
            with pytest.raises(DeviceError, match="waited"):
                set_ids(person, group)
            assert "This is a XL430-W250; gripper has a XL330-M288" in person.words
            assert group.bus.scan([1, 6]) == {}
            group.bus.set_baud(57_600)
            assert group.bus.scan([1, 6]) == {1: 1200}, "the right one is plugged in by now, and as it was"
        finally:
            group.bus.close()


def test_a_servo_with_another_id_is_asked_about(tmp_path: Path) -> None:
    with bench("feetech", tmp_path, ids=(1, 2, 3, 4, 5, 9)) as (_, twin):
        group = group_of("so101", tmp_path / "port")
        # the first answer is no: so it waits, for the person to connect that same one again, and says yes
        person = Person(twin, {"gripper": [(5,), (), (5,)]}, [True])
        try:
            set_ids(person, group)
        finally:
            group.bus.close()
    assert "It answers as 9: it was set before. Is it that of gripper, to become 6?" in person.words
    assert "It has the id 5 already" in person.words


def test_a_servo_missing_in_the_chain_is_named(tmp_path: Path) -> None:
    with bench("feetech", tmp_path, (0, 1, 2, 4, 5), ids=IDS) as (_, twin):
        group, person = group_of("so101", tmp_path / "port"), Person(twin, {})

        def say(text: str) -> None:
            person.words += text + "\n"
            if "Not there yet" in text:
                plug(twin, *range(6))

        person.say = say
        try:
            check_chain(person, group)
        finally:
            group.bus.close()
    assert "Not there yet: wrist_flex (servo 4)." in person.words
    assert "All 6 servos answer; they measure 7.4 V." in person.words


# the command


def test_the_command_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    robot = tmp_path / "arm.toml"
    for words, argv in (
        ("did you mean so101", ["so100"]),
        ("did you mean leader", ["so101", "--arms", "leadr"]),
        ("names no arm", ["so101", "--arms", ","]),
        ("ends in .toml", ["so101", "--out", "arm.json"]),
        ("/dev/none", ["so101", "--out", str(robot), "--port", "/dev/none"]),
    ):
        assert main(["setup", *argv]) in (1, 2)
        assert words in capfd.readouterr().err
    assert not robot.exists()
    robot.write_text(
        'name = "x"\ncontrol_hz = 20.0\n'
        '[arms.arm]\ndriver = "so101"\nport = "/dev/a"\ncalibration = "c.json"\n'
    )
    assert main(["setup", "so101", "--out", str(robot), "--port", "/dev/b"]) == 2
    assert "says that the follower is at /dev/a, not at /dev/b" in capfd.readouterr().err


def test_what_is_done_is_skipped_and_a_ctrl_c_says_where_it_stands(tmp_path: Path) -> None:
    """An arm whose servos have their ids: its file is written; then it is interrupted in the calibration."""
    robot = tmp_path / "arm.toml"
    words = ["setup", "so101", "--out", str(robot), "--arms", "follower", "--port", str(tmp_path / "port")]
    command = [sys.executable, "-m", "ulna.robot.cli", *words]
    with bench("feetech", tmp_path, range(6), ids=IDS):
        process = subprocess.Popen([*command, "--yes"], stderr=subprocess.PIPE, text=True)
        try:
            text = ""
            while "The torque is off" not in text:
                assert process.stderr is not None
                line = process.stderr.readline()
                assert line, text
                text += line
            assert robot.exists()
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "stopped at: follower: calibration. Nothing is half written" in rest
        assert not (tmp_path / "arm-follower.json").exists()
        before = robot.read_bytes()
        again = subprocess.run(
            [*command, "--no-calibration", "--json"], capture_output=True, text=True, timeout=60, check=False
        )
    assert again.returncode == 0, again.stderr
    answer = json.loads(again.stdout)
    assert answer["arms"]["follower"]["ids_set"] is False
    assert answer["arms"]["follower"]["table_written"] is False
    assert robot.read_bytes() == before
    assert f"ulna calibrate --robot {robot} --arm arm" in answer["next"]
    assert "nothing to set" in again.stderr


def test_nobody_at_the_keyboard_is_one_sentence(tmp_path: Path) -> None:
    words = ["setup", "so101", "--out", str(tmp_path / "arm.toml"), "--arms", "follower"]
    with bench("feetech", tmp_path, range(6), ids=IDS):
        run = subprocess.run(
            [sys.executable, "-m", "ulna.robot.cli", *words, "--port", str(tmp_path / "port")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 1
    assert "nobody answers" in run.stderr
    assert "--yes" in run.stderr
    assert "Traceback" not in run.stderr


def test_silence_is_explained(tmp_path: Path) -> None:
    with bench("feetech", tmp_path) as (_, twin):
        group, person = group_of("so101", tmp_path / "port"), Person(twin, {"gripper": [()] * 9})
        person.patience_s = 3.0
        try:
            with pytest.raises(
                DeviceError, match="waited 3 s for the servo of gripper; run the same command"
            ):
                set_ids(person, group)
        finally:
            group.bus.close()
    assert "No feetech servo answers at any speed: is the power on" in person.words
