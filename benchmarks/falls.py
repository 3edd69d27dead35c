"""By how much the tip of an SO-101 moves after its torque went, in a twin with physics: put down where it got
its torque, and where its rest pose is up in the air; beside a driver that is closed there as before.

    python benchmarks/falls.py [TRIALS]
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import results

from ulna.robot.config import load_robot, make_devices, read_config
from ulna.robot.kinematics import tip_chain
from ulna.robot.motion import go_to

SETTLE_S, LIES_S = 1.0, 2.0  # after the torque went; until a new twin's arm lies
HIGH_M = 0.05  # a pose whose tip is lower has not far to fall


@contextlib.contextmanager
def twin() -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "ulna.robot.cli", "twin", "so101", "--scene", "lift", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


class Watch:
    """Looks at the twin all the while. held_at: `(3,)` m, where the tip was when a joint last had torque."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._url = f"{info['control']}/state"
        self.chain = tip_chain("so101", tuple(self.state()["joints"]))
        self.held_at = self.tip()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the twin ends
            while True:
                state = self.state()
                if any(state["torque"]):
                    self.held_at = self.tip(state)
                time.sleep(0.005)

    def fallen_mm(self) -> float:
        """By how much the tip has moved since the torque went."""
        time.sleep(SETTLE_S)
        return 1000 * float(np.linalg.norm(self.tip() - self.held_at))

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(self._url, timeout=10) as reply:
            return json.loads(reply.read())

    def tip(self, state: dict[str, Any] | None = None) -> np.ndarray:
        return self.chain.forward(np.array(list((state or self.state())["joints"].values()))).position


@contextlib.contextmanager
def watched_twin() -> Iterator[tuple[Watch, str, np.ndarray]]:
    """A twin whose arm lies, as its robot file describes it, and its home `(J,)`."""
    with twin() as info:
        watch, file = Watch(info), info["toml"]
        home = np.array(read_config(file)["home"])
        time.sleep(LIES_S)
        yield watch, file, home


def high_pose(watch: Watch, home: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pose around `home` whose tip is up in the air."""
    while True:
        pose = home + rng.uniform(-0.5, 0.5, len(home)) * np.array([1, 1, 1, 1, 1, 0])
        if watch.chain.forward(pose).position[2] > HIGH_M:
            return pose


def put_down(file: str, pose: np.ndarray, watch: Watch) -> tuple[float, float]:
    """(mm that the tip moves after the torque went, s that it took to put the arm down)."""
    with load_robot(file) as rig:
        go_to(rig.robot, pose)
        began = time.monotonic()
    took_s = time.monotonic() - began
    return watch.fallen_mm(), took_s


def dropped(file: str, pose: np.ndarray, watch: Watch) -> float:
    """mm that the tip moves when the driver is closed at `pose`, as before."""
    arm = make_devices(file, read_config(file), "arms")["arm"]
    arm.open()
    arm.enable()
    here = arm.read().data
    for i in range(100):
        arm.command(here + (i + 1) / 100 * (pose - here), time.monotonic_ns() + 20_000_000)
        time.sleep(0.02)
    time.sleep(0.3)
    arm.close()
    return watch.fallen_mm()


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.median(values)), 3),
        "max": round(float(np.max(values)), 3),
        "trials": len(values),
    }


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = np.random.default_rng(0)
    moved: dict[str, list[float]] = {
        "where it got its torque": [],
        "a rest pose in the air": [],
        "dropped": [],
    }
    seconds: list[float] = []
    with watched_twin() as (watch, file, home):
        for _ in range(trials):
            mm, took_s = put_down(file, high_pose(watch, home, rng), watch)
            moved["where it got its torque"].append(mm)
            seconds.append(took_s)
            rest = high_pose(watch, home, rng)
            with_rest = Path(file).with_name("rest.toml")
            with_rest.write_text(
                Path(file).read_text().replace("[safety]\n", f"[safety]\nrest = {rest.tolist()}\n")
            )
            mm, took_s = put_down(str(with_rest), high_pose(watch, home, rng), watch)
            moved["a rest pose in the air"].append(mm)
            seconds.append(took_s)
    for _ in range(trials):  # each of its own: without a filter a joint may press on something, and trip
        with watched_twin() as (watch, file, home):
            moved["dropped"].append(dropped(file, high_pose(watch, home, rng), watch))
    results.save(
        "falls",
        {
            "tip_moved_mm": {name: summary(values) for name, values in moved.items()},
            "put_down_s": summary(seconds),
        },
    )


if __name__ == "__main__":
    main()
