"""Training steps per second of `ptp` from images, 16 observations each, with its frozen encoder seeing every
window's frames anew and with their encodings kept (`training.cache_encodings`).

    python benchmarks/cached_encoder.py [--steps N]

Random images of 64 x 64 pixels, a small CNN, batch 16, one thread; the two take turns, and the medians of
their steps are compared. The losses of both must agree, which is checked. What the encodings cost is timed
apart: once for every frame."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import results
import torch

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.train.data import open_data, window_spec
from ulna.policies.train.encodings import EncodedWindows
from ulna.policies.train.loop import train

EPISODES, TICKS, SIZE, BATCH, ROUNDS, WARM = 10, 40, 64, 16, 2, 2
FEATURES = {
    STATE: Feature((2,), "float32"),
    IMAGES + "front": Feature((SIZE, SIZE, 3), "uint8"),
    ACTION: Feature((2,), "float32"),
}


def write_data(folder: Path) -> None:
    writer, rng = EpisodeWriter(EpisodeStore.create(folder, FEATURES, 10.0)), np.random.default_rng(0)
    for _ in range(EPISODES):
        writer.start({})
        for t in range(TICKS):
            values = {
                k: rng.integers(0, 256, f.shape, np.uint8)
                if f.dtype == "uint8"
                else rng.normal(size=f.shape).astype(np.float32)
                for k, f in FEATURES.items()
            }
            writer.tick(values, {k: (t * 100_000_000, t * 100_000_000) for k in values})
        writer.end({"success": True})


def recipe(steps: int, **changes: object) -> Recipe:
    return override(
        RECIPES["ptp"](FEATURES),
        {
            "encoder.image": "SmallCNN",
            "encoder.image.crop": 1.0,  # random crops would change the frames
            "backbone": "ResidualMLP",
            "training.steps": steps,
            "training.batch_size": BATCH,
            "training.checkpoint_every": 10**9,
            **changes,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each side and round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    losses: dict[bool, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data")
        data = open_data(folder / "data")
        short = recipe(1, n_obs_steps=2, n_past_actions=1, horizon=16)
        train(short, data, folder / "short", device="cpu", track=())
        for turn in range(ROUNDS * 2):
            cached = turn % 2 == 1
            second = recipe(
                args.steps + WARM + 1,
                **{
                    "training.start": str(folder / "short"),
                    "training.freeze": "encoder.*",
                    "training.cache_encodings": cached,
                },
            )
            times: list[float] = []
            result = train(
                second,
                data,
                folder / f"{turn}",
                device="cpu",
                track=(),
                report=lambda _, times=times: times.append(time.perf_counter()),
            )
            seconds[cached] += [b - a for a, b in itertools.pairwise(times)][WARM:]
            losses[cached] = result.losses
        policy = load_checkpoint(folder / "1")
        windows = data.windows(window_spec(policy.recipe, data.features)).train
        began = time.perf_counter()
        EncodedWindows(windows, policy)
        once = time.perf_counter() - began
    np.testing.assert_allclose(losses[True], losses[False], atol=1e-5)
    rate = {cached: 1 / float(np.median(s)) for cached, s in seconds.items()}
    results.save(
        "cached_encoder",
        {
            "frames": EPISODES * TICKS,
            "image": [SIZE, SIZE],
            "batch": BATCH,
            "observations": 16,
            "steps_timed": len(seconds[True]),
            "images_steps_per_s": round(rate[False], 2),
            "cached_steps_per_s": round(rate[True], 2),
            "ratio": round(rate[True] / rate[False], 1),
            "every_frame_once_s": round(once, 2),
            "largest_difference_of_losses": float(
                np.abs(np.array(losses[True]) - np.array(losses[False])).max()
            ),
        },
    )
