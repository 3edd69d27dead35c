"""LeRobot's own commands with Ulna's plug-ins, in an environment of LeRobot's own.

    python benchmarks/lerobot_plugins.py [--quick]

`lerobot-record` records the SO-101 twin with our teleoperator (a leader twin with a scripted hand),
`lerobot-train` trains one of our recipes on that, `lerobot-rollout` runs it on the twin, and `lerobot-eval`
evaluates a checkpoint of ours at `lift`, seed by seed as `ulna evaluate` does. The environment lies under
runs/foreign/: LeRobot 0.6.1, wheels of Ulna and of its plug-ins, and this repository's other packages behind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results
from foreign_samples import BIN, ROOT, RUNS, Tool, environment

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.store import EpisodeStore
from ulna.robot.beside import beside
from ulna.robot.scene import RemoteScene

HZ, TASK = 20, "lift"
TOOL = Tool("", ("lerobot==0.6.1",), True)
RECIPE = {"recipe": "regression_mlp", "n_action_steps": 8}


def wheel(source: Path, out: Path) -> Path:
    """Built from a copy of what git would commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as copy:
        for name in listed.stdout.splitlines():
            if (source / name).is_file():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, Path(copy) / name)
        code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
        command = [sys.executable, "-W", "ignore", "-c", code]
        subprocess.run(command, cwd=copy, capture_output=True, check=True)
    return max(out.glob("*.whl"), key=lambda p: p.stat().st_mtime_ns)


def installed() -> Path:
    """The Python of LeRobot's environment, with this repository's plug-ins as they are now."""
    python = environment("lerobot-plugins", TOOL)
    with tempfile.TemporaryDirectory() as folder:
        wheels = [wheel(source, Path(folder)) for source in (ROOT, ROOT / "robot" / "lerobot_plugins")]
        install = [str(BIN / "uv"), "pip", "install", "-q", "--no-config", "--no-deps", "--reinstall"]
        subprocess.run([*install, "--python", str(python), *map(str, wheels)], check=True)
    # Pinocchio's packages lie in a folder of their own, which a file of that folder's site-packages names
    (shared,) = (python.parents[1] / "lib").glob("*/site-packages/shared.pth")
    packages = Path(shared.read_text().strip())
    inner = packages / "cmeel.prefix" / "lib" / packages.parent.name / "site-packages"
    shared.with_name("cmeel-shared.pth").write_text(f"{inner}\n")
    return python


class LeRobot:
    """Its commands, with their logs in `folder`."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "WANDB_MODE": "disabled"}
        self.environ = {**os.environ, **own, "OMP_NUM_THREADS": "1"}

    def __call__(self, command: str, *options: str) -> tuple[float, str]:
        """(seconds, what it printed). RuntimeError with its last words where it fails."""
        line = [str(self.python), "-m", f"lerobot.scripts.lerobot_{command}", *options]
        began = time.monotonic()
        done = subprocess.run(
            line, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False, timeout=3600
        )
        text = done.stdout + done.stderr
        (self.folder / f"{command}.txt").write_text(" ".join(line) + "\n" + text)
        print(command, done.returncode, f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if done.returncode:
            raise RuntimeError(f"lerobot-{command}: {text.strip()[-1500:]}")
        return time.monotonic() - began, text


def ulna(*words: object) -> dict[str, Any]:
    """Its --json answer."""
    done = subprocess.run(
        [str(BIN / "ulna"), *map(str, words), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])
    return json.loads(done.stdout)


def recorded(lerobot: LeRobot, robot: Sequence[str], twin: str, url: str, episodes: int) -> dict[str, Any]:
    """Episodes that `lerobot-record` makes of the twin, one a call: LeRobot has no word for setting a scene
    up."""
    scene, outcomes, seconds = RemoteScene(url), [], []
    for seed in range(episodes):
        took, _ = lerobot(
            "record",
            *robot,
            f"--robot.seed={seed}",
            "--teleop.type=ulna",
            f"--teleop.file={twin}",
            "--dataset.repo_id=ulna/twin",
            f"--dataset.root={lerobot.folder / 'recorded'}",
            "--dataset.num_episodes=1",
            "--dataset.episode_time_s=10",
            f"--dataset.fps={HZ}",
            "--dataset.single_task=lift the cube",
            "--dataset.push_to_hub=false",
            "--play_sounds=false",
            f"--resume={'true' if seed else 'false'}",
        )
        outcomes.append(bool(scene.ask("GET", "state")["success"]))
        seconds.append(round(took, 1))
    scene.close()
    (dataset,) = [p.parents[1] for p in lerobot.folder.glob("recorded*/meta/info.json")]
    info = json.loads((dataset / "meta" / "info.json").read_text())
    return {
        "episodes": info["total_episodes"],
        "frames": info["total_frames"],
        "lifted": sum(outcomes),
        "seconds_a_call": seconds,
        "names": info["features"][ACTION]["names"],
        "dataset": dataset.name,
    }


def brought_home(lerobot: LeRobot, dataset: str, calibration: str) -> dict[str, Any]:
    """The same episodes imported here: in radians, within the arm's limits."""
    out = lerobot.folder / "imported"
    ulna(
        *("data", "import", lerobot.folder / dataset, "--out", out),
        *("--units", "degrees", "--calibration", calibration),
    )
    store = EpisodeStore.open(out)
    rows = np.concatenate([e.read(STATE) for e in store.episodes])
    units = sorted(set(store.features[ACTION].units))
    return {"units": units, "furthest_rad": round(float(np.abs(rows).max()), 3), "episodes": len(store)}


