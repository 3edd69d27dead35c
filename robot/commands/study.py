"""Measure a claim: train every arm of a study on the same demonstrations, try all on the same unseen
episodes, and say which expectations held. A study that was interrupted goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .bar import progress
from .errors import UsageError
from .parsing import Output, require_device, unset, use_threads

EXAMPLE = "ulna study benchmarks/studies/fork.toml --processes 2"


@dataclass
class Args:
    file: tyro.conf.Positional[str]
    """The study, a TOML file: arms, task, seeds, and what is expected."""
    out: Annotated[str, unset("benchmarks/results/studies/NAME.json beside benchmarks/studies")] = ""
    """Where the result goes."""
    work: str = "runs/studies"
    """Where demonstrations, checkpoints and what was found so far are kept, in a folder of its name."""
    processes: int = 1
    """How many trainings run at once, each on one thread."""
    quick: bool = False
    """One seed and ten episodes, to try the file out; the result is marked, and stays in the work folder."""
    restart: bool = False
    """Discard what an earlier run of this study has found."""
    device: Annotated[str, tyro.conf.arg(metavar="cpu|cuda|cuda:N")] = "cpu"
    """Where the policies are trained and run."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ..study.result import result_path, summarise, text, write_json
    from ..study.work import Job, Work, run_all

    if args.processes < 1:
        raise UsageError("--processes is at least 1")
    device = require_device(args.device)
    use_threads(1)
    file = Path(args.file)
    folder = Path(args.work) / (f"{file.stem}-quick" if args.quick else file.stem)
    work = Work(file, folder, args.quick, device)
    work.begin(args.restart)
    total = sum(len(work.study.arms_of(v)) for v in work.study.variants) * work.study.seeds
    with progress("studying", total, len(work.results())) as bar:

        def report(job: Job, arm: str, successes: int, there: bool) -> None:
            if not there:
                note = f"{job.variant} {arm} seed {job.seed}: {successes} of {work.study.episodes}"
                bar.update(bar.completed + 1, note=note)

        run_all(work, args.processes, report)
    result = {**summarise(work.study, work.results()), "command": f"ulna study {args.file}"}
    if args.quick:
        result["quick"] = True
    path = Path(args.out) if args.out else result_path(file, folder, args.quick)
    write_json(path, result)
    out.answer({**result, "result": str(path)}, f"{text(result)}\n{path}")
    return 0
