"""The robot's computer and the GPU's as two network namespaces, with a wire between them that delays and
loses.

    sudo scripts/remote-trial [CHECKPOINT] [--seconds N] [--only 25ms-1%]

The server runs in one namespace, a twin of an SO-101 and `ulna deploy` in the other. The wire is two TUN
devices and this process, which holds every packet back and drops some: no kernel module is needed. Without a
CHECKPOINT an untrained policy of the arm's joints and one camera is served. Numbers go to
benchmarks/results/remote_trial.json.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
ULNA = [sys.executable, "-m", "ulna.robot.cli"]
ROBOT, GPU = "ulna-robot", "ulna-gpu"
ADDRESS = {ROBOT: "10.77.0.1", GPU: "10.77.0.2"}
PORT = 8000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Case:
    """delay_ms: one way. loss: share of the packets, each way. cut_s: when the wire breaks, from the
    first pictures on; 0: never."""

    name: str
    delay_ms: float = 0.0
    loss: float = 0.0
    cut_s: float = 0.0


CASES = (
    Case("no delay"),
    Case("5ms", 5.0),
    Case("25ms-1%", 25.0, 0.01),
    Case("75ms-3%", 75.0, 0.03),
    Case("cut after 2 s", 5.0, 0.0, 2.0),
)


class Wire:
    """Carries packets between the two namespaces, from a thread. `case` may change while it runs."""

    def __init__(self) -> None:
        self.case, self.cut, self.carried, self.lost = CASES[0], False, 0, 0
        self._random = random.Random(0)
        self._stopped = False

    @contextlib.contextmanager
    def running(self) -> Iterator[Wire]:
        ends = [_tun(ROBOT), _tun(GPU)]
        thread = threading.Thread(target=self._carry, args=(ends,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopped = True
            thread.join(5)
            for end in ends:
                os.close(end)

    def cut_later(self, seconds: float) -> None:
        """Break it so long after the first pictures went over it."""
        while not (self.carried > 100 or self._stopped):
            time.sleep(0.01)
        time.sleep(seconds)
        self.cut = True

    def _carry(self, ends: list[int]) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []  # (when, order, to, packet)
        order = 0
        while not self._stopped:
            timeout = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else 0.1
            for end in select.select(ends, [], [], min(timeout, 0.1))[0]:
                packet = os.read(end, 65536)
                if self.cut or self._random.random() < self.case.loss:
                    self.lost += 1
                    continue
                order += 1
                to = ends[1] if end == ends[0] else ends[0]
                heapq.heappush(waiting, (time.monotonic() + self.case.delay_ms / 1e3, order, to, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # a device that is going down
                    os.write(to, packet)
                    self.carried += 1


def _tun(namespace: str) -> int:
    """A TUN device in that namespace, up, with its address."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        os.setns(there, os.CLONE_NEWNET)
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"ulna0", IFF_TUN | IFF_NO_PI))
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)
        os.close(there)
    for words in (f"addr add {ADDRESS[namespace]}/30 dev ulna0", "link set ulna0 up", "link set lo up"):
        subprocess.run(["ip", "-n", namespace, *words.split()], check=True)
    return device


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """PermissionError where this user may make none."""
    made: list[str] = []
    try:
        for name in (ROBOT, GPU):
            run = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if run.returncode:
                raise PermissionError(
                    f"cannot make a network namespace ({run.stderr.strip()}): run it as root"
                )
            made.append(name)
        yield
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextlib.contextmanager
def inside(namespace: str, command: list[str]) -> Iterator[dict[str, Any]]:
    """A command in a namespace; the first line that it prints, JSON."""
    words = ["ip", "netns", "exec", namespace, *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait(20)


def deploy(robot: str, seconds: float, ulna: list[str]) -> dict[str, Any]:
    """What `ulna deploy` says of one episode."""
    server = f"ws://{ADDRESS[GPU]}:{PORT}"
    options = ["--robot", robot, "--server", server, "--max-seconds", f"{seconds:g}", "--json"]
    began = time.monotonic()
    run = subprocess.run(
        ["ip", "netns", "exec", ROBOT, *ulna, "deploy", *options],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=seconds + 180,
    )
    wall_s = round(time.monotonic() - began, 1)
    if run.returncode:
        return {"ended": run.stderr.strip().splitlines()[-1], "wall_s": wall_s}
    result = json.loads(run.stdout)
    (episode,) = result["episodes"]
    return {
        "ticks": episode["ticks"],
        "late": episode["late"],
        "decisions": result["decisions"],
        "decision_ms": {k: round(v, 1) for k, v in result["latency_ms"].items()},
        "wall_s": wall_s,
    }


def untrained(folder: Path) -> Path:
    """A checkpoint for the twin: joints and one camera, actions near the pose in which episodes begin."""
    import torch

    from ulna.datasets.features import ACTION, IMAGES, STATE, Feature
    from ulna.datasets.stats import vector_stats
    from ulna.drivers.servos import so101
    from ulna.policies.checkpoint import save_checkpoint
    from ulna.policies.parts import override
    from ulna.policies.policy import Policy
    from ulna.policies.recipes.mip import regression_mlp
    from ulna.policies.train.record import TrainingRecord

    joints = so101.JOINTS
    vector = Feature((6,), "float32", tuple(joints.names), tuple(joints.units))
    features = {STATE: vector, IMAGES + "front": Feature((96, 96, 3), "uint8"), ACTION: vector}
    home = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6])
    near = home + 0.05 * np.random.default_rng(0).standard_normal((200, 6))
    stats = {key: vector_stats(near) for key in (STATE, ACTION)}
    torch.manual_seed(0)
    changes = {"codec": "Absolute", "backbone.width": 64, "backbone.depth": 2}
    policy = Policy(override(regression_mlp(features), changes), features, stats)
    save_checkpoint(folder, policy, TrainingRecord(control_hz=20.0))
    return folder


def trial(checkpoint: Path, cases: tuple[Case, ...], seconds: float, ulna: list[str]) -> dict[str, Any]:
    """By the names of the cases, what `ulna deploy` did."""
    serve = [*ULNA, "serve", str(checkpoint), "--host", "0.0.0.0", "--open", "--port", str(PORT), "--json"]
    twin = [*ULNA, "twin", "so101", "--cameras", "front", "--json"]
    results: dict[str, Any] = {}
    with (
        namespaces(),
        Wire().running() as wire,
        inside(GPU, serve),
        inside(ROBOT, twin) as device,
    ):
        for case in cases:
            wire.case, wire.cut, wire.carried, wire.lost = case, False, 0, 0
            if case.cut_s:
                threading.Thread(target=wire.cut_later, args=(case.cut_s,), daemon=True).start()
            results[case.name] = {
                "one_way_ms": case.delay_ms,
                "loss": case.loss,
                **deploy(device["toml"], seconds, ulna),
                "packets": wire.carried,
                "packets_lost": wire.lost,
            }
            print(case.name, json.dumps(results[case.name]), file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of an episode")
    parser.add_argument("--only", help="one case; nothing is saved", choices=[c.name for c in CASES])
    parser.add_argument(
        "--robot-ulna", help="the `ulna` of another environment, such as one of requirements-robot.lock"
    )
    args = parser.parse_args()
    ulna = [args.robot_ulna] if args.robot_ulna else ULNA
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or untrained(Path(folder) / "untrained")
        cases = tuple(c for c in CASES if args.only in (None, c.name))
        results = trial(checkpoint, cases, args.seconds, ulna)
    if args.only is None:
        from results import save

        save("remote_trial", {"seconds": args.seconds, "cases": results})


if __name__ == "__main__":
    main()
