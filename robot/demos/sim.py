"""The demo behind `make demo`: the README's own commands in simulation, from demonstrations to a success
rate."""

from __future__ import annotations

from pathlib import Path

from ..report.evaluation import ClosedLoop
from .phases import Phases, finish, free_port, fresh, verdict

FIRST_SEED = 1000


def demo_sim(out: Path, demonstrations: int = 100, steps: int = 3000, episodes: int = 50) -> int:
    """Record, train, serve, evaluate through the server, report beside the expert and an arm that never
    moves. 0 when at least 90 % of the seeds succeed."""
    fresh(out)
    p = Phases()
    data, policy = str(out / "data"), str(out / "flow")
    robot = ["--robot", "sim:so101", "--task", "lift"]
    words = ["record", *robot, "--agent", "expert", "--episodes", str(demonstrations), "--out", data]
    p.run(f"record {demonstrations} episodes", *words)
    # of the networks that benchmarks/demo_policy.py compares, the one that learns this in the least time
    words = ["train", "flow", "--backbone", "ResidualMLP", "--data", data, "--out", policy]
    p.run("train", *words, "--steps", str(steps))
    scenes = [*robot, "--episodes", str(episodes), "--seed", str(FIRST_SEED)]
    with p.server("serve", policy, "--port", str(free_port())) as url:
        answer = p.run(f"evaluate {episodes} seeds", "evaluate", policy, *scenes, "--server", url)
    baselines = p.baselines(scenes)
    evaluation = ClosedLoop.from_json(answer)
    finish(p, f"Lift, from {demonstrations} demonstrations", evaluation, out, baselines=baselines)
    return verdict(evaluation, 0.9)
