"""100 episodes of `lift` from state by the recipe `flow`, one at a time and many at once, in one run: how
much faster, and whether the same episodes succeed. The policy, the recipe's UNet, is trained for a minute
only; give a checkpoint to measure another, whose result is kept beside that.

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

from ulna.policies.checkpoint import read_train
from ulna.policies.parts import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.loop import train
from ulna.robot.agent import ExpertAgent, PolicyAgent
from ulna.robot.config import load_robot
from ulna.robot.evaluate import FIRST_SEED, evaluate, evaluate_at_once
from ulna.robot.record import record
from ulna.robot.report.evaluation import ClosedLoop
from ulna.robot.statistics import wilson

EPISODES, BATCH, PROCESSES = 100, 50, 2
DEMONSTRATIONS, STEPS, WINDOWS = 50, 400, 64


def trained(folder: Path) -> Path:
    with load_robot("sim:so101", "lift") as rig:
        record(rig, ExpertAgent(rig.sim, noise=0.01), folder / "data", DEMONSTRATIONS)
        recipe = override(
            RECIPES["flow"](rig.robot.features), {"training.steps": STEPS, "training.batch_size": WINDOWS}
        )
    return train(recipe, folder / "data", folder / "flow", device="cpu").checkpoint


def numbers(reports: list[ClosedLoop], seconds: float) -> dict[str, Any]:
    successes = sum(r.successes for r in reports)
    return {
        "seconds": round(seconds, 1),
        "successes": successes,
        "wilson_95": [round(v, 3) for v in wilson(successes, EPISODES)],
        "decisions": sum(r.decisions or 0 for r in reports),
        "nfe_per_decision": reports[0].nfe_per_decision,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else trained(Path(folder))
        policy, record_of = LocalPolicy(checkpoint), read_train(checkpoint)
    one: list[ClosedLoop] = []
    many: list[ClosedLoop] = []
    seconds = [0.0, 0.0]
    with load_robot("sim:so101", "lift") as rig:
        agent = PolicyAgent(policy, rig.robot.features, rig.robot.control_hz)
        for seed in range(FIRST_SEED, FIRST_SEED + EPISODES, BATCH):  # in turns: other work may slow us down
            began = time.perf_counter()
            many.append(evaluate_at_once(rig, policy, BATCH, seed, BATCH, PROCESSES, "lift", videos=0))
            middle = time.perf_counter()
            one.append(evaluate(rig, agent, BATCH, seed, videos=0))
            seconds[0] += time.perf_counter() - middle
            seconds[1] += middle - began
            agent.nfe.clear()
            agent.latencies_s.clear()
    pairs = [p for a, b in zip(one, many, strict=True) for p in zip(a.outcomes, b.outcomes, strict=True)]
    results.save(
        "batched_evaluation_given" if len(sys.argv) > 1 else "batched_evaluation",
        {
            "task": "lift from state, so101",
            "recipe": policy.metadata.recipe,
            "network": type(policy.policy.recipe.backbone).__name__,
            "trained_steps": record_of.steps,
            "demonstrations": record_of.n_episodes,
            "episodes": EPISODES,
            "batch": BATCH,
            "processes": PROCESSES,
            "one_at_a_time": numbers(one, seconds[0]),
            "at_once": numbers(many, seconds[1]),
            "times_faster": round(seconds[0] / seconds[1], 1),
            "episodes_with_the_same_outcome": sum(a.success == b.success for a, b in pairs),
            "episodes_of_the_same_length": sum(a.ticks == b.ticks for a, b in pairs),
        },
    )
