"""100 episodes of `lift` from state by the recipe `flow`, one at a time and many at once, in one run: how
much faster, and whether the same episodes succeed. The policy is trained for a minute only; give a
checkpoint to measure another.

    python benchmarks/batched_evaluation.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import torch

from ulna.policies.recipe import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.loop import train
from ulna.robot.agent import ExpertAgent, PolicyAgent
from ulna.robot.config import load_robot
from ulna.robot.evaluate import evaluate, evaluate_at_once
from ulna.robot.record import record
from ulna.robot.report.evaluation import ClosedLoop

EPISODES, BATCH, PROCESSES = 100, 50, 2
DEMONSTRATIONS, STEPS = 50, 500


def trained(folder: Path) -> Path:
    with load_robot("sim:so101", "lift") as rig:
        record(rig, ExpertAgent(rig.sim, noise=0.01), folder / "data", DEMONSTRATIONS)
        recipe = override(RECIPES["flow"](rig.robot.features), {"training.steps": STEPS})
    return train(recipe, folder / "data", folder / "flow", device="cpu").checkpoint


def numbers(report: ClosedLoop, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "successes": report.successes,
        "wilson_95": [round(v, 3) for v in report.wilson_95],
        "decisions": report.decisions,
        "nfe_per_decision": report.nfe_per_decision,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else trained(Path(folder))
        policy = LocalPolicy(checkpoint)
    with load_robot("sim:so101", "lift") as rig:
        began = time.perf_counter()
        many = evaluate_at_once(rig, policy, EPISODES, batch=BATCH, processes=PROCESSES, task="lift")
        middle = time.perf_counter()
        one = evaluate(rig, PolicyAgent(policy, rig.robot.features, rig.robot.control_hz), EPISODES)
        end = time.perf_counter()
    pairs = list(zip(one.outcomes, many.outcomes, strict=True))
    results.save(
        "batched_evaluation",
        {
            "task": "lift from state, so101",
            "recipe": policy.metadata.recipe,
            "trained": "given" if len(sys.argv) > 1 else f"{STEPS} steps on {DEMONSTRATIONS} demonstrations",
            "episodes": EPISODES,
            "batch": BATCH,
            "processes": PROCESSES,
            "one_at_a_time": numbers(one, end - middle),
            "at_once": numbers(many, middle - began),
            "times_faster": round((end - middle) / (middle - began), 1),
            "episodes_with_the_same_outcome": sum(a.success == b.success for a, b in pairs),
            "episodes_of_the_same_length": sum(a.ticks == b.ticks for a, b in pairs),
        },
    )
