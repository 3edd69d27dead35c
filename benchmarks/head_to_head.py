"""Ulna's policies beside LeRobot's own ACT and DiffusionPolicy: the same demonstrations, the same seconds of
the processor to train in, the same unseen episodes, whose differences are paired.

    python benchmarks/head_to_head.py [lift push_t ...] [--seconds 600] [--seeds 3] [--equal-seeds 1]
    python benchmarks/head_to_head.py lift --curves      success by demonstrations and by seconds of training
    python benchmarks/head_to_head.py --real FOLDER      recorded episodes, cross-validated in open loop
    python benchmarks/head_to_head.py external:PushT     tasks of others, see external.py
    python benchmarks/head_to_head.py --quick            the whole way in a minute or two; proves nothing

Each method's steps are chosen so that its training takes `--seconds` of the processor at the pace that it is
first measured to have here, reading its batches included; all of them are then taken, and its schedule ends
with them, however long it takes in the end. On one thread these are a clock's seconds where nothing else
runs; what runs beside it makes it longer, but no method worse, so two may run at once, on other tasks. Each
method is tried as it was trained, with as many network evaluations a decision as the others (equal NFE), and
where decisions take time in the simulation and as many evaluations are made as fit in it (equal latency).
`--equal-seeds` says of how many seeds the latter two are tried: each costs as many episodes as what they
vary.

What is finished is a file in the work folder, of each (task, demonstrations, seconds, method, seed), and in
the end a row of benchmarks/results/head_to_head.json: what was killed goes on where it was, more seeds, tasks
and methods add to what there is, on another machine of the kind, too, at the paces in the results. What a
change makes worthless is taken out of its rows by hand."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from head_to_head_baselines import baselines
from head_to_head_methods import (
    COMPARED,
    METHODS,
    NFE,
    OURS,
    Pace,
    arm_name,
    run_time_arms,
    settings,
    stopwatch,
    study_text,
)
from head_to_head_real import cross_validate
from head_to_head_result import BASELINES, CELL, Cell, summarise, which
from head_to_head_tables import text

from ulna.datasets.features import ACTION
from ulna.policies.request import Request
from ulna.robot.report.comparison import write_comparison
from ulna.robot.rollout import env_features
from ulna.robot.study.arms import runner, task_maker
from ulna.robot.study.demonstrations import gather_demonstrations, record_demonstrations
from ulna.robot.study.lerobot_arm import LOG, PYTHON, TRAINED, step_seconds
from ulna.robot.study.study import Arm, StudyError
from ulna.robot.study.work import Job, Work

CURVE = (10, 30, 100, 300)  # demonstrations
PARTS = (8, 4, 2)  # of the seconds, beside the whole
PACE_STEPS, PACE_SECONDS, PACE_TRIES, DECISIONS = 40, 4.0, 3, 20
QUICK = ("flow", "act", "lerobot_act", "lerobot_diffusion")


@dataclass(frozen=True)
class Plan:
    """What is to be found, and how."""

    work: Path
    """Of one size."""
    size: str
    methods: Sequence[str]
    seeds: int
    episodes: int
    latency_ms: float
    noise: float
    device: str
    before: Mapping[str, Any] | None = None
    """What the results hold of this size."""
    quick: bool = False
    equal_seeds: int = 1_000_000
    """Seeds of training, the first ones, whose policies are also tried at equal NFE and equal latency."""


def cells(tasks: Sequence[str], plan: Plan, demonstrations: int, seconds: float, curves: bool) -> list[Cell]:
    """Every training, without its seeds."""
    sizes = [(demonstrations, seconds)]
    if curves:
        sizes += [(n, seconds) for n in CURVE if n != demonstrations]
        sizes += [(demonstrations, seconds / part) for part in PARTS]
    return [Cell(t, m, n, s) for t in tasks for n, s in sizes for m in plan.methods]


def data_of(cell: Cell, plan: Plan) -> Path:
    """The demonstrations, recorded where they are not there yet: fewer are the first of more."""
    folder = plan.work / cell.task / f"data-{cell.demonstrations}"
    if not folder.is_dir():
        make = task_maker(cell.task, {})
        env = make(1)
        features, hz = env_features(env), float(env.control_hz)
        only = bool(getattr(env, "only_successes", False))
        env.close()
        demos = gather_demonstrations(make, 0, cell.demonstrations, plan.noise, only, batch=50)
        record_demonstrations(demos, folder, features, hz, f"sim:{cell.task}")
    return folder


def judge_baselines(task: str, plan: Plan) -> None:
    """The expert and an arm that holds still, on the episodes of all methods."""
    file = plan.work / task / BASELINES
    if not file.is_file() or len(json.loads(file.read_text())["expert"]) != plan.episodes:
        write(file, baselines(task, plan.episodes))


def write(file: Path, values: Any) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}")
    new.write_text(json.dumps(values) + "\n")
    os.replace(new, file)


def begin(
    cell: Cell, plan: Plan, folder: Path, trained: Mapping[str, Any], run_time: Mapping[str, Any]
) -> Work:
    """The cell as a study, whose demonstrations are those of all cells."""
    data = data_of(cell, plan)
    file = folder.parent / f"{folder.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        study_text(
            cell.method, cell.task, {}, cell.demonstrations, plan.noise, plan.episodes, trained, run_time
        )
    )
    work = Work(file, folder, device=plan.device)
    work.begin()
    link = folder / "main" / "data"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(data, link.parent))
    return work


def pace_of(cell: Cell, plan: Plan) -> Pace:
    """The method's on this task and machine, measured once: the quickest of PACE_TRIES short trainings, since
    what else the machine does makes them longer by up to twice, and decisions of what came of the last."""
    file = plan.work / cell.task / "pace" / f"{cell.method}.json"
    if file.is_file():
        return Pace(**json.loads(file.read_text()))
    if plan.quick:
        return Pace(0.1, 0.01, 0.01)
    if found := (plan.before or {"paces": {}})["paces"].get(cell.task, {}).get(cell.method):
        write(file, found)
        return Pace(**found)
    folder = file.with_suffix("")
    method, steps = METHODS[cell.method], PACE_STEPS
    tries = [pace_training(cell, plan, folder, steps)]
    if method.kind == OURS and tries[0][2] * steps < PACE_SECONDS:  # too short to tell
        steps, tries = int(1.5 * PACE_SECONDS / tries[0][2]), []
    tries += [pace_training(cell, plan, folder, steps) for _ in range(PACE_TRIES - len(tries))]
    (arm, out, _), step_s = tries[-1], min(s for *_, s in tries)
    first_s = more_s = 0.0
    for evaluations in (1, NFE) if method.steps else (1,):
        changes = {"sampling_steps": evaluations, **method.sampler} if method.steps else {}
        taken = decision_seconds(runner(arm).decider(out, changes, plan.device))
        first_s, more_s = (
            (taken, 0.0) if evaluations == 1 else (first_s, max(0.0, taken - first_s) / (NFE - 1))
        )
    pace = Pace(step_s, first_s, more_s)
    write(file, asdict(pace))
    shutil.rmtree(folder)
    return pace


def pace_training(cell: Cell, plan: Plan, folder: Path, steps: int) -> tuple[Arm, Path, float]:
    """(the arm, its checkpoint, seconds of the processor a step) of a training of so many steps in `folder`,
    anew."""
    shutil.rmtree(folder, ignore_errors=True)
    trained, ours = settings(cell.method, plan.size, steps), METHODS[cell.method].kind == OURS
    if not ours:
        trained["log_freq"] = 1
    work = begin(cell, plan, folder, trained, {})
    share_so_far = stopwatch()
    work.train(Job("main", cell.method, 0))
    share = share_so_far()
    arm, out = work.study.arms[cell.method], folder / "main" / cell.method / "seed-0"
    if not ours:
        about = json.loads((out / TRAINED).read_text())
        share = about["processor_seconds"] / about["seconds"]
        return arm, out, share * float(np.mean(step_seconds((out / LOG).read_text())[3:]))
    data = folder / "main" / "data"
    found = runner(arm).train(arm, work.study.variants["main"], data, out, 0, plan.device)
    return arm, out, share * found.seconds / steps


def decision_seconds(policy: Any) -> float:
    """The quickest of some decisions, without the way to another process: what else the machine does only
    makes them longer."""
    m = policy.metadata
    seen = {k: np.zeros((m.n_obs_steps, *f.shape), f.dtype) for k, f in m.features.items() if k != ACTION}
    past = np.zeros((m.n_past_actions, *m.features[ACTION].shape), np.float32) if m.needs_past else None
    request, taken = Request(seen, 0, past, "").to_wire(), []
    for _ in range(DECISIONS):
        began = time.perf_counter()
        policy.infer(request)
        taken.append(time.perf_counter() - began)
    return float(np.min(getattr(policy, "seconds", taken)[-DECISIONS:]))


def run(cell: Cell, seed: int, plan: Plan) -> None:
    """Train and evaluate what is missing of the cell's seed."""
    arms, as_trained_only = [cell.method], seed >= plan.equal_seeds
    if not as_trained_only:
        arms += [arm_name(cell.method, g) for g in run_time_arms(cell.method, Pace(1, 1, 1), 1.0)]
    done = {which(r) for r in (plan.before or {"rows": []})["rows"]}
    if all((cell.task, cell.demonstrations, cell.seconds, arm, seed) in done for arm in arms):
        return
    folder = cell.folder(plan.work)
    pace = pace_of(cell, plan)
    steps = 2 if plan.quick else pace.steps_in(cell.seconds)
    run_time = run_time_arms(cell.method, pace, plan.latency_ms)
    work = begin(cell, plan, folder, settings(cell.method, plan.size, steps), run_time)
    about = {"task": cell.task, "method": cell.method, "demonstrations": cell.demonstrations}
    write(folder / CELL, {**about, "budget_s": cell.seconds, "pace": asdict(pace)})

    def report(arm: str, successes: int, there: bool) -> None:
        if not there:
            where = f"{cell.task}, {cell.demonstrations} demonstrations, {cell.seconds:g} s"
            print(f"{where}: {arm}, seed {seed}: {successes} of {plan.episodes}", file=sys.stderr, flush=True)

    work.run(Job("main", cell.method, seed), report, as_trained_only=as_trained_only)


