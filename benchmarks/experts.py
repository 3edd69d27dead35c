"""How often the scripted experts solve their tasks: 200 seeds each, with Wilson intervals. Doing nothing is
the control.

python benchmarks/experts.py [--seeds N]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import results

from ulna.robot.agent import make_agent
from ulna.robot.config import load_robot
from ulna.robot.evaluate import evaluate


def measure(robot: str, task: str, agent: str, seeds: int, noise: float = 0.0) -> dict[str, Any]:
    began = time.monotonic()
    with load_robot(robot, task) as rig:
        report = evaluate(rig, make_agent(agent, rig, noise), seeds, seed=0, videos=0)
    ticks = sorted(o.ticks for o in report.outcomes)
    return {
        "robot": robot,
        "task": task,
        "agent": agent,
        "noise_m": noise,
        "seeds": f"0 to {seeds - 1}",
        "successes": report.successes,
        "wilson_95": [round(v, 4) for v in report.wilson_95],
        "median_seconds_simulated": ticks[len(ticks) // 2] / report.control_hz,
        "failed_seeds": [o.seed for o in report.outcomes if not o.success],
        "wall_seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    robots, tasks = ("sim:so101", "sim:panda"), ("reach", "lift", "push_t")
    rows = [measure(r, t, "expert", seeds) for r in robots for t in tasks]
    rows += [measure(r, "lift", "expert", seeds, noise=0.004) for r in robots]
    rows += [measure("sim:so101", t, "hold", 20) for t in tasks]
    results.save("experts", {"rows": rows})
