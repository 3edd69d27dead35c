"""What a person's corrections are worth, and how far an arm jumps when hands change.

    OMP_NUM_THREADS=1 python benchmarks/takeover.py [--seeds 5] [--episodes 100] [--steps 1500] [--only-twin]

A weakened policy (`flow` from state on `lift`, SO-101, 15 demonstrations) is deployed for 10 attempts; a
script, the scene's expert, takes over where it has made no progress for 2 s, and finishes. Four policies
begin from the weak one and learn for the same number of steps: two from the 10 attempts (weighting iwr, and
again hg-dagger) beside the old demonstrations, from 10 more plain demonstrations beside them, and from the
old demonstrations alone. Each is evaluated on the same episodes, of development seeds, 5000 and on.

Written before the run: corrections raise success by 0.1 or more over the weak policy, with a paired interval
above zero, and no less than the plain demonstrations do, though the person moves the arm for a smaller share
of the time. Control: more steps on the old demonstrations alone raise it by less than the corrections do.

Then the SO-101's twin: the scripted hand takes the arm over through the leader's driver, which stands
elsewhere, while the policy moves it; by how much the command departs at each change from the motion that it
had, over 10 takeovers. `--only-twin` measures that again and keeps the rest of the results."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results
from takeover_twin import jumps_on_the_twin

from ulna.datasets.features import ACTION
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.store import EpisodeStore
from ulna.policies.parts import override
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.data import DataOptions, open_data
from ulna.policies.train.loop import train
from ulna.robot.agent import ExpertAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.deploy import deploy
from ulna.robot.evaluate import evaluate_at_once
from ulna.robot.record import open_store, record, recorder_for
from ulna.robot.rehearsal import ExpertPerson
from ulna.robot.statistics import paired_difference, rate_interval

DEMONSTRATIONS, MORE, FIRST_SEED = 15, 10, 5000
FIELDS = {"backbone": "ResidualMLP"}
OBSERVE = ["observation.state", "observation.environment_state"]


def learned(data: Sequence[Path], out: Path, seed: int, steps: int, start: Path | None, weights: Any) -> Path:
    opened = open_data([str(d) for d in data], OBSERVE, DataOptions(weights=weights))
    fields = {**FIELDS, "training.steps": steps, "training.start": "" if start is None else str(start)}
    return Path(
        train(
            override(RECIPES["flow"](opened.features), fields), opened, out, seed=seed, device="cpu", track=()
        ).checkpoint
    )


def successes(rig: Rig, checkpoint: Path, episodes: int) -> np.ndarray:
    report = evaluate_at_once(rig, LocalPolicy(checkpoint), episodes, FIRST_SEED, 50, videos=0, task="lift")
    return np.array([o.success for o in report.outcomes])


def corrections(rig: Rig, checkpoint: Path, out: Path, seed: int) -> dict[str, float]:
    """10 attempts of the policy, with the script beside it."""
    assert rig.sim is not None
    person = ExpertPerson(rig.sim, rig.robot.control_hz)
    with (
        PolicyServer(LocalPolicy(checkpoint), port=0).background() as server,
        recorder_for(rig, open_store(rig, out)) as recorder,
    ):
        deploy(rig, server.url, MORE, 10_000 * (seed + 1), recorder=recorder, person=person)
    flags, steps = [], []
    for e in EpisodeStore.open(out).episodes:
        by_person = e.flags(ACTION) & INTERVENTION != 0
        changes = np.flatnonzero(np.diff(by_person.astype(int))) + 1
        sent = e.read(ACTION)
        steps += [float(np.abs(sent[i] - sent[i - 1]).max()) for i in changes]
        flags.append(by_person)
    together = np.concatenate(flags)
    return {
        "taken_over": int(sum(f.any() for f in flags)),
        "person_s": round(float(together.sum()) / rig.robot.control_hz, 1),
        "all_s": round(len(together) / rig.robot.control_hz, 1),
        "largest_step_at_a_change_rad": round(max(steps, default=0.0), 4),
    }


def one_seed(
    rig: Rig, folder: Path, seed: int, episodes: int, steps: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    demos, more, corrected = (folder / name for name in ("demos", "more", "corrected"))
    record(rig, ExpertAgent(rig.sim, noise=0.004), demos, DEMONSTRATIONS, 1000 * seed)
    record(rig, ExpertAgent(rig.sim, noise=0.004), more, MORE, 1000 * seed + 500)
    weak = learned([demos], folder / "weak", seed, steps, None, "uniform")
    facts = corrections(rig, weak, corrected, seed)
    facts["demonstrations_s"] = round(
        sum(e.length for e in EpisodeStore.open(more).episodes) / rig.robot.control_hz, 1
    )
    policies = {
        "weak": weak,
        "corrections": learned([demos, corrected], folder / "a", seed, steps, weak, "iwr"),
        "corrections, hg-dagger": learned([demos, corrected], folder / "d", seed, steps, weak, "hg-dagger"),
        "demonstrations": learned([demos, more], folder / "b", seed, steps, weak, "uniform"),
        "more steps": learned([demos], folder / "c", seed, steps, weak, "uniform"),
    }
    found = {name: successes(rig, policy, episodes) for name, policy in policies.items()}
    print(seed, {k: int(v.sum()) for k, v in found.items()}, facts, flush=True)
    return found, facts


def compare(arms: dict[str, np.ndarray], name: str, other: str) -> dict[str, Any]:
    a, b = arms[name], arms[other]
    difference, low, high = paired_difference(a, b)
    return {
        "difference": round(difference, 3),
        "bootstrap_95": [round(low, 3), round(high, 3)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only-twin", action="store_true")
    args = parser.parse_args()
    if args.only_twin:
        results.save(
            "takeover",
            results.load("takeover") | {"twin": jumps_on_the_twin()},
        )
        sys.exit()
    rows, facts = [], []
    with load_robot("sim:so101", "lift") as rig, tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            row, fact = one_seed(rig, Path(folder) / str(seed), seed, args.episodes, args.steps)
            rows.append(row)
            facts.append(fact)
    arms = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
    numbers: dict[str, Any] = {
        "task": "lift from state, so101",
        "demonstrations": DEMONSTRATIONS,
        "attempts": MORE,
        "training_seeds": args.seeds,
        "episodes": args.episodes,
        "steps": args.steps,
        "arms": {
            name: {
                "successes": a.sum(1).tolist(),
                "interval_95": [round(v, 3) for v in rate_interval(a.sum(1).tolist(), a.shape[1])],
            }
            for name, a in arms.items()
        },
        "corrections - weak": compare(arms, "corrections", "weak"),
        "corrections, hg-dagger - weak": compare(arms, "corrections, hg-dagger", "weak"),
        "corrections - demonstrations": compare(arms, "corrections", "demonstrations"),
        "corrections - more steps": compare(arms, "corrections", "more steps"),
        "rounds": facts,
        "twin": jumps_on_the_twin(),
    }
    results.save("takeover", numbers)
