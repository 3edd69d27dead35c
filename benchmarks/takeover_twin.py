"""The SO-101's twin: the scripted hand takes the arm over through the leader's driver, and gives it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ulna.datasets.features import ACTION, REQUESTED, STATE
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.store import EpisodeStore
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.server import PolicyServer
from ulna.robot.config import load_robot
from ulna.robot.deploy import deploy
from ulna.robot.keys import Keys
from ulna.robot.people import agent_for
from ulna.robot.record import open_store, recorder_for
from ulna.robot.takeover import Person

TIMES = 10
PLACES = (0.0, 0.4, -0.5, 0.9)  # rad, of the leader's first joint when the person takes over


class Sway:
    """A policy without a network that turns the first joint to and fro."""

    def __init__(self, features: Any, pressed: Any) -> None:
        self.metadata = Metadata("sway", dict(features), 1, 8, 0, 4, checkpoint="5" * 64)
        self.pressed, self.n = pressed, 0

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.n += 1
        self.pressed(self.n)
        turn = np.zeros((8, request[STATE].shape[-1]), np.float32)
        turn[:, 0] = 0.2 * np.sin(0.25 * (4 * self.n + np.arange(8)))
        home = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6], np.float32)
        return {"actions": home + turn, "nfe": 1}


def jumps_on_the_twin() -> dict[str, Any]:
    """In one long episode the arm is taken over and given back `TIMES` times, from each of `PLACES`."""
    words = [sys.executable, "-m", "ulna.robot.cli", "twin", "so101", "--leader", "--json"]
    typed, file = os.openpty()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        info = json.loads(process.stdout.readline())

        def order(name: str, body: Any = None) -> None:
            data = json.dumps(body or {}).encode()
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            opener.open(urllib.request.Request(f"{info['control']}/{name}", data), timeout=30).close()

        def person() -> None:
            for i in range(TIMES):
                place = {"shoulder_pan": PLACES[i % len(PLACES)]}
                order("move", {"device": "leader", "joints": place, "wait": False})
                time.sleep(1.0)
                os.write(typed, b"t")
                time.sleep(2.0)
                os.write(typed, b"t")
                time.sleep(1.0)
            os.write(typed, b"s")

        def pressed(n: int) -> None:
            if n == 5:
                threading.Thread(target=person, daemon=True).start()

        try:
            with tempfile.TemporaryDirectory() as folder, Keys(file) as keys:
                rig = load_robot(info["toml"], trackers=False)
                with (
                    PolicyServer(Sway(rig.robot.features, pressed), port=0).background() as server,
                    agent_for("leader", info["toml"], rig) as agent,
                    rig,
                    recorder_for(rig, open_store(rig, Path(folder) / "d")) as recorder,
                ):
                    assert isinstance(agent, Person)
                    os.write(typed, b"\n")
                    deploy(rig, server.url, 1, 0, None, 120.0, recorder, keys=keys, person=agent)
                (episode,) = EpisodeStore.open(Path(folder) / "d").episodes
                return _jumps(episode)
        finally:
            process.terminate()
            os.close(typed)
            os.close(file)


def _jumps(episode: Any) -> dict[str, Any]:
    """An arm that moves when hands change cannot stand still within a tick: a jump is what its command
    departs by from the motion that it had, its last step once more."""
    sent, asked = episode.read(ACTION).astype(float), episode.read(REQUESTED).astype(float)
    changes = np.flatnonzero(np.diff((episode.flags(ACTION) & INTERVENTION != 0).astype(int))) + 1
    jumps = np.abs(np.diff(sent, n=2, axis=0)).max(1)
    steps = np.abs(asked[1:] - sent[:-1]).max(1)
    return {
        "changes": len(changes),
        "largest_jump_at_a_change_rad": round(float(jumps[changes - 2].max()), 4),
        "largest_jump_elsewhere_rad": round(float(np.delete(jumps, changes - 2).max()), 4),
        "largest_step_asked_for_at_a_change_rad": round(float(steps[changes - 1].max()), 4),
    }
