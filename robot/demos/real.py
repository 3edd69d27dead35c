"""The demo behind `make demo-real`: a policy from recorded demonstrations in LeRobot's format, in open
loop."""

from __future__ import annotations

import sys
from pathlib import Path

from ..report.evaluation import OpenLoop
from .phases import Phases, finish, fresh

REAL_STEPS = 1500
# Teleoperated commands lead the measured joints by what the arm lags and sags, differently in every episode;
# chunks of about a second, measured from the last command, do not have to guess that.
REAL_OPTIONS = [
    "--codec",
    "Delta",
    "--n-past-actions",
    "1",
    "--horizon",
    "32",
    "--n-action-steps",
    "16",
]


def demo_real(source: Path, out: Path, steps: int = REAL_STEPS) -> int:
    """Import a LeRobot folder, train from images and state on all but the last two episodes, evaluate on
    those."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    info = p.run("import", "data", "import", str(source), "--out", data, "--image-size", "96")
    n = int(info["episodes"])
    if n < 3:
        print(
            f"ulna: {source} has {n} episodes; the demo needs at least 3, two of them to evaluate on",
            file=sys.stderr,
        )
        return 1
    training, held_out = f"0-{n - 3}", f"{n - 2},{n - 1}"
    words = ["train", "flow", "--data", data, "--out", policy, "--episodes", training, "--steps", str(steps)]
    p.run("train", *words, *REAL_OPTIONS)
    answer = p.run("evaluate", "evaluate", "--open-loop", policy, "--data", data, "--episodes", held_out)
    tasks = "; ".join(t.rstrip(".") for t in info["tasks"][:2])
    finish(p, f"{tasks or source.name}: open loop on recorded data", OpenLoop.from_json(answer), out)
    return 0
