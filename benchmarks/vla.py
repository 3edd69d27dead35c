"""pi0, pi0.5 and SmolVLA beside LeRobot 0.6's own: the same random weights, the same questions. Are the
answers equal, and how long does one decision take?

    python benchmarks/vla.py [--decisions 50]

Tiny configurations on the processor, each decision asked in turn of both, so that what else the machine does
meets both alike. A decision begins with frames, state and words: LeRobot's are resized and padded by the
functions that its policies call, and made tokens by ours. *Ready*: the same without, LeRobot's network alone,
beside a whole decision of ours. Needs the extra `vla`. -> results/vla.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot_vla import (
    NAMES,
    SIZES,
    Pair,
    our_chunk,
    our_velocities,
    pair,
    question,
    their_chunk,
    their_core,
    their_inputs,
    velocities,
)
from results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--decisions", type=int, default=50, help="timed, of each")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            both = pair(name, Path(folder))
        results[name] = {
            "parameters": sum(p.numel() for p in both.ours.parameters()),
            "size": vars(SIZES[name]),
            **differences(both),
            **times(both, args.decisions),
        }
    save("vla", {"torch threads": 1, "models": results})


def differences(both: Pair) -> dict[str, float]:
    """The largest between the two, over pictures of three shapes."""
    chunks, steps = [], []
    side = SIZES[both.name].side
    for frames in ((48, 64), (72, 40), (side, side)):
        asked = question(both, frames=frames)
        with velocities(both) as theirs:
            chunk = their_chunk(both, asked)
        chunks.append(float((our_chunk(both, asked) - chunk).abs().max()))
        steps += [
            float((a + b).abs().max()) for a, b in zip(our_velocities(both, asked), theirs, strict=True)
        ]
    return {"largest difference of a decision": max(chunks), "of the denoiser": max(steps)}


def times(both: Pair, decisions: int) -> dict[str, Any]:
    asked = question(both, rows=1)
    ready = their_inputs(both, asked)
    arms: dict[str, Callable[[], Any]] = {
        "lerobot": lambda: their_chunk(both, asked),
        "lerobot, ready": lambda: their_core(both, asked, ready),
        "ulna": lambda: our_chunk(both, asked),
    }
    seconds: dict[str, list[float]] = {who: [] for who in arms}
    for i in range(decisions + 3):
        for who, decide in arms.items():
            began = time.perf_counter()
            decide()
            if i >= 3:
                seconds[who].append(time.perf_counter() - began)
    median = {who: round(1e3 * statistics.median(v), 3) for who, v in seconds.items()}
    least = {who: round(1e3 * min(v), 3) for who, v in seconds.items()}
    return {
        "decision ms, median": median,
        "decision ms, least": least,
        "times as fast": round(median["lerobot"] / median["ulna"], 2),
        "times as fast as its network alone": round(median["lerobot, ready"] / median["ulna"], 2),
    }


if __name__ == "__main__":
    main()
