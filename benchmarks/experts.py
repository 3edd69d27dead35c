"""How often the scripted experts solve their tasks: 200 seeds each, with Wilson intervals, undisturbed and
with the disturbance that recordings have. Doing nothing is the control.

python benchmarks/experts.py [--first N] [--seeds N] [--robots sim:so101 ...] [--tasks stack ...]

It may be run in parts: one takes the place of its own rows and leaves the others, and with `--first` adds its
seeds to those before them.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from typing import Any

import results

from ulna.robot.agent import make_agent
from ulna.robot.config import load_robot
from ulna.robot.evaluate import evaluate
from ulna.robot.statistics import wilson
from ulna.sim.robots import n_arms
from ulna.sim.tasks.all import TASKS as TYPES

ROBOTS = ("sim:so101", "sim:panda", "sim:ur5e", "sim:so101-pair")
TASKS = ("reach", "lift", "push_t", "stack", "insert", "sort", "wipe", "handover")
DISTURBED = ("lift", "stack", "insert", "sort", "wipe", "handover")
RECORDED = 0.004  # m: what `ulna record` disturbs an expert by


def measure(
    robot: str, task: str, agent: str, noise: float, first: int, seeds: int, before: dict[str, Any] | None
) -> dict[str, Any]:
    """The seeds from `first` on, together with those of the row `before`, if any."""
    began = time.monotonic()
    with load_robot(robot, task) as rig:
        report = evaluate(rig, make_agent(agent, rig, noise), seeds, seed=first, videos=0)
    before = before or {"ticks": "", "failed_seeds": [], "wall_seconds": 0.0}
    ticks = sorted([*map(int, before["ticks"].split()), *(o.ticks for o in report.outcomes)])
    failed = [*before["failed_seeds"], *(o.seed for o in report.outcomes if not o.success)]
    successes = len(ticks) - len(failed)
    return {
        "robot": robot,
        "task": task,
        "agent": agent,
        "noise_m": noise,
        "seeds": f"0 to {len(ticks) - 1}",
        "successes": successes,
        "wilson_95": [round(v, 4) for v in wilson(successes, len(ticks))],
        "median_seconds_simulated": ticks[len(ticks) // 2] / report.control_hz,
        "failed_seeds": failed,
        "wall_seconds": round(before["wall_seconds"] + time.monotonic() - began, 1),
        "ticks": " ".join(map(str, ticks)),  # of the episodes, sorted
    }


def fits(robot: str, task: str) -> bool:
    """Whether it has as many arms as the task is for."""
    return n_arms(robot.removeprefix("sim:")) == TYPES[task].n_arms


def kept() -> dict[tuple[str, str, str, float], dict[str, Any]]:
    path = results.RESULTS / "experts.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(r["robot"], r["task"], r["agent"], r["noise_m"]): r for r in rows}


def keep(row: dict[str, Any]) -> None:
    rows = {**kept(), (row["robot"], row["task"], row["agent"], row["noise_m"]): row}

    def place(key: tuple[str, str, str, float]) -> tuple[bool, float, int, int]:
        robot, task, agent, noise = key
        return agent != "expert", noise, ROBOTS.index(robot), TASKS.index(task)

    results.save("experts", {"rows": [rows[key] for key in sorted(rows, key=place)]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=ROBOTS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--noise", nargs="+", type=float, default=(0.0, RECORDED), metavar="M")
    args = parser.parse_args()
    for robot, task, noise in product(args.robots, args.tasks, args.noise):
        if (noise and task not in DISTURBED) or not fits(robot, task):
            continue
        key = (robot, task, "expert", noise)
        before = kept().get(key) if args.first else None
        if args.first and (before is None or not before["seeds"].endswith(f" {args.first - 1}")):
            parser.error(f"{key} has no rows up to seed {args.first - 1}: run those first")
        keep(measure(*key, args.first, args.seeds, before))
    for task in args.tasks:
        robot = next(robot for robot in ROBOTS if fits(robot, task))
        if robot in args.robots and not args.first:
            keep(measure(robot, task, "hold", 0.0, 0, min(args.seeds, 20), None))
