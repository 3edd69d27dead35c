"""LeRobot's ACT on our arm: demonstrations of a leader arm on the SO-101's device twin, exported; LeRobot's
own commands take the pictures out and train ACT on the rest, in an environment of their own; then it is
served and deployed to the twin by our commands, as it is.

    python benchmarks/lerobot_act.py [--demonstrations 40] [--steps 1500] [--quick]

What is shown is that nothing is lost on the way, through servo bytes and camera trackers on both ends; how
many scenes succeed is what so many steps give. The environment lies under runs/foreign/. LeRobot's commands
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
from head_to_head_methods import scaled
from lerobot_plugins import TOOL, LeRobot, installed, ulna

from ulna.datasets.features import IMAGES
from ulna.robot.beside import beside
from ulna.robot.demos.phases import free_port

CAMERAS = ("front", "wrist")
TWIN = ("twin", "so101", "--scene", "lift", "--cameras", ",".join(CAMERAS))
SEED = 3000  # of the first scene that it is tried on


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demonstrations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=10, help="on the twin")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; nothing is saved")
    args = parser.parse_args()
    if args.quick:
        args.demonstrations, args.steps, args.episodes = 2, 10, 1
    folder = RUNS / "lerobot-act"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = way(LeRobot(installed(), folder), args.demonstrations, args.steps, args.episodes)
    print(json.dumps(rows, indent=1), file=sys.stderr)
    if not args.quick:
        results.save("lerobot_act", {**rows, "packages": list(TOOL.packages)})


def way(lerobot: LeRobot, demonstrations: int, steps: int, episodes: int) -> dict[str, Any]:
    data, exported, seen = (lerobot.folder / name for name in ("data", "exported", "seen"))
    with beside(*TWIN, "--leader") as twin:
        words = ("--robot", twin["toml"], "--agent", "leader", "--image-size", "64x64", "--out", data)
        recorded = ulna("record", *words, "--episodes", demonstrations, "--only-successes")
    # a tick without a picture is of no account here, where nobody looks at them
    ulna("data", "export", data, "--out", exported, "--gaps", "repeat")
    lerobot(
        "edit_dataset",
        "--repo_id=ulna/lift",
        f"--root={exported}",
        "--new_repo_id=ulna/seen",
        f"--new_root={seen}",
        "--operation.type=remove_feature",
        f"--operation.feature_names={[IMAGES + name for name in CAMERAS]}",
    )
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
        *(f"--{name}={value}" for name, value in scaled("MEAN_STD").items()),
        "--dataset.repo_id=ulna/seen",
        f"--dataset.root={seen}",
        "--batch_size=64",
        f"--steps={steps}",
        f"--save_freq={steps}",
        f"--log_freq={max(1, steps // 5)}",
        "--num_workers=0",
        f"--output_dir={lerobot.folder / 'act'}",
    )
    policy = f"lerobot:{lerobot.folder / 'act'}"
    with beside("serve", policy, "--port", str(free_port())) as server, beside(*TWIN) as twin:
        words = ("--robot", twin["toml"], "--server", server["url"], "--task", "lift", "--seed", SEED)
        deployed = ulna("deploy", *words, "--episodes", episodes, "--max-seconds", 15)
    return {
        "demonstrations": recorded["episodes"],
        "training": {
            "steps": steps,
            "seconds": round(took, 1),
            "losses": [float(x) for x in re.findall(r"(?<!_)loss:([\d.]+)", text)],
        },
        "on_the_twin": {
            "successes": sum(bool(e["success"]) for e in deployed["episodes"]),
            "episodes": episodes,
            "decisions": deployed["decisions"],
            "latency_ms": deployed["latency_ms"],
        },
    }


if __name__ == "__main__":
    main()
