"""The demo behind `make demo`: the README's own commands in simulation, from demonstrations to a success
rate."""

from __future__ import annotations

from pathlib import Path

from ..report.evaluation import ClosedLoop
from .phases import Phases, finish, free_port, fresh, verdict

FIRST_SEED = 1000


def demo_sim(out: Path, demonstrations: int = 100, steps: int = 2500, episodes: int = 50) -> int:
    """Record, train, serve, evaluate through the server, report. 0 when at least 90 % of the seeds
    succeed."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    robot = ["--robot", "sim:so101", "--task", "lift"]
    words = ["record", *robot, "--agent", "expert", "--episodes", str(demonstrations), "--out", data]
    p.run(f"record {demonstrations} episodes", *words)
    p.run("train", "train", "flow", "--data", data, "--out", policy, "--steps", str(steps))
    with p.server("serve", policy, "--port", str(free_port())) as url:
        words = ["evaluate", policy, *robot, "--episodes", str(episodes), "--seed", str(FIRST_SEED)]
        answer = p.run(f"evaluate {episodes} seeds", *words, "--server", url)
    evaluation = ClosedLoop.from_json(answer)
    finish(p, f"Lift, from {demonstrations} demonstrations", evaluation, out)
    return verdict(evaluation, 0.9)
