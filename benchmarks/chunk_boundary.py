"""How much an arm is jerked where another chunk takes over: the largest step of the commanded acceleration
there, over the largest inside the chunks, for every strategy and delays of 0 to 300 ms. On `catch` and on
`lift`, each with a policy that is trained first, or was by an earlier run.

    python benchmarks/chunk_boundary.py [catch|lift ...] [--rows NAME ...] [--work FOLDER] [--quick]

A step of the acceleration is a third difference. At a boundary it is one of commands that were executed,
whose four ticks are of two chunks, or of which one repeats the last command for want of an action; inside, it
is one of the chunks as the policy drew them, since some strategies are at a boundary at every tick. Grippers
are left out. `--rows` measures some of the strategies and keeps the results of the others. The work folder is
that of the study of the same task (`runs/studies/rtc_catch`), whose data and checkpoints are used where they
are there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from ulna.policies.serving.local import LocalPolicy
from ulna.robot.agent import PolicyAgent
from ulna.robot.charge import Charge
from ulna.robot.robot import Observation
from ulna.robot.rollout import env_features
from ulna.robot.strategies.all import strategy_named
from ulna.robot.study.arms import task_maker
from ulna.robot.study.work import Job, Work

STUDIES = Path(__file__).parent / "studies"
DELAYS_MS = (0, 50, 150, 300)
ARMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "receding": ("flow", "receding", {}),
    "async": ("flow", "async", {}),
    "ensemble": ("flow", "ensemble", {}),
    "overlap": ("flow", "overlap", {}),
    "rtc": ("flow", "rtc", {}),
    "rtc, identity": ("flow", "rtc", {"jacobian": "identity"}),
    "async, blend 3": ("flow", "async", {"blend": 3}),
    "rtc, blend 3": ("flow", "rtc", {"blend": 3}),
    "rtc-trained": ("rtc_flow", "rtc-trained", {}),
    "rti": ("flow", "rti", {}),
}
FIRST_SEED = 20_000  # neither demonstrated nor evaluated by the studies


@dataclass
class Steps:
    """Absolute steps of the acceleration: the largest over the joints of each four ticks, in ranges of a
    joint a tick cubed."""

    boundary: list[float]
    inside: list[float]

    def numbers(self) -> dict[str, float]:
        edge, inner = np.array(self.boundary), np.array(self.inside)
        return {
            "boundary_max": float(edge.max()),
            "inside_max": float(inner.max()),
            "ratio_of_max": float(edge.max() / inner.max()),
            "ratio_of_p99": float(np.quantile(edge, 0.99) / np.quantile(inner, 0.99)),
            "ratio_of_median": float(np.median(edge) / np.median(inner)),
        }


def episodes(env: Any, agent: PolicyAgent, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Of each episode the commands `(T, A)`, where a boundary lies before or at a tick `(T,)`, success."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        observation, info = env.reset(seed=[seed])
        agent.reset(str(info["task"][0]), seed)
        commands, new, over = [], [], False
        while not over:
            switches, starved = len(agent.switches), agent.starved
            action = agent.act(Observation({k: v[0] for k, v in observation.items()}, {}))
            commands.append(action)
            new.append(len(agent.switches) > switches or agent.starved > starved)
            observation, _, terminated, truncated, info = env.step(np.asarray(action)[None])
            sent = info["sent"][0] if "sent" in info else action
            agent.sent(np.asarray(sent, np.float32))
            over = bool(terminated[0] or truncated[0])
        yield np.array(commands), np.array(new), bool(info["success"][0])


class Heard:
    """A policy, and the chunks that it drew."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy, self.metadata = policy, policy.metadata
        self.chunks: list[np.ndarray] = []

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = self.policy.infer(request)
        self.chunks.append(reply["actions"])
        return reply


def measure(env: Any, agent: PolicyAgent, heard: Heard, count: int) -> dict[str, Any]:
    space = env.single_action_space
    moved = [i for i, name in enumerate(env.action_names) if "grip" not in name]
    scale = (space.high - space.low)[moved]
    steps, successes = Steps([], []), 0
    for commands, new, success in episodes(env, agent, count):
        successes += success
        if len(commands) < 4:
            continue
        third = _third(commands[:, moved] / scale)
        # ticks t to t + 3: of two chunks, where one of the last three is the first of another
        edge = new[1:-2] | new[2:-1] | new[3:]
        steps.boundary += third[edge].tolist()
    for chunk in heard.chunks:
        steps.inside += _third(chunk[:, moved] / scale).tolist()
    return {
        **steps.numbers(),
        "success": successes / count,
        "starved_per_episode": agent.starved / count,
        "nfe_per_decision": float(np.mean(agent.nfe)),
        "decision_ms_p50": float(np.median(agent.latencies_s) * 1e3),
    }


def _third(path_TA: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(path_TA, n=3, axis=0)).max(1)


def of_task(task: str, chosen: Sequence[str], work_folder: Path, quick: bool) -> dict[str, Any]:
    study = f"rtc_{task}"
    work = Work(STUDIES / f"{study}.toml", work_folder / (f"{study}-quick" if quick else study), quick)
    work.begin()
    variant = work.study.variants["main"]
    for arm in ("flow", "rtc_flow"):
        work.train(Job("main", arm, 0))
    env = task_maker(variant.task, variant.options)(1)
    rows: dict[str, Any] = {}
    try:
        features, hz = env_features(env), float(env.control_hz)
        for name in chosen:
            arm, strategy, fields = ARMS[name]
            policy = LocalPolicy(work.folder / "main" / arm / "seed-0")
            for ms in DELAYS_MS:
                heard = Heard(policy)
                agent = PolicyAgent(
                    heard, features, hz, strategy=strategy_named(strategy, fields), charge=Charge(ms)
                )
                rows.setdefault(name, {})[f"{ms} ms"] = measure(env, agent, heard, 5 if quick else 50)
    finally:
        env.close()
    return {"control_hz": hz, "strategies": rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="*", default=["catch", "lift"])
    parser.add_argument("--rows", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    parser.add_argument("--work", default="runs/studies")
    parser.add_argument("--quick", action="store_true", help="five episodes, a result that is only printed")
    args = parser.parse_args()
    found = {task: of_task(task, args.rows, Path(args.work), args.quick) for task in args.tasks}
    for task, result in found.items():
        for name, by_delay in result["strategies"].items():
            ratios = ", ".join(f"{ms}: {r['ratio_of_max']:.2f}" for ms, r in by_delay.items())
            print(f"{task:6} {name:14} boundary over inside, {ratios}")
    if args.rows != list(ARMS):
        before = results.load("chunk_boundary")["tasks"]
        for task, result in found.items():
            rows = before[task]["strategies"] | result["strategies"]
            result["strategies"] = {name: rows[name] for name in ARMS if name in rows}
        found = before | found
    if not args.quick:
        results.save("chunk_boundary", {"episodes": 50, "tasks": found})
