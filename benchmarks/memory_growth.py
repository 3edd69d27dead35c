"""An hour of an episode for every policy that remembers: how large is what it carries, and what does a
decision cost, in the first minute and in the last?

    python benchmarks/memory_growth.py [MINUTES]

The networks have random weights: nothing here depends on what they learned. Networks that give the action are
small and take one step of the sampler, so that what a decision costs is mostly its memory. What it costs is
time of the processor, so that other work on the machine is left out. A language model that writes its actions
word by word has a twentieth of the time."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.record import TrainingRecord

HZ, JOINTS = 10.0, 6
MINUTE = 60 * HZ
VECTORS: Features = {STATE: Feature((JOINTS,), "float32"), ACTION: Feature((JOINTS,), "float32")}
CAMERA = IMAGES + "front"
NETWORK = {"backbone": "ResidualMLP", "backbone.width": 64, "backbone.depth": 1, "sampling_steps": 1}
LANGUAGE = {
    **{f"encoder.language.{k}": v for k, v in {"depth": 1, "width": 64, "ffn": 64}.items()},
    **{f"encoder.vision.{k}": v for k, v in {"depth": 1, "width": 64, "ffn": 64}.items()},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "bc_rnn": NETWORK,
    # six blocks and 60 tokens of 256 as published, of which the blocks are what takes time
    "seedpolicy": {**NETWORK, "context.depth": 1, "encoder.state.width": 64},
    # written at every decision, which is the most that it can be
    "aura_mem": {**NETWORK, "context.gate": "always"},
    "decision_s4": NETWORK,
    "decision_mamba": NETWORK,
    "litevlp_small": {**LANGUAGE, "context.turns": 8},
}
"""By recipe what differs from its published sizes."""


def measure(recipe: str, changes: dict[str, Any], ticks: int, folder: Path) -> dict[str, Any]:
    """One episode of so many ticks, each decision with the memory that the last one gave."""
    features = VECTORS | ({CAMERA: Feature((64, 64, 3), "uint8")} if recipe == "litevlp_small" else {})
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    stats = {k: vector_stats(rng.normal(size=(100, *f.shape))) for k, f in features.items() if k != CAMERA}
    policy = Policy(override(RECIPES[recipe](features), changes), features, stats)
    save_checkpoint(folder, policy, TrainingRecord())
    local, r = LocalPolicy(folder), policy.recipe
    state = np.zeros((r.n_obs_steps, JOINTS), np.float32)
    memory, sizes, largest, seconds = None, [], [], []
    for tick in range(0, ticks, r.n_action_steps):
        # a wander that keeps within what the policy has seen
        state = np.concatenate([state[1:], 0.95 * state[-1:] + 0.3 * rng.normal(size=(1, JOINTS))])
        seen: dict[str, Any] = {STATE: state.astype(np.float32)}
        if CAMERA in features:
            seen[CAMERA] = rng.integers(0, 255, (r.n_obs_steps, 64, 64, 3), np.uint8)
        task = "lift the cube" if policy.condition_keys else None
        request = Request(seen, tick, task=task, memory=memory).to_wire()
        began = time.process_time()
        reply = local.infer(request)
        seconds.append(time.process_time() - began)
        memory = reply["memory"]
        sizes.append(memory["values"].nbytes)
        largest.append(float(np.abs(memory["values"]).max()))
    n = round(MINUTE / r.n_action_steps)
    minutes = {"first": slice(1, n + 1), "last": slice(-n, None)}
    return {
        "recipe": recipe,
        "context": type(r.context).__name__,
        "minutes": round(ticks / MINUTE),
        "decisions": len(seconds),
        "memory_bytes": [min(sizes), max(sizes)],
        "cpu_ms": {k: round(1e3 * float(np.median(seconds[of])), 3) for k, of in minutes.items()},
        "largest_number": {k: round(max(largest[of]), 3) for k, of in minutes.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    minutes = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        rows = [
            measure(
                name, changes, round(minutes * MINUTE / (20 if name == "litevlp_small" else 1)), at / name
            )
            for name, changes in RECURRENT.items()
        ]
    results.save("memory_growth", {"hz": HZ, "table": rows})
