"""What a decision and a training step of Diffusion Policy take on a GPU: launched kernel by kernel, as served
and trained, and as LeRobot's own DiffusionPolicy of the same size does them on the same card.

    python benchmarks/gpu.py [--part decisions] [--part training]

Decisions: batch 1, 16 steps of DDIM, two observation steps, a state of 7 and two cameras of 96 by 96. `eager`
is `Policy.sample`, `ulna` what `ulna serve` calls; the time is from tensors on the card to the chunk on the
processor. `difference` is the largest, over fresh observations and seeds, of the norm of (ulna - exact) over
that of exact, both normalised chunks, where exact is `Policy.sample` without TF32; `eager_difference` is that
of `Policy.sample` with torch's defaults, whose convolutions are of TF32, as those of our image encoder are.
`ready_s` is from a loaded policy to its first fast decision, kernels compiled where they were not before.

Training: batch 64 (images) or 256 (state). Ours by `train`, reading from memory included, in bf16 with EMA;
`eager` is the same launched kernel by kernel. LeRobot's by the loop of lerobot-train, with its settings
(float32 with TF32, no EMA), its batch lying ready on the card."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulna.datasets.features import ACTION, STATE, Feature, Features
from ulna.datasets.stats import Stats, vector_stats
from ulna.policies.fast.decisions import Decisions
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.train import loop
from ulna.policies.train.data import DataOptions, TrainingData, TrainingWindows

JOINTS, CAMERAS, SIDE = 7, ("observation.images.front", "observation.images.wrist"), 96
ROUNDS = 60
CUDA = torch.device("cuda")


def features(images: bool, side: int = SIDE) -> Features:
    vectors = {k: Feature((JOINTS,), "float32") for k in (STATE, ACTION)}
    return {**vectors, **{k: Feature((side, side, 3), "uint8") for k in CAMERAS if images}}


def stats() -> dict[str, Stats]:
    rows = np.random.default_rng(0).uniform(-1, 1, (1000, JOINTS))
    return {k: vector_stats(rows) for k in (STATE, ACTION)}


def observation(of: Features, steps: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    values: dict[str, Tensor] = {}
    for key, f in of.items():
        shape = (1, steps, *f.shape)
        if f.dtype == "uint8":
            values[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).cuda()
        elif key != ACTION:
            values[key] = (2 * torch.rand(shape, generator=draw) - 1).cuda()
    return values


def timed(decide: Callable[[], Tensor], rounds: int = ROUNDS) -> dict[str, float]:
    for _ in range(5):
        decide().cpu()
    ms = []
    for _ in range(rounds):
        began = time.perf_counter()
        decide().cpu()
        ms.append((time.perf_counter() - began) * 1e3)
    return {"p50_ms": round(statistics.median(ms), 2), "p95_ms": round(float(np.percentile(ms, 95)), 2)}


def decision(name: str, images: bool, side: int = SIDE) -> dict[str, Any]:
    of = features(images, side)
    torch.manual_seed(0)
    policy = Policy(RECIPES[name](of), of, stats()).cuda().eval()
    recipe = policy.recipe
    questions = [Request(observation(of, recipe.n_obs_steps, seed), seed) for seed in range(5)]

    def eager(request: Request) -> Tensor:
        return policy.sample(request, (), recipe.sampling_steps).chunk

    def normalised(decide: Callable[[Request], Tensor]) -> list[Tensor]:
        return [policy.codec.encode(decide(q), q.observation) for q in questions]

    with torch.no_grad():
        torch.backends.cudnn.allow_tf32 = False
        exact = normalised(eager)
        torch.backends.cudnn.allow_tf32 = True
        row: dict[str, Any] = {"parameters": sum(p.numel() for p in policy.parameters())}
        row["eager_difference"] = difference(normalised(eager), exact)
        row["eager"] = timed(lambda: eager(questions[0]), 15)
        began = time.perf_counter()
        decide = Decisions(policy)
        for _ in range(3):
            decide(questions[0], (), recipe.sampling_steps).chunk.cpu()
        row["ready_s"] = round(time.perf_counter() - began, 2)
        row["graphs"] = len(decide.graphs.entries)
        row["difference"] = difference(
            normalised(lambda q: decide(q, (), recipe.sampling_steps).chunk), exact
        )
        row["ulna"] = timed(lambda: decide(questions[0], (), recipe.sampling_steps).chunk)
    return row


def difference(given: list[Tensor], exact: list[Tensor]) -> float:
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(given, exact, strict=True)]
    return float(f"{max(errors):.1e}")


def lerobot_policy(images: bool, side: int = SIDE) -> Any:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    inputs = {STATE: PolicyFeature(FeatureType.STATE, (JOINTS,))}
    if images:
        inputs |= {k: PolicyFeature(FeatureType.VISUAL, (3, side, side)) for k in CAMERAS}
    else:  # it asks for an image or a state of the surroundings
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (1,))
    config = DiffusionConfig(
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        down_dims=(512, 1024, 2048) if images else (256, 512, 1024),
        diffusion_step_embed_dim=128 if images else 256,
        crop_shape=(round(side * 0.9), round(side * 0.9)) if images else None,
        use_group_norm=True,
        pretrained_backbone_weights=None,
        noise_scheduler_type="DDIM",
        num_inference_steps=16,
        device="cuda",
    )
    return DiffusionPolicy(config).cuda()


def lerobot_batch(images: bool, rows: int, side: int = SIDE) -> dict[str, Tensor]:
    batch = {STATE: torch.rand(rows, 2, JOINTS, device=CUDA) * 2 - 1}
    if images:
        batch |= {k: torch.rand(rows, 2, 3, side, side, device=CUDA) for k in CAMERAS}
    else:
        batch["observation.environment_state"] = torch.rand(rows, 2, 1, device=CUDA)
    return batch


def lerobot_decision(images: bool, side: int = SIDE) -> dict[str, Any]:
    policy = lerobot_policy(images, side).eval()
    batch = lerobot_batch(images, 1, side)
    row = {"parameters": sum(p.numel() for p in policy.parameters())}
    return {**row, **timed(lambda: policy.predict_action_chunk(batch), 15)}


@dataclass
class InMemory:
    """Windows of random episodes, as of data that fit into memory: each batch is gathered from arrays."""

    of: Features
    recipe: Recipe
    rows: int = 512

    def __post_init__(self) -> None:
        rng, r = np.random.default_rng(0), self.recipe
        self.arrays: dict[str, np.ndarray] = {}
        for key, f in self.of.items():
            shape = (self.rows, r.horizon if key == ACTION else r.n_obs_steps, *f.shape)
            if f.dtype == "uint8":
                self.arrays[key] = rng.integers(0, 256, shape, dtype=np.uint8)
            else:
                self.arrays[key] = rng.uniform(-1, 1, shape).astype(np.float32)
        self.arrays["mask"] = np.ones((self.rows, r.horizon), bool)

    def __len__(self) -> int:
        return self.rows

    def values(self, key: str) -> np.ndarray:
        return self.arrays[key].reshape(-1, *self.of[key].shape)

    def batch(self, rows: Any, rng: Any = None) -> dict[str, np.ndarray]:
        return {k: v[rows] for k, v in self.arrays.items()}


class RandomData(TrainingData):
    def windows(self, spec: Any) -> TrainingWindows:
        source: Any = InMemory(self.features, spec)
        identity = {"data": "", "options": {}, "frames": len(source), "observation": [], "weighting": ""}
        return TrainingWindows(self.features, source, None, None, identity, [])


def ulna_training(images: bool, steps: int, eager: bool = False) -> dict[str, Any]:
    of = features(images)
    store: Any = SimpleNamespace(robot="", control_hz=20.0, episodes=[], choose=lambda numbers: [])
    graphed, loop.Graphed = loop.Graphed, (lambda compute, *_: compute) if eager else loop.Graphed  # type: ignore[assignment,misc]
    data = RandomData(["random"], [store], of, None, DataOptions(), [[0]], [[]], [])
    recipe = RECIPES["diffusion_unet"](of)
    recipe = replace(recipe, training=replace(recipe.training, steps=steps, checkpoint_every=10**9))
    times: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        result = loop.train(
            recipe, data, Path(out), track=(), report=lambda p: times.append(time.perf_counter())
        )
    loop.Graphed = graphed  # type: ignore[misc]
    row = step_times([b - a for a, b in itertools.pairwise(times[steps // 3 : -1])])
    return {"parameters": result.parameters, **row, "loss": round(result.losses[-1], 4)}


def lerobot_training(images: bool, steps: int) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    policy = lerobot_policy(images).train()
    rows = 64 if images else 256
    batch = lerobot_batch(images, rows) | {
        ACTION: torch.rand(rows, 16, JOINTS, device=CUDA) * 2 - 1,
        "action_is_pad": torch.zeros(rows, 16, dtype=torch.bool, device=CUDA),
    }
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    schedule = policy.config.get_scheduler_preset().build(optimizer, steps)
    times = []
    for _ in range(steps):
        loss, _ = policy.forward(dict(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        loss.item()  # as lerobot-train does, for its log
        times.append(time.perf_counter())
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = False, before
    row = step_times([b - a for a, b in itertools.pairwise(times[steps // 3 :])])
    return {"parameters": sum(p.numel() for p in policy.parameters()), **row}


def step_times(seconds: list[float]) -> dict[str, Any]:
    ms = [1e3 * s for s in seconds]
    quartiles = [round(float(q), 2) for q in np.percentile(ms, [25, 75])]
    return {"step_ms": round(statistics.median(ms), 2), "step_ms_quartiles": quartiles}


class Rows(dict[str, Any]):
    """By name, printed as they are measured."""

    def __setitem__(self, name: str, row: Any) -> None:
        super().__setitem__(name, row)
        print(name, row, flush=True)


def decisions() -> dict[str, Any]:
    rows = Rows()
    for name in ("diffusion_unet", "diffusion_transformer"):
        for images in (False, True):
            rows[f"{name}, {'images' if images else 'state'}"] = decision(name, images)
    rows["diffusion_unet, images of 224"] = decision("diffusion_unet", True, 224)
    rows["LeRobot DiffusionPolicy, state"] = lerobot_decision(False)
    rows["LeRobot DiffusionPolicy, images"] = lerobot_decision(True)
    return rows


def training(steps: int = 36) -> dict[str, Any]:
    rows = Rows()
    for images in (True, False):
        kind = "images, batch 64" if images else "state, batch 256"
        ours, theirs = ulna_training(images, steps), lerobot_training(images, steps)
        ratio = round(theirs["step_ms"] / ours["step_ms"], 2)
        rows[kind] = {
            "eager": ulna_training(images, steps, eager=True),
            "ulna": ours,
            "lerobot": theirs,
            "ratio": ratio,
        }
    return rows


PARTS = {"decisions": decisions, "training": training}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS, action="append", help="only these")
    chosen = parser.parse_args().part or list(PARTS)
    warnings.simplefilter("ignore")
    import results

    results.save(
        "gpu",
        {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
        | {part: PARTS[part]() for part in chosen},
    )
