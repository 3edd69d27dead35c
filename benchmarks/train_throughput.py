"""Training steps per second of `diffusion_unet` beside LeRobot's own DiffusionPolicy: the same data (state,
no images), batch 256, UNet 256-512-1024, horizon 16, float32, each side as its own training does it (ours
with EMA, theirs without).

    python benchmarks/train_throughput.py [--steps N]

Each side runs in a process of its own, so that its peak memory is its own; the sides alternate, and the
medians of all their steps are compared. Reading the batch counts: theirs through LeRobotDataset and a
DataLoader, ours through Windows."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

BATCH, HORIZON, WIDTHS = 256, 16, (256, 512, 1024)
ROUNDS, WARM = 3, 2


def make_data(root: Path) -> None:
    """100 noisy lift demonstrations, in our store and as a LeRobot dataset."""
    from lerobot.datasets import LeRobotDataset

    from ulna.datasets.features import ACTION, ENVIRONMENT, STATE
    from ulna.datasets.store import EpisodeStore
    from ulna.robot.agent import make_agent
    from ulna.robot.config import load_robot
    from ulna.robot.record import record

    with load_robot("sim:so101", "lift") as rig:
        record(rig, make_agent("expert", rig, 0.004), root / "ulna", 100)
    store = EpisodeStore.open(root / "ulna")
    keys = (STATE, ENVIRONMENT, ACTION)
    features = {
        k: {"dtype": "float32", "shape": store.features[k].shape, "names": list(store.features[k].names)}
        for k in keys
    }
    theirs = LeRobotDataset.create(
        "ulna/lift", int(store.control_hz), features, root=root / "lerobot", use_videos=False
    )
    for episode in store.episodes:
        columns = {k: episode.read(k) for k in keys}
        for t in range(episode.length):
            theirs.add_frame({**{k: v[t] for k, v in columns.items()}, "task": episode.task})
        theirs.save_episode()
    theirs.finalize()


def ulna_steps(root: Path, steps: int) -> Iterator[int]:
    """Our own `train`; yields once per optimiser step (the parameters first)."""
    from ulna.policies.parts import override
    from ulna.policies.recipes.all import RECIPES
    from ulna.policies.train.data import open_data
    from ulna.policies.train.loop import train

    data = open_data(root / "ulna")
    recipe = RECIPES["diffusion_unet"](data.features)
    recipe = override(
        recipe, {"training.batch_size": BATCH, "training.steps": steps, "training.checkpoint_every": 10**9}
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        result = train(recipe, data, out, device="cpu", report=lambda p: times.append(time.perf_counter()))
    yield result.parameters
    yield from (round(1e9 * (b - a)) for a, b in itertools.pairwise(times))


def lerobot_steps(root: Path, steps: int) -> Iterator[int]:
    """The loop of lerobot-train: preprocess, forward, backward, clip, optimiser and schedule steps."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    meta = LeRobotDataset("ulna/lift", root=root / "lerobot")
    kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
    inputs = {k: PolicyFeature(t, tuple(meta.features[k]["shape"])) for k, t in kinds.items()}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, tuple(meta.features["action"]["shape"]))}
    config = DiffusionConfig(
        input_features=inputs,
        output_features=outputs,
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=8,
        down_dims=WIDTHS,
        diffusion_step_embed_dim=256,
        device="cpu",
    )
    stamps = {k: [i / meta.fps for i in config.observation_delta_indices] for k in inputs}
    stamps["action"] = [i / meta.fps for i in config.action_delta_indices]
    data = LeRobotDataset("ulna/lift", root=root / "lerobot", delta_timestamps=stamps)
    policy = DiffusionPolicy(config)
    policy.train()
    prepare, _ = make_pre_post_processors(config, dataset_stats=cast(Any, data.meta.stats))
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    schedule = config.get_scheduler_preset().build(optimizer, steps)
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=1, drop_last=True, prefetch_factor=2
    )
    yield sum(p.numel() for p in policy.parameters())
    steps_taken, last = 0, None
    while True:
        for batch in loader:
            loss, _ = policy.forward(prepare(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            now = time.perf_counter()
            if last is not None:
                yield round(1e9 * (now - last))
            last, steps_taken = now, steps_taken + 1
            if steps_taken == steps:
                return


SIDES = {"ulna": ulna_steps, "lerobot": lerobot_steps}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each side and round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.side:
        parameters, *ns = SIDES[args.side](args.root, args.steps + WARM + 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"parameters": parameters, "ns": ns[WARM:], "peak_kib": peak}))
        sys.exit()

    import results

    rows: dict[str, Any] = {s: {"ns": [], "peak_kib": 0} for s in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for turn in range(ROUNDS * 2):
            side = list(SIDES)[turn % 2]
            command = [sys.executable, __file__, "--side", side, "--root", folder, "--steps", str(args.steps)]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            round_ = json.loads(process.stdout.splitlines()[-1])
            rows[side]["ns"] += round_["ns"]
            rows[side]["parameters"] = round_["parameters"]
            rows[side]["peak_kib"] = max(rows[side]["peak_kib"], round_["peak_kib"])
    table = {
        side: {
            "steps_per_s": round(1e9 / float(np.median(r["ns"])), 3),
            "step_s_quartiles": [round(float(q) * 1e-9, 3) for q in np.percentile(r["ns"], [25, 75])],
            "parameters": r["parameters"],
            "peak_memory_gib": round(r["peak_kib"] / 1024**2, 2),
        }
        for side, r in rows.items()
    }
    ratio = table["ulna"]["steps_per_s"] / table["lerobot"]["steps_per_s"]
    results.save(
        "train_throughput",
        {"batch": BATCH, "steps_timed": len(rows["ulna"]["ns"]), **table, "ratio": round(ratio, 3)},
    )