def collect(root: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that was found in the work folder and before, of every size and of recorded episodes."""
    before = before or {"sizes": {}, "real": {}}
    sizes = {
        s: found for s in ("small", "base") if (found := summarise(root / s, before["sizes"].get(s)))["tasks"]
    }
    real = dict(before["real"])
    real |= {p.stem: json.loads(p.read_text()) for p in sorted((root / "real").glob("*.json"))}
    return {"kind": "head to head", "sizes": sizes, "real": real}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help="lift where none is named")
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=METHODS, metavar="METHOD")
    parser.add_argument("--size", choices=["small", "base"], default="small")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="of the processor, to train each method and seed"
    )
    parser.add_argument("--demonstrations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument(
        "--equal-seeds",
        type=int,
        default=Plan.equal_seeds,
        help="how many of them are tried at equal NFE and latency",
    )
    parser.add_argument("--episodes", type=int, default=100, help="of evaluation, for each seed")
    parser.add_argument(
        "--latency-ms", type=float, default=100.0, help="of a decision, where all take the same"
    )
    parser.add_argument("--noise", type=float, default=0.004, help="of the expert, m")
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--real", type=Path, help="a LeRobot folder: cross-validate on it instead")
    parser.add_argument("--leave-out", type=int, default=2, help="episodes of a fold")
    parser.add_argument(
        "--image-size", type=int, default=0, help="train from the pictures of --real, too, this large"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of either side")
    parser.add_argument("--lerobot", help="the Python of LeRobot's environment, where it has one of its own")
    parser.add_argument("--work", type=Path, default=Path("runs/head_to_head"))
    parser.add_argument(
        "--quick", action="store_true", help="seconds of training: a result that is only printed"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    if args.lerobot:
        os.environ[PYTHON] = args.lerobot
    root, methods = (
        (args.work.with_name(f"{args.work.name}-quick") if args.quick else args.work),
        args.methods,
    )
    before = None
    if not args.quick and (results.RESULTS / "head_to_head.json").is_file():
        before = results.load("head_to_head")
    if args.real:
        cross_validate(args.real, root / "real", args)
    else:
        plan = Plan(
            *(root / args.size, args.size, methods, args.seeds, args.episodes),
            *(args.latency_ms, args.noise, args.device),
            (before or {"sizes": {}})["sizes"].get(args.size),
            equal_seeds=args.equal_seeds,
        )
        demonstrations, seconds = args.demonstrations, args.seconds
        if args.quick:
            few = [m for m in methods if m in QUICK] or methods
            plan = replace(plan, methods=few, seeds=1, episodes=4, quick=True)
            demonstrations, seconds = 5, 60.0
        for task in args.tasks or ["lift"]:
            judge_baselines(task, plan)
        todo = cells(args.tasks or ["lift"], plan, demonstrations, seconds, args.curves)
        for seed in range(plan.seeds):  # so that one that is cut short has all methods
            for cell in todo:
                run(cell, seed, plan)
    found = collect(root, before)
    print("\n".join(text(found)))
    root.mkdir(parents=True, exist_ok=True)
    print(write_comparison(root / "report.html", found))
    if args.quick:
        (root / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    else:
        results.save("head_to_head", found)


if __name__ == "__main__":
    try:
        main()
    except (StudyError, ValueError) as error:
        sys.exit(f"head_to_head: {error}")