def trained(lerobot: LeRobot, dataset: str, steps: int) -> tuple[Path, dict[str, Any]]:
    took, text = lerobot(
        "train",
        "--policy.type=ulna",
        f"--policy.recipe={RECIPE['recipe']}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=ulna/twin",
        f"--dataset.root={lerobot.folder / dataset}",
        "--batch_size=16",
        f"--steps={steps}",
        f"--save_freq={steps}",
        f"--log_freq={max(1, steps // 5)}",
        "--num_workers=0",
        f"--output_dir={lerobot.folder / 'trained'}",
    )
    folder = lerobot.folder / "trained" / "checkpoints" / "last" / "pretrained_model"
    losses = [float(x) for x in re.findall(r"loss:([\d.]+)", text)]
    ours = json.loads((folder / "features.json").read_text())
    return folder, {
        "steps": steps,
        "seconds": round(took, 1),
        "losses": losses,
        "units": sorted(set(ours[ACTION]["units"])),
    }


def rolled_out(lerobot: LeRobot, robot: Sequence[str], policy: Path, seconds: float) -> dict[str, Any]:
    took, text = lerobot(
        "rollout",
        *robot,
        "--robot.seed=100",
        f"--policy.path={policy}",
        "--strategy.type=base",
        f"--fps={HZ}",
        f"--duration={seconds:g}",
        "--task=lift the cube",
        "--device=cpu",
        "--play_sounds=false",
    )
    slow = text.count("running slower")
    return {
        "seconds": round(took, 1),
        "asked_s": seconds,
        "slow_ticks": slow,
        "ended": "teardown complete" in text,
    }


def evaluated(lerobot: LeRobot, episodes: int, demonstrations: int, steps: int) -> dict[str, Any]:
    """A checkpoint of `ulna train`, by `lerobot-eval` and by `ulna evaluate`, on the same seeds."""
    data, policy = lerobot.folder / "lift", lerobot.folder / "policy"
    ulna("record", "--task", TASK, "--episodes", demonstrations, "--out", data)
    words = ("--data", data, "--out", policy, "--track", "none", "--device", "cpu")
    ulna("train", RECIPE["recipe"], *words, "--training.steps", steps)
    own = ulna("evaluate", policy, "--task", TASK, "--episodes", episodes, "--seed", 1000)
    (policy / "config.json").write_text(json.dumps({"type": "ulna", "device": "cpu"}))
    processors = lerobot.folder / "trained" / "checkpoints" / "last" / "pretrained_model"
    for path in processors.glob("policy_*processor*"):
        shutil.copy(path, policy)
    took, _ = lerobot(
        "eval",
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=ulna",
        f"--env.task={TASK}",
        "--env.views=",
        f"--eval.n_episodes={episodes}",
        f"--eval.batch_size={min(10, episodes)}",
        "--eval.use_async_envs=false",
        "--seed=1000",
        f"--output_dir={lerobot.folder / 'evaluated'}",
    )
    info = json.loads((lerobot.folder / "evaluated" / "eval_info.json").read_text())
    theirs = [bool(x) for task in info["per_task"] for x in task["metrics"]["successes"]]
    ours = [o["success"] for o in own["outcomes"]]
    return {
        "episodes": episodes,
        "ulna_evaluate": sum(ours),
        "lerobot_eval": sum(theirs),
        "alike": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        "seconds": round(took, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; nothing is saved")
    args = parser.parse_args()
    folder = RUNS / "lerobot-plugins"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lerobot = LeRobot(installed(), folder)
    rows: dict[str, Any] = {}
    scene = ("--scene", TASK, "--leader", "--cameras", "front", "--control-hz", str(HZ))
    with beside("twin", "so101", *scene) as answer:
        twin = answer["toml"]
        config = tomllib.loads(Path(twin).read_text())
        calibration, url = config["arms"]["arm"]["calibration"], config["scene"]["url"]
        robot = ("--robot.type=ulna", f"--robot.file={twin}")
        rows["record"] = recorded(lerobot, robot, twin, url, 2 if args.quick else 5)
        dataset = rows["record"]["dataset"]
        rows["import"] = brought_home(lerobot, dataset, calibration)
        policy, rows["train"] = trained(lerobot, dataset, 10 if args.quick else 300)
        rows["rollout"] = rolled_out(lerobot, robot, policy, 5 if args.quick else 20)
    rows["eval"] = evaluated(lerobot, *((4, 4, 50) if args.quick else (50, 50, 3000)))
    print(json.dumps(rows, indent=1), file=sys.stderr)
    if not args.quick:
        results.save("lerobot_plugins", {"commands": rows, "packages": list(TOOL.packages)})


if __name__ == "__main__":
    main()
