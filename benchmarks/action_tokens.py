"""How short action tokens (FAST) write chunks of recorded actions, and how exact: fitted on four fifths of
the episodes of a dataset, measured on the others. By default on demonstrations of `peg` and of `lift`, which
it records.

    python benchmarks/action_tokens.py [DATASET ...] [--work FOLDER] [--quick]

Beside them what one token for each number takes, in 256 bins (as RT-2 and OpenVLA write actions)."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from ulna.datasets.features import ACTION
from ulna.policies.codec import Absolute
from ulna.policies.recipes.all import RECIPES
from ulna.policies.tokens import ActionTokens
from ulna.policies.train.data import DataOptions, open_data, window_spec
from ulna.robot.rollout import env_features
from ulna.robot.study.arms import task_maker
from ulna.robot.study.demonstrations import gather_demonstrations, record_demonstrations

TASKS = {"peg": 0.005, "lift": 0.01}  # and the noise on the expert's targets
HORIZONS = (16, 48)
CHUNKS = 500  # to fit on, evenly spaced, and at most as many to measure on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("runs/action_tokens"))
    parser.add_argument("--quick", action="store_true", help="few demonstrations of peg; nothing is saved")
    args = parser.parse_args()
    if args.quick:
        folders = {"peg": recorded("peg", 10, args.work / "quick")}
    elif args.data:
        folders = {Path(d).name: Path(d) for d in args.data}
    else:
        folders = {task: recorded(task, 50, args.work) for task in TASKS}
    rows = [measured(name, folder, h) for name, folder in folders.items() for h in HORIZONS]
    if args.quick:
        print(rows)
    else:
        results.save("action_tokens", {"table": rows})


def recorded(task: str, count: int, work: Path) -> Path:
    """The folder of a task's demonstrations, recorded where they are not there yet."""
    folder = work / task
    if not folder.is_dir():
        make = task_maker(task, {})
        env = make(1)
        features, hz = env_features(env), float(env.control_hz)
        env.close()
        demos = gather_demonstrations(make, 0, count, TASKS[task])
        record_demonstrations(demos, folder, features, hz, f"sim:{task}")
    return folder


def measured(name: str, folder: Path, horizon: int) -> dict[str, Any]:
    data = open_data(folder, options=DataOptions(validate=0.2))
    recipe = replace(RECIPES["flow"](data.features), horizon=horizon, n_action_steps=8)
    windows = data.windows(window_spec(recipe, data.features))
    codec = Absolute("quantile").build(data.features, windows.stats(), 0)

    def chunks(source: Any) -> np.ndarray:
        rows = np.unique(np.linspace(0, len(source) - 1, CHUNKS).round().astype(np.int64))
        return codec.encode(torch.from_numpy(source.vectors(rows)[ACTION]), {}).numpy()

    tokens = ActionTokens.fit(chunks(windows.train))
    unseen = chunks(windows.validation)
    written = [tokens.encode(chunk) for chunk in unseen]
    back = np.stack([tokens.decode(t) for t in written])
    numbers, lengths = horizon * tokens.width, np.array([len(t) for t in written])
    letters = np.array([np.count_nonzero(np.array(tokens.letters(c)) != tokens.most) for c in unseen])
    bits = lengths.mean() * math.log2(tokens.vocabulary)
    inside = np.abs(unseen) <= tokens.reach
    return {
        "data": name,
        "horizon": horizon,
        "action_dimensions": tokens.width,
        "chunks": len(unseen),
        "vocabulary": tokens.vocabulary,
        "numbers_a_chunk": numbers,
        "coefficients_not_0": round(float(letters.mean()), 2),
        "tokens_a_chunk": round(float(lengths.mean()), 2),
        "tokens_at_most": int(lengths.max()),
        "times_fewer_tokens": round(numbers / float(lengths.mean()), 2),
        "times_fewer_bits_than_256_bins": round(8 * numbers / float(bits), 2),
        "error_mean": float(np.abs(back - unseen).mean()),
        "error_largest": float(np.abs(back - unseen)[inside].max()),
        "error_bound": tokens.error,
        "error_of_256_bins_at_most": 1 / 256,
    }


if __name__ == "__main__":
    main()
