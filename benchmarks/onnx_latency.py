"""One decision of a policy on the processor: torch, and the same policy exported and run by onnxruntime.

    python benchmarks/onnx_latency.py [--only flow ...]

Untrained policies in their published sizes, batch 1, one thread each, the two in turn.
"""

from __future__ import annotations

import argparse
import json
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
from ulna.policies.codec import RELATIVE
from ulna.policies.export.onnx import export_onnx
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.onnx_policy import OnnxPolicy
from ulna.policies.train.record import TrainingRecord

DECISIONS = 60
VECTOR = Feature((6,), "float32", tuple("abcdef"), ("rad",) * 6)
STATE_ONLY: Features = {STATE: VECTOR, ACTION: VECTOR}
CAMERAS = {IMAGES + name: Feature((96, 96, 3), "uint8") for name in ("front", "wrist")}
POLICIES: dict[str, tuple[str, Features]] = {
    "flow, state": ("flow", STATE_ONLY),
    "flow, two cameras": ("flow", {**STATE_ONLY, **CAMERAS}),
    "act, two cameras": ("act", {**STATE_ONLY, **CAMERAS}),
    "diffusion_unet, state": ("diffusion_unet", STATE_ONLY),
    "diffusion_transformer, state": ("diffusion_transformer", STATE_ONLY),
    "regression_mlp, state": ("regression_mlp", STATE_ONLY),
    "flow_map, state": ("flow_map", STATE_ONLY),
}


def checkpoint(folder: Path, recipe_name: str, features: Features) -> Path:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    recipe = RECIPES[recipe_name](features)
    stats = {k: vector_stats(rng.normal(size=(200, 6))) for k in (STATE, ACTION)}
    stats[RELATIVE] = vector_stats(rng.normal(size=(200, recipe.horizon, 6)))
    save_checkpoint(folder, Policy(recipe, features, stats), TrainingRecord(control_hz=20.0))
    return folder


def measure(folder: Path, recipe_name: str, features: Features) -> dict[str, Any]:
    path = folder / "x.onnx"
    source = checkpoint(folder / "checkpoint", recipe_name, features)
    began = time.perf_counter()
    exported = export_onnx(source, path)
    export_s = time.perf_counter() - began
    policies = {"torch": LocalPolicy(source), "onnxruntime": OnnxPolicy(path)}
    rng = np.random.default_rng(1)
    observation = {
        k: rng.integers(0, 256, f.shape).astype(np.uint8)
        if f.dtype == "uint8"
        else np.zeros(f.shape, f.dtype)
        for k, f in features.items()
        if k != ACTION
    }
    ms: dict[str, list[float]] = {name: [] for name in policies}
    furthest = 0.0
    for i in range(DECISIONS):
        replies = {}
        for name, policy in policies.items():
            began = time.perf_counter()
            replies[name] = policy.infer(Request(observation, i).to_wire())["actions"]
            ms[name].append((time.perf_counter() - began) * 1e3)
        furthest = max(furthest, float(np.abs(replies["torch"] - replies["onnxruntime"]).max()))
    row: dict[str, Any] = {
        name: {f"p{q}_ms": round(float(np.percentile(v, q)), 2) for q in (50, 99)} for name, v in ms.items()
    }
    times = row["torch"]["p50_ms"] / row["onnxruntime"]["p50_ms"]
    notes = {"calls": exported["calls"], "megabytes": round(exported["bytes"] / 1e6, 1)}
    return {**row, "times": round(times, 2), "off_by": furthest, "export_s": round(export_s, 1), **notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=POLICIES, help="these alone; nothing is saved")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rows = {}
    for name in only or POLICIES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(Path(folder), *POLICIES[name])
        print(name, json.dumps(rows[name]), flush=True)
    if only is None:
        results.save("onnx_latency", {"decisions": DECISIONS, "threads": 1, "policies": rows})


if __name__ == "__main__":
    main()
