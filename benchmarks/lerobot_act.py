"""LeRobot's ACT on our arm: demonstrations exported, `lerobot-train` on them in an environment of LeRobot's
own, then served, evaluated and deployed to the SO-101's device twin by our commands, as it is.

    python benchmarks/lerobot_act.py [--demonstrations 100] [--steps 1500] [--quick]

What is shown is that nothing is lost on the way: the same policy in simulation, through the server, and on
the twin through servo bytes and camera trackers. The environment lies under runs/foreign/. LeRobot's commands
import pyrealsense2, which needs the system's libusb-1.0.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from typing import Any

import results
from foreign_samples import RUNS
from lerobot_plugins import TOOL, LeRobot, installed, ulna

from ulna.robot.beside import beside
from ulna.robot.demos.phases import free_port

ROBOT = ("--robot", "sim:so101", "--task", "lift")
SEED = 3000  # of the first scene that it is tried on


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demonstrations", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=50, help="in simulation; a fifth of them on the twin")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; nothing is saved")
    args = parser.parse_args()
    if args.quick:
        args.demonstrations, args.steps, args.episodes = 4, 10, 5
    folder = RUNS / "lerobot-act"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = way(LeRobot(installed(), folder), args.demonstrations, args.steps, args.episodes)
    print(json.dumps(rows, indent=1), file=sys.stderr)
    if not args.quick:
        results.save("lerobot_act", {**rows, "packages": list(TOOL.packages)})


def way(lerobot: LeRobot, demonstrations: int, steps: int, episodes: int) -> dict[str, Any]:
    data, exported = lerobot.folder / "data", lerobot.folder / "exported"
    ulna("record", *ROBOT, "--agent", "expert", "--episodes", demonstrations, "--out", data)
    ulna("data", "export", data, "--out", exported)
    took, text = lerobot(
        "train",
        "--policy.type=act",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.chunk_size=16",
        "--policy.n_action_steps=8",
        "--policy.dim_model=128",
        "--policy.dim_feedforward=512",
        "--policy.optimizer_lr=3e-4",
        "--dataset.repo_id=ulna/lift",
        f"--dataset.root={exported}",
        "--batch_size=64",
        f"--steps={steps}",
        f"--save_freq={steps}",
        f"--log_freq={max(1, steps // 5)}",
        "--num_workers=0",
        f"--output_dir={lerobot.folder / 'act'}",
    )
    policy = f"lerobot:{lerobot.folder / 'act'}"
    scenes = (*ROBOT, "--seed", SEED)
    alone = ulna("evaluate", policy, *scenes, "--episodes", episodes, "--batch", episodes, "--videos", 0)
    few = max(1, episodes // 5)
    with (
        beside("serve", policy, "--port", str(free_port())) as server,
        beside("twin", "so101", "--scene", "lift", "--cameras", "front,wrist") as twin,
    ):
        through = ulna(
            "evaluate", policy, *scenes, "--episodes", few, "--server", server["url"], "--videos", 0
        )
        words = ("--robot", twin["toml"], "--server", server["url"], "--task", "lift", "--seed", SEED)
        deployed = ulna("deploy", *words, "--episodes", few, "--max-seconds", 15)
    same = [o["success"] for o in alone["outcomes"][:few]] == [o["success"] for o in through["outcomes"]]
    return {
        "demonstrations": demonstrations,
        "training": {
            "steps": steps,
            "seconds": round(took, 1),
            "losses": [float(x) for x in re.findall(r"loss:([\d.]+)", text)],
        },
        "in_simulation": {"successes": alone["successes"], "episodes": episodes},
        "through_the_server": {"successes": through["successes"], "episodes": few, "as_without_it": same},
        "on_the_twin": {
            "successes": deployed["successes"],
            "episodes": few,
            "decisions": deployed["decisions"],
            "latency_ms": deployed["latency_ms"],
        },
    }


if __name__ == "__main__":
    main()
