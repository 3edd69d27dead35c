"""The whole way of a newcomer, with a twin for the arms: servos out of their boxes, `ulna setup`, a hand that
calibrates, and a leader that leads."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.twin import ENVIRONMENT, ask, twin

from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.config import load_robot

pytestmark = pytest.mark.realtime
ULNA = [sys.executable, "-m", "ulna.robot.cli"]


def set_up(info: dict[str, Any], words: list[str]) -> tuple[dict[str, Any], str]:
    """`ulna setup`, and somebody at the control channel who does what it says. Its answer, and its words."""
    device, text, sweeps = "arm", "", list[threading.Thread]()
    with subprocess.Popen(
        [*ULNA, "setup", *words, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if "--yes" not in words:  # the only question where the port is said: may the torque go off?
            process.stdin.write("y\n")
            process.stdin.flush()
        for line in process.stderr:
            text += line
            device = "leader" if "== leader" in line else device
            if asked := re.match(r"Connect the servo of (\w+)", line):
                ask(info, "plug", {"device": device, "servo": asked[1]})
            if "connect all servos" in line:
                ask(info, "plug", {"device": device, "servo": "all"})
            if "The torque is off" in line:
                sweeps.append(threading.Thread(target=sweep, args=(info, device, process)))
                sweeps[-1].start()
        answer = process.stdout.read()
        for thread in sweeps:
            thread.join()
        assert process.wait(20) == 0, text
    return json.loads(answer), text


def sweep(info: dict[str, Any], device: str, process: subprocess.Popen[str]) -> None:
    time.sleep(0.5)  # it begins to look
    ask(info, "sweep", {"device": device})
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # with --yes it ends by itself
        process.stdin.write("\n")
        process.stdin.flush()


def errors_of_angles(info: dict[str, Any], robot: Path) -> np.ndarray:
    """By how much, in rad, the driver and the ground truth differ in each joint of the follower."""
    with load_robot(str(robot)) as rig:
        time.sleep(0.5)
        driver = rig.robot.observe().values["observation.state"]
        truth = [joint["position_rad"] for joint in ask(info, "joints")["arm"].values()]
    return np.abs(driver - np.array(truth))


def test_a_newcomer_brings_an_so101_and_its_leader_up(tmp_path: Path) -> None:
    robot = tmp_path / "my-so101.toml"
    with twin("so101", "--leader", "--factory-new") as info:
        ports = ["--port", info["ports"]["arm"], "--leader-port", info["ports"]["leader"]]
        answer, text = set_up(info, ["so101", "--out", str(robot), *ports, "--yes"])
        assert text.count("id 1 at 1000000 baud: now id") == 10, "the first joint's servo has its id already"
        for arm in ("follower", "leader"):
            assert answer["arms"][arm]["ids_set"]
            assert answer["arms"][arm]["calibrated"]
            assert Path(answer["arms"][arm]["calibration"]).exists()
        assert (errors_of_angles(info, robot) < [0.03] * 5 + [0.06]).all()
        words = ["record", "--robot", str(robot), "--agent", "leader", "--task", "wave", "--episodes", "1"]
        assert main([*words, "--max-seconds", "1", "--out", str(tmp_path / "data")]) == 0
        (episode,) = EpisodeStore.open(tmp_path / "data").episodes
        assert set(episode.attrs["calibration"]) >= {"arm"}
        # again: all is there, nothing is written
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        answer, text = set_up(info, ["so101", "--out", str(robot), "--yes"])
        assert not any(arm["ids_set"] or arm["calibrated"] for arm in answer["arms"].values())
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_newcomer_brings_a_koch_up_by_answering_and_pressing_enter(tmp_path: Path) -> None:
    robot = tmp_path / "my-koch.toml"
    with twin("koch", "--factory-new") as info:
        words = ["koch", "--out", str(robot), "--arms", "follower", "--port", info["ports"]["arm"]]
        answer, text = set_up(info, words)
        assert text.count("id 1 at 57600 baud: now id") == 6
        assert "XL430-W250, id 1" in text
        assert answer["arms"]["follower"]["volts"] == [12.0] * 2 + [5.0] * 4
        assert (errors_of_angles(info, robot) < [0.03] * 5 + [0.06]).all()
