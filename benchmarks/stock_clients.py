"""Clients of other projects, as they come, each in an environment of its own, against our server.

    python benchmarks/stock_clients.py [--only lerobot ...] [--isaac-groot FOLDER]

openpi-client, LeRobot's async client, and two of GR00T's wire. Each drives an untrained checkpoint that gives
the same actions for the same observation; what reaches the client is compared with what the policy gives
here. The environments lie under runs/foreign/ (LeRobot's has its own lerobot and this repository's PyTorch
behind).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from foreign_samples import Tool, environment

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.mip import regression_mlp
from ulna.policies.serving.groot_wire import GR00TWire
from ulna.policies.serving.lerobot_wire import LeRobotWire
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.record import TrainingRecord

REQUESTS = 100
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ARMS = tuple(f"{a}.{j}" for a in ("left", "right") for j in (*(f"joint_{i}" for i in range(7)), "gripper"))
TOOLS = {
    "openpi": Tool("openpi_trial", ("openpi-client==0.1.2", "numpy<2", "typing_extensions"), False),
    "lerobot": Tool("lerobot_client", ("lerobot==0.6.1",), True),
    "groot": Tool("groot_client", ("pyzmq", "msgpack", "numpy"), False),
    "groot_g1": Tool(
        "groot_g1_client",
        ("inspect-robots-unitree-g1==0.1.1", "inspect-robots==0.60.0", "pyzmq", "msgpack", "msgpack-numpy"),
        False,
    ),
}


def features(names: tuple[str, ...], units: tuple[str, ...], camera: str) -> Features:
    vector = Feature((len(names),), "float32", names, units)
    return {STATE: vector, IMAGES + camera: Feature((96, 96, 3), "uint8"), ACTION: vector}


def policy(folder: Path, of: Features, middle: np.ndarray) -> LocalPolicy:
    """Of numbers around `middle`."""
    near = middle + 5 * np.random.default_rng(0).standard_normal((200, len(middle)))
    stats = {key: vector_stats(near) for key in (STATE, ACTION)}
    torch.manual_seed(0)
    changes = {"codec": "Absolute", "backbone.width": 64, "backbone.depth": 2, "n_obs_steps": 1}
    save_checkpoint(
        folder, Policy(override(regression_mlp(of), changes), of, stats), TrainingRecord(control_hz=30.0)
    )
    return LocalPolicy(folder)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def run(name: str, arguments: list[str], data: bytes = b"") -> dict[str, Any]:
    """What the client's script says, in a folder where it may write."""
    tool = TOOLS[name]
    script = Path(__file__).parent / "foreign" / f"{tool.script}.py"
    environ = {**os.environ, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(environment(name, tool)), str(script), *arguments],
            input=data,
            capture_output=True,
            cwd=folder,
            env=environ,
            check=False,
            timeout=300,
        )
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip()[-400:])
    return json.loads(done.stdout.decode().strip().splitlines()[-1])


def summary(said: Mapping[str, Any], expected: np.ndarray) -> dict[str, Any]:
    got = np.array(said["actions"])
    ms = np.array(said["ms"][5:])
    times = {f"p{q}_ms": round(float(np.percentile(ms, q)), 2) for q in (50, 99)}
    off = float(np.abs(got - expected[: len(got)]).max())
    return {
        "works": bool(off < 1e-3),
        "actions": list(got.shape),
        "off_by": off,
        "requests": len(said["ms"]),
        **times,
    }


def openpi(folder: Path, _: str) -> dict[str, Any]:
    served = policy(folder, features(JOINTS, ("rad",) * 6, "front"), np.zeros(6))
    image = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    observation = {STATE: np.zeros(6, np.float32), IMAGES + "front": image}
    expected = served.infer(observation)["actions"]
    with PolicyServer(served, port=0).background() as server:
        said = run("openpi", [str(server.port), str(REQUESTS)], npz(**observation))
    broker = float(np.abs(np.array(said["broker"]) - expected[:4]).max())
    return {
        **summary(said, expected),
        "broker_off_by": broker,
        "refused": said["refused"],
        "numpy": said["numpy"],
    }


def lerobot(folder: Path, _: str) -> dict[str, Any]:
    """The client's robot stands at 10, 20, ... 60; its camera's noise is drawn by the same seed here."""
    units = ("deg",) * 5 + ("%",)
    state = 10.0 * np.arange(1, 7, dtype=np.float32)
    served = policy(folder, features(JOINTS, units, "front"), state.astype(np.float64))
    wire = LeRobotWire(served.metadata, port=0)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    import cv2

    small = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA)
    expected = served.infer({STATE: state, IMAGES + "front": small})["actions"]
    with PolicyServer(served, port=0, wires=[wire]).background():
        said = run("lerobot", [wire.url, "150", "--camera", "front"])
        other = run("lerobot", [wire.url, "1", "--camera", "wrist"])
    first = np.array([list(a.values()) for a in said["first"]])
    off = float(np.abs(first - expected[: len(first)]).max())
    return {
        "works": bool(said["started"] and not said["errors"] and off < 1e-3),
        "actions": said["actions"],
        "off_by": off,
        "hz": said["hz"],
        "ticks_starved": said["starved"],
        "errors": said["errors"],
        "a_robot_that_does_not_fit": other["errors"][0].split('details = "')[-1].split('"')[0],
    }


def groot(folder: Path, isaac: str, name: str = "groot") -> dict[str, Any]:
    middle = 0.5 * np.ones(16)
    served = policy(folder, features(ARMS, ("rad",) * 16, "head"), middle)
    image = np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    expected = served.infer({STATE: middle.astype(np.float32), IMAGES + "head": image})["actions"]
    wire = GR00TWire(served.metadata, port=0)
    with PolicyServer(served, port=0, wires=[wire]).background():
        arguments = [str(wire.port), str(REQUESTS), *([isaac] if isaac and name == "groot" else [])]
        said = run(name, arguments, npz(state=middle, image=image))
    return {**summary(said, expected), **{k: said[k] for k in ("client", "modalities") if k in said}}


CLIENTS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "openpi": openpi,
    "lerobot": lerobot,
    "groot": groot,
    "groot_g1": lambda folder, isaac: groot(folder, isaac, "groot_g1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CLIENTS, help="these alone; nothing is saved")
    parser.add_argument("--isaac-groot", default="", help="a checkout of Isaac GR00T, for its own client")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in args.only or CLIENTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = CLIENTS[name](Path(folder) / "checkpoint", args.isaac_groot)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                rows[name] = {"works": False, "why": str(error)[-400:]}
        rows[name]["packages"] = list(TOOLS[name].packages)
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    if args.only is None:
        works = sum(row["works"] for row in rows.values())
        results.save("stock_clients", {"clients": rows, "work": f"{works} of {len(rows)}"})


if __name__ == "__main__":
    main()
