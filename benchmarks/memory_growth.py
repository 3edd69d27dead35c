"""An hour of an episode for every policy that remembers: how large is what it carries, and what does a
decision cost, after a minute and after the hour?

    python benchmarks/memory_growth.py [MINUTES]

The networks have random weights: nothing here depends on what they learned. Networks that give the action are
small and take one step of the sampler, so that what a decision costs is mostly its memory. What it costs is
time of the processor, taken when the hour is over: decisions with the memory of the first minute's end and
with that of the last, in turn, so that other work on the machine is the same for both. A language model that
writes its actions word by word has a twentieth of the time."""

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
PAIRS = 100  # of decisions whose time is compared
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
    memory, early, sizes, largest = None, None, [], []
    task = "lift the cube" if policy.condition_keys else None
    n = round(MINUTE / r.n_action_steps)
    seen: dict[str, Any] = {}
    for tick in range(0, ticks, r.n_action_steps):
        # a wander that keeps within what the policy has seen
        state = np.concatenate([state[1:], 0.95 * state[-1:] + 0.3 * rng.normal(size=(1, JOINTS))])
        seen = {STATE: state.astype(np.float32)}
        if CAMERA in features:
            seen[CAMERA] = rng.integers(0, 255, (r.n_obs_steps, 64, 64, 3), np.uint8)
        memory = local.infer(Request(seen, tick, task=task, memory=memory).to_wire())["memory"]
        sizes.append(memory["values"].nbytes)
        largest.append(float(np.abs(memory["values"]).max()))
        early = memory if len(sizes) == n else early
    seconds: dict[str, list[float]] = {"first": [], "last": []}
    for tick in range(PAIRS):
        for name, of in (("first", early), ("last", memory)):
            request = Request(seen, tick, task=task, memory=of).to_wire()
            began = time.process_time()
            local.infer(request)
            seconds[name].append(time.process_time() - began)
    return {
        "recipe": recipe,
        "context": type(r.context).__name__,
        "minutes": round(ticks / MINUTE),
        "decisions": len(sizes),
        "memory_bytes": [min(sizes), max(sizes)],
        "cpu_ms": {k: round(1e3 * float(np.median(s)), 3) for k, s in seconds.items()},
        "largest_number": {"first": round(largest[n - 1], 3), "last": round(largest[-1], 3)},
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
