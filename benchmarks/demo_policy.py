"""Which network `make demo` trains: `flow` from state on `lift` (SO-101), by success and by seconds of
training.

    OMP_NUM_THREADS=1 python benchmarks/demo_policy.py

Every arm learns from the same 100 demonstrations. The episodes are of development seeds, 5000 and on, which
neither the demo nor a test evaluates. Written before the run: the residual MLP succeeds within 0.1 of the
UNet and trains in a third of its time or less. Control: `hold`, which never moves, succeeds nowhere.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import results

from ulna.policies.parts import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.loop import train
from ulna.robot.agent import ExpertAgent, HoldAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.evaluate import evaluate, evaluate_at_once
from ulna.robot.record import record
from ulna.robot.statistics import rate_interval

DEMONSTRATIONS, EPISODES, FIRST_SEED = 100, 100, 5000
ARMS: dict[str, tuple[dict[str, Any], int]] = {  # fields of the recipe, number of training seeds
    "UNet1D, 2500 steps": ({"training.steps": 2500}, 1),
    "ResidualMLP, 1500 steps": ({"backbone": "ResidualMLP", "training.steps": 1500}, 3),
    "ResidualMLP, 3000 steps": ({"backbone": "ResidualMLP", "training.steps": 3000}, 3),
}


def measure(rig: Rig, data: Path, folder: Path, fields: dict[str, Any], seeds: int) -> dict[str, Any]:
    successes, seconds = [], []
    for seed in range(seeds):
        recipe = override(RECIPES["flow"](rig.robot.features), fields)
        began = time.perf_counter()
        checkpoint = train(recipe, data, folder / f"seed-{seed}", seed=seed, device="cpu").checkpoint
        seconds.append(time.perf_counter() - began)
        report = evaluate_at_once(
            rig, LocalPolicy(checkpoint), EPISODES, FIRST_SEED, 50, videos=0, task="lift"
        )
        successes.append(report.successes)
        print(folder.name, seed, successes[-1], round(seconds[-1]), flush=True)
    return {
        "successes": successes,
        "interval_95": [round(v, 3) for v in rate_interval(successes, EPISODES)],
        "training_seconds": round(statistics.median(seconds), 1),
    }


if __name__ == "__main__":
    with load_robot("sim:so101", "lift") as rig, tempfile.TemporaryDirectory() as folder:
        record(rig, ExpertAgent(rig.sim, noise=0.004), Path(folder) / "data", DEMONSTRATIONS)
        hold = evaluate(rig, HoldAgent(), EPISODES, FIRST_SEED, videos=0)
        arms = {
            name: measure(rig, Path(folder) / "data", Path(folder) / name, fields, seeds)
            for name, (fields, seeds) in ARMS.items()
        }
    results.save(
        "demo_policy",
        {
            "task": "lift from state, so101",
            "recipe": "flow",
            "demonstrations": DEMONSTRATIONS,
            "episodes": EPISODES,
            "arms": arms,
            "hold": {"successes": hold.successes},
        },
    )
